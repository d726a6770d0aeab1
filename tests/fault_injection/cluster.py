"""A Ray cluster of its own: a head and one worker node, as `ray start` makes them, found and ended by process id only.

Other clusters live on the same machine: `ray stop` would end them too. What belongs to a node is what runs in the session
of its `ray start`; workers rename themselves, so their command lines say nothing.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from ray_app.cluster.resources import local_environment
from serve.local import free_port

HEAD_CPUS, WORKER_CPUS = 4, 4
_ENV = {
    # A token, since these ports are open: Ray refuses to start a second node on the loopback interface.
    **local_environment({}),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    "RAY_worker_niceness": "0",  # 15 by default: on a busy machine a stage would last for minutes
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    # A dead node is noticed after some 5 seconds and not after 15; a busy machine must not look like a dead one.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
    # A head that is gone ends what waits for it soon.
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}


@dataclass
class Node:
    """What one `ray start` has started: all processes of its session."""

    session: int

    def processes(self) -> list[psutil.Process]:
        """Alive ones, by process id."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(process.pid) == self.session and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def named(self, name: str) -> list[psutil.Process]:
        """Those with `name` in their title or command line."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    @property
    def raylet(self) -> psutil.Process | None:
        """Ray's daemon of the node; None: it is dead."""
        found = [process for process in self.named("/raylet/raylet") if process.name() == "raylet"]
        return found[0] if found else None

    def workers(self) -> list[psutil.Process]:
        """Those that work for a job at this moment, actors of Ray's libraries among them."""
        idle = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
        found = []
        for process in self.named("ray::"):
            with contextlib.suppress(psutil.Error):
                title = " ".join(process.cmdline())
                if title.startswith("ray::") and not title.startswith(idle):
                    found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL of all of it, at once, as a power cut would."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


class Watchdog:
    """A process that kills the nodes it was told of once this one is gone, even by SIGKILL: `ray start` outlives both."""

    _CODE = (
        "import os, signal, sys\n"
        "sessions = {int(line) for line in sys.stdin}\n"  # to the end: until nobody holds the other end of the pipe
        "for name in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try:\n"
        "        os.getsid(int(name)) in sessions and os.kill(int(name), signal.SIGKILL)\n"
        "    except OSError:\n"
        "        pass\n"
    )

    def __init__(self) -> None:
        command = [sys.executable, "-c", self._CODE]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def note(self, node: Node) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{node.session}\n".encode())
        self._process.stdin.flush()

    def close(self) -> None:
        """Kill them now, what is left of them."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


class Cluster:
    """Starts both nodes, tells what runs, repairs what a fault has killed, and leaves nothing behind."""

    def __init__(self) -> None:
        self.temp = Path(tempfile.mkdtemp(prefix="rf-", dir="/tmp"))  # short: sockets lie in it
        self.head: Node | None = None
        self.worker: Node | None = None
        self.address = ""
        self.starts = 0
        self._watchdog = Watchdog()

    def __enter__(self) -> "Cluster":
        try:
            self.heal()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._watchdog.close()
        for _ in range(50):  # those that die at this moment still write
            shutil.rmtree(self.temp, ignore_errors=True)
            if not self.temp.exists():
                break
            time.sleep(0.1)

    def nodes(self) -> list[Node]:
        """Those that should be alive."""
        return [node for node in (self.head, self.worker) if node is not None]

    def workers(self) -> list[psutil.Process]:
        return [process for node in self.nodes() for process in node.workers()]

    def heal(self) -> None:
        """Start what is not there: all of it if the head is dead, else the worker node."""
        if self.head is None or self.head.raylet is None or not self.head.named("gcs_server"):
            self.stop()
            self._start_head()
        if self.worker is None or self.worker.raylet is None:
            if self.worker is not None:
                self.worker.kill()
            self.worker = self.add_node(WORKER_CPUS)

    def stop(self) -> None:
        for node in self.nodes():
            node.kill()
        self.head = self.worker = None

    def add_node(self, num_cpus: int, env: dict[str, str] | None = None) -> Node:
        """Another node of this cluster."""
        return self._start(["--address", self.address, "--num-cpus", str(num_cpus)], env or {})

    def _start_head(self) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.starts += 1
        head = ["--head", f"--port={port}", f"--temp-dir={self.temp}/{self.starts}", f"--num-cpus={HEAD_CPUS}"]
        ports = [f"--dashboard-port={free_port()}", f"--ray-client-server-port={free_port()}"]
        # Ray Train asks the dashboard's State API whether the run still lives.
        self.head = self._start([*head, *ports, "--include-dashboard=true", "--disable-usage-stats"], {})

    def _start(self, arguments: list[str], env: dict[str, str]) -> Node:
        command = [
            str(Path(sys.executable).with_name("ray")), "start", *arguments, "--node-ip-address=127.0.0.1",
            "--object-store-memory=200000000", f"--dashboard-agent-listen-port={free_port()}",
            "--min-worker-port=0", "--max-worker-port=0",  # any: a range would be shared with other clusters here
        ]  # fmt: skip
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | _ENV | env
        log = self.temp / "start.log"
        with log.open("ab") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        node = Node(process.pid)
        self._watchdog.note(node)
        try:
            code = process.wait(300)
        except BaseException:  # a signal to stop, too
            node.kill()
            raise
        if code != 0:
            node.kill()
            raise RuntimeError(f"ray start failed:\n{log.read_text()[-3000:]}")
        return node

    @property
    def env(self) -> dict[str, str]:
        """What a driver needs to join."""
        return _ENV | {"RAY_ADDRESS": self.address}


def kill_session(session: int) -> None:
    """SIGKILL of every process of a session that this program has started."""
    Node(session).kill()


def wait_until(done: Callable[[], bool], timeout_sec: float, step_sec: float = 0.01) -> bool:
    """Whether `done()` came true in time."""
    limit = time.monotonic() + timeout_sec
    while not done():
        if time.monotonic() > limit:
            return False
        time.sleep(step_sec)
    return True
