"""The faults. Each is injected once at a given moment, says what it hit, and can be repaired."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psutil
from cluster import Cluster, kill_session, wait_until
from drivers import JUMP, Driver
from s3_proxy import S3Proxy
from world import STAGES

ON_RAY = ("ingest", "enrich", "zero_shot", "engagement", "graph", "train_teacher", "label", "distill", "embed")
_MODEL_WORKERS = ("MapWorker", "RayTrainWorker", "ray::train")
_DISK_MB = 96
DAY = 86_400


@dataclass
class Scene:
    """Where a fault is injected."""

    rng: random.Random  # of this case
    stage: str  # that is disturbed
    cluster: Cluster  # it runs on
    run: Path  # its output; a local folder
    proxy: S3Proxy | None = None  # in front of its output, where that is on S3
    driver: Driver | None = None  # its program; None before it is started
    requests_hit: int = 0  # of S3, once it is repaired
    env: dict[str, str] = field(default_factory=dict)  # that the program will get


class Fault:
    """A kind of fault; one object per case."""

    name: ClassVar[str]
    stages: ClassVar[tuple[str, ...]]
    storage: ClassVar[str] = "folder"  # or "disk": a small file system of its own; or "s3"

    def prepare(self, scene: Scene) -> None:
        """Before the stage is started."""

    def inject(self, scene: Scene) -> str:
        """Do it; returns what was hit, "" if there was nothing to hit."""
        raise NotImplementedError

    def repair(self, scene: Scene) -> None:
        """Before the stage is started again."""


class DriverKill(Fault):
    """SIGKILL of the program that drives the stage."""

    name, stages = "driver", STAGES

    def inject(self, scene: Scene) -> str:
        assert scene.driver is not None
        os.kill(scene.driver.pid, signal.SIGKILL)
        return f"pid {scene.driver.pid}"


class WorkerKill(Fault):
    """SIGKILL of one Ray worker: a model's actor, a training worker, a task, or an actor of Ray's own libraries."""

    name, stages = "worker", ON_RAY

    def inject(self, scene: Scene) -> str:
        worker, title = _a_worker(scene)
        with contextlib.suppress(psutil.NoSuchProcess):
            if worker is not None:
                self.hit(worker)
                return title
        return ""

    def hit(self, worker: psutil.Process) -> None:
        worker.kill()


class MemoryLimit(WorkerKill):
    """One Ray worker gets no more memory: from now on each allocation that needs a new page fails."""

    name, stages = "memory", ("zero_shot", "train_teacher", "label", "embed")

    def hit(self, worker: psutil.Process) -> None:
        has = worker.memory_info().vms
        worker.rlimit(psutil.RLIMIT_AS, (has, has))


class RayletKill(Fault):
    """SIGKILL of the raylet of the worker node, which takes its workers with it."""

    name, stages = "raylet", ON_RAY

    def inject(self, scene: Scene) -> str:
        assert scene.cluster.worker is not None
        raylet = scene.cluster.worker.raylet
        if raylet is None:
            return ""
        raylet.kill()
        return f"pid {raylet.pid}"

    def repair(self, scene: Scene) -> None:
        scene.cluster.heal()


class PowerCut(Fault):
    """SIGKILL of everything at once: driver, both nodes, the cluster's head."""

    name, stages = "power", ("ingest", "train_teacher", "label", "distill", "embed")

    def inject(self, scene: Scene) -> str:
        assert scene.driver is not None
        victims = [p for node in scene.cluster.nodes() for p in node.processes()]
        os.kill(scene.driver.pid, signal.SIGKILL)
        for process in victims:
            with contextlib.suppress(psutil.Error):
                process.kill()
        scene.cluster.stop()
        return f"{len(victims) + 1} processes"

    def repair(self, scene: Scene) -> None:
        scene.cluster.heal()


class MemoryMonitor(Fault):
    """A node whose memory counts as used up: Ray's monitor kills workers there as fast as they start."""

    name, stages = "oom_killer", ("label", "embed")

    def inject(self, scene: Scene) -> str:
        cluster = scene.cluster
        assert cluster.worker is not None
        cluster.worker.kill()
        tight = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
        cluster.worker = cluster.add_node(16, tight)
        return "a node whose memory is full"

    def repair(self, scene: Scene) -> None:
        if scene.cluster.worker is not None:
            scene.cluster.worker.kill()
        scene.cluster.heal()


class FullDisk(Fault):
    """The file system of the output has no byte left."""

    name, stages, storage = "full_disk", ("ingest", "enrich", "train_teacher", "label", "distill", "embed"), "disk"

    def inject(self, scene: Scene) -> str:
        """Fill it; also what the stage frees."""
        disk = scene.run.parent
        for number in range(20):
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            with contextlib.suppress(OSError), (disk / f"ballast-{number}").open("wb", buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, max(free, 1))
            time.sleep(0.01)
        return "the file system of the output"

    def repair(self, scene: Scene) -> None:
        for path in scene.run.parent.glob("ballast-*"):
            path.unlink()


