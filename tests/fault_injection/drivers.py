"""Stages as programs of their own, forked from a process that has imported what they need: a start takes no seconds."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

JUMP = "FAULTS_CLOCK_JUMP_SEC"  # environment: what SIGUSR1 adds to the program's clock
PROGRAMS = ("run_all", "collect_garbage")  # of pipelines/ that are no stage
_PRELOAD = "__main__ torch transformers pyarrow.parquet ray.data ray.train.torch ray_app.cli drivers".split()


def start_forkserver() -> Any:
    """The context whose processes are forked from one that has imported `_PRELOAD`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


class Driver:
    """One run of a stage, as `pipelines/<stage>.py` would do it, in a session of its own.

    Args:
        context: Of `start_forkserver`.
        stage: Its name, or one of PROGRAMS.
        config: YAML file.
        overrides: As `--set`.
        folder: For its log and for the file `begun`.
        env: Added to the environment.
    """

    def __init__(
        self, context: Any, stage: str, config: Path, overrides: list[str], folder: Path, env: dict[str, str]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.stage, self.folder = stage, folder
        self.process = context.Process(target=_main, args=(stage, str(config), overrides, str(folder), env))
        self.process.start()
        self.pid: int = self.process.pid

    @property
    def begun(self) -> bool:
        """Whether the stage itself runs, and not only its imports."""
        return (self.folder / "begun").exists()

    @property
    def ended(self) -> bool:
        """Whether the program is gone."""
        return not self.process.is_alive()

    @property
    def log(self) -> str:
        """What it said."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def stage_sec(self) -> float:
        """How long the stage itself has run, once it has ended by itself; 0: it was killed."""
        begun, ended = self.folder / "begun", self.folder / "peak_kb"
        return ended.stat().st_mtime - begun.stat().st_mtime if begun.exists() and ended.exists() else 0.0

    @property
    def peak_mb(self) -> float:
        """Most memory that the program had, once it has ended; RSS, and in it what it shares with its parent."""
        return int((self.folder / "peak_kb").read_text()) / 1000

    def wait(self, timeout_sec: float) -> int | None:
        """Exit code (negative: the signal that killed it); None: it hung, and is killed now."""
        self.process.join(timeout_sec)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            return None
        code: int = self.process.exitcode
        return code


def run_fault_free(*driver_arguments: Any, timeout_sec: int = 600) -> Driver:
    """A run to its end; raises RuntimeError if it fails."""
    driver = Driver(*driver_arguments)
    if driver.wait(timeout_sec) != 0:
        raise RuntimeError(f"{driver.stage} fails without any fault:\n{driver.log[-3000:]}")
    return driver


def _main(stage: str, config: str, overrides: list[str], folder: str, env: dict[str, str]) -> None:
    """In the child."""
    import ray

    from ray_app.cli import run_program, run_stage
    from ray_app.stages.order import load_stage

    os.setsid()
    os.environ.update(env)
    log = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(log, standard)
    signal.signal(signal.SIGUSR1, lambda *_: jump_clock(float(env.get(JUMP, "0"))))
    sys.argv = [f"pipelines/{stage}.py", "--config", config, *(part for each in overrides for part in ("--set", each))]
    is_program = stage in PROGRAMS
    body = import_module(stage).main if is_program else load_stage(stage).run

    def marked(cfg: Any, store: Any) -> Any:
        Path(folder, "begun").touch()
        return body(cfg, store)

    try:
        (run_program if is_program else run_stage)(marked, stage)
    finally:
        ray.shutdown()
        Path(folder, "peak_kb").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def jump_clock(seconds: float) -> None:
    """From now on this process's wall clock is off by that much; what counts time that has passed is not."""
    real = time.time
    time.time = lambda: real() + seconds
