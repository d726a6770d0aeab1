"""Serve a finished run on this machine: a Ray cluster of its own, the app of serve/config.yaml, the page's URL.

python -m serve.local --config configs/chorus.yaml --port 8000     (Ctrl-C ends it)
"""

import argparse
import contextlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ray_app.base.config import load_config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.umask import keep_private
from ray_app.cluster.resources import local_environment, start_local
from ray_app.tables.current import current_release

CONFIG = Path(__file__).parent / "config.yaml"
START_SEC = 300
# Requests that name their query in this header go where it is cached; the others to the least busy replica. The lines after it
# are HAProxy's too: Ray 2.60 has no setting for the time in which a request must have come, headers and the first 16 kB of its
# body, before a replica hears of it; and it writes this value, as it is, as the last line of HAProxy's section `defaults`.
HAPROXY_DEFAULTS = (
    "hdr(x-query-key)\n    timeout http-request 5s\n    option http-buffer-request\n    timeout http-keep-alive 10s"
)


def main() -> None:
    """Parse, serve, wait."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/demo.yaml", help="config of a finished run")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one key; repeatable")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    for sign in (signal.SIGINT, signal.SIGTERM):  # `kill` ends the cluster too, and a script's `&` ignores SIGINT
        signal.signal(sign, signal.default_int_handler)
    try:
        keep_private()
        with serving(args.config, args.set, args.port) as (url, process):
            print(f"serving at {url} (Ctrl-C ends it)", flush=True)
            process.wait()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped")


@contextlib.contextmanager
def serving(config: str, overrides: list[str], port: int, **options: Any) -> Iterator[tuple[str, subprocess.Popen]]:
    """The app on a cluster of its own, ready to answer; the cluster ends with the context.

    Args:
        config: Config file of a finished run.
        overrides: As `--set`.
        port: Of the page.
        options: Of the deployment, in place of those in serve/config.yaml.

    Yields:
        The URL, and the process to wait for.

    Raises:
        UserError: there is nothing to serve, the port is taken, or the app does not start.
    """
    cfg = load_config(config, overrides)
    if current_release(Storage(cfg.output)) is None:
        raise UserError(f"{cfg.output} has no release yet: run `make run CONFIG={config}` first")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is taken: choose another one with --port")
    about = yaml.safe_load(CONFIG.read_text())
    about["http_options"]["port"] = port
    app = about["applications"][0]
    app["args"] = {
        "config": str(Path(config).absolute()),
        "set": [*overrides, f"output={json.dumps(absolute(cfg.output))}"],
    }
    app["deployments"][0] |= options
    with tempfile.TemporaryDirectory() as temp:
        path = Path(temp) / "config.yaml"
        path.write_text(yaml.safe_dump(about))
        process = subprocess.Popen(
            [sys.executable, "-c", f"from serve.local import host; host({str(path)!r}, {cfg.serve.shards})"],
            env=environment(Path(temp)), start_new_session=True,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url, process)
            yield url, process
        finally:
            _stop(process)


def host(path: str, shards: int) -> None:
    """In a process of its own: a cluster, and `serve run` on it, until SIGINT. Prints why the app does not start.

    Args:
        path: Config file of Serve.
        shards: See `serve.shards`; replicas of the router must leave room for a shard that comes back.
    """
    from ray import serve
    from ray.serve.scripts import run

    def watch() -> None:
        while True:
            time.sleep(0.5)
            with contextlib.suppress(Exception):  # Serve is not up yet, or is going down
                for app in serve.status().applications.values():
                    if app.status == "DEPLOY_FAILED":
                        print(app.message.strip(), file=sys.stderr, flush=True)
                        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Logical CPUs for a batch job beside it: with as many as cores, one replica would leave too few for a chain of Ray Data.
    start_local(
        namespace="serve", num_cpus=max(8, os.cpu_count() or 1) + shards, object_store_memory=500_000_000,
        include_dashboard=True, log_to_driver=False, logging_level=logging.WARNING,
    )  # fmt: skip
    threading.Thread(target=watch, daemon=True).start()
    run.main([path], standalone_mode=False)


def environment(temp: Path) -> dict[str, str]:
    """Environment of the cluster's processes: HAProxy before the replicas (4 to 5 times less latency), files apart from other clusters'."""
    root = str(Path(__file__).parent.parent)
    replicas = free_port()  # the first one's
    mine = {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "RAY_worker_niceness": "0",  # 15 by default: replicas would give way to whatever else runs, batch jobs too
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": HAPROXY_DEFAULTS,
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "10",  # 3600 by default: so long would a socket that says nothing stay
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # 30 by default: so long would Ctrl-C take
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # 10 by default; a dead proxy is noticed after three
        # Ports are fixed by default: a second app on this machine would fail, or share requests with the first one's replicas.
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas + 100),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(temp / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(temp / "haproxy.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(temp),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(temp / "haproxy.state"),
    }
    return {**os.environ, **local_environment(os.environ), **mine}


def free_port() -> int:
    """One that nothing listens on at this moment, and that none of the cluster's processes is given by chance.

    Those take theirs from the system's ephemeral ports while the app starts: one from there may be gone when HAProxy wants it.
    """
    for port in random.SystemRandom().sample(range(20_000, _first_ephemeral_port()), 1_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise UserError("1,000 of the ports above 20,000 were tried, and all are taken")


def _first_ephemeral_port() -> int:
    with contextlib.suppress(OSError, ValueError):
        return max(25_000, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
    return 32_768


def absolute(output: str) -> str:
    """A run's folder as any working directory understands it."""
    return output if "://" in output else str(Path(output).absolute())


def _wait(url: str, process: subprocess.Popen) -> None:
    limit = time.monotonic() + START_SEC
    while time.monotonic() < limit:
        if process.poll() is not None:
            raise UserError("the app did not start; the lines above say why")
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return
        time.sleep(0.2)
    raise UserError(f"the app was not ready after {START_SEC} s; the lines above say why")


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    # HAProxy outlives a proxy that was killed, as those are that do not end in time, and would keep the port.
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(folder.name)) == process.pid:
                os.kill(int(folder.name), signal.SIGKILL)


if __name__ == "__main__":
    main()