class ReadOnly(Fault):
    """The file system of the output turns read-only, as one with errors does."""

    name, stages, storage = "read_only", ("ingest", "sample", "train_teacher", "label", "embed"), "disk"

    def inject(self, scene: Scene) -> str:
        """Refused while a file is open for writing, so some tries."""
        done = wait_until(lambda: _remount(scene.run.parent, "ro"), 5)
        return "the file system of the output" if done else ""

    def repair(self, scene: Scene) -> None:
        wait_until(lambda: _remount(scene.run.parent, "rw"), 5)


class ClockJump(Fault):
    """The driver's clock jumps by days, and what is there was written by machines whose clocks were ahead."""

    name, stages = "clock", ("sample", "label", "distill", "embed")

    def prepare(self, scene: Scene) -> None:
        """Manifests and files from the future, or from long ago."""
        scene.env[JUMP] = str(scene.rng.choice((-400, -1, 1, 400)) * DAY)
        shift = scene.rng.choice((-400, 400)) * DAY
        paths = [path for path in scene.run.rglob("*") if path.is_file()]
        for path in paths:
            if path.suffix == ".json" and "created_at" in (about := json.loads(path.read_text() or "{}")):
                path.write_text(json.dumps(about | {"created_at": about["created_at"] + shift}))
            os.utime(path, (time.time() + shift,) * 2)

    def inject(self, scene: Scene) -> str:
        assert scene.driver is not None
        os.kill(scene.driver.pid, signal.SIGUSR1)
        return f"{float(scene.env[JUMP]) / DAY:+.0f} days"


class _S3(Fault):
    storage = "s3"

    def inject(self, scene: Scene) -> str:
        """A burst of some seconds."""
        assert scene.proxy is not None
        seconds = round(scene.rng.uniform(0.5, 4.0), 1)
        scene.proxy.begin(self.name.removeprefix("s3_"), seconds, scene.rng.randrange(1 << 30))
        return f"{seconds} s"

    def repair(self, scene: Scene) -> None:
        if scene.proxy is not None:
            scene.requests_hit = max(scene.requests_hit, scene.proxy.end())


class S3Errors(_S3):
    """Half of the requests are answered with 500 or 503."""

    name, stages = "s3_errors", ("ingest", "enrich", "sample", "label", "embed")


class S3Drops(_S3):
    """Two of five connections are dropped, before the request or after it was carried out."""

    name, stages = "s3_drops", ("enrich", "sample", "label", "embed")


class S3StaleLists(_S3):
    """Lists are those of the first time somebody asked."""

    name, stages = "s3_stale_lists", ("label", "embed", "zero_shot")


class S3Slow(_S3):
    """Each request takes a fifth of a second more."""

    name, stages = "s3_slow", ("label", "embed")


FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        DriverKill, WorkerKill, MemoryLimit, RayletKill, PowerCut, MemoryMonitor, FullDisk, ReadOnly, ClockJump, S3Errors,
        S3Drops, S3StaleLists, S3Slow,
    )
}  # fmt: skip


def mount_disk(folder: Path) -> None:
    """A small file system of its own at `folder`; only root may."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "none", str(folder)], check=True)


def unmount_disk(folder: Path) -> None:
    """Even if somebody still has a file open there."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount(folder: Path) -> bool:
    """Whether this machine lets us mount."""
    probe = folder / "probe"
    try:
        mount_disk(probe)
    except (OSError, subprocess.CalledProcessError):
        return False
    unmount_disk(probe)
    return True


def end_driver(driver: Driver | None) -> None:
    """Kill it and what it has started, if it still runs."""
    if driver is not None and not driver.ended:
        kill_session(driver.pid)
        driver.wait(5)


def _remount(folder: Path, mode: str) -> bool:
    command = ["mount", "-o", f"remount,{mode}", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _a_worker(scene: Scene) -> tuple[psutil.Process | None, str]:
    """One that works for the stage at this moment, and its title; waits for one if the stage still starts them."""
    found: list[psutil.Process] = []

    def some() -> bool:
        found[:] = scene.cluster.workers()
        return bool(found) or (scene.driver is not None and scene.driver.ended)

    wait_until(some, 20)
    if not found:
        return None, ""
    titles = {}
    for process in found:
        with contextlib.suppress(psutil.Error):
            titles[process] = process.cmdline()[0]
    models = [process for process, title in titles.items() if any(name in title for name in _MODEL_WORKERS)]
    worker = scene.rng.choice(models if models and scene.rng.random() < 0.7 else found)
    with contextlib.suppress(psutil.Error):
        return worker, worker.cmdline()[0]
    return None, ""
