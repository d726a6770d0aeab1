"""Issue 5's promise on real data: a teacher on two workers, one of them killed half-way, is the fault-free one.

    python benchmarks/worker_failure.py [--config configs/chorus.yaml]

Needs a finished `zero_shot` stage. Runs `pipelines/train_teacher.py --set train_teacher.num_workers=2` twice on copies of the run; in the
second, kill -9 hits one Ray Train worker once half of the fault-free run's training time has passed and there is a
checkpoint. Compares the loss curves and the weights.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from _bench import ROOT, finish
from safetensors.numpy import load_file

from ray_app.base.config import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/chorus.yaml")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    source = Path(load_config(args.config, args.set).output)
    with tempfile.TemporaryDirectory() as temp:
        folders = [Path(temp) / name for name in ("fault-free", "killed")]
        for folder in folders:
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("models", "training", "releases"))
            (folder / "manifests" / "train_teacher.json").unlink(missing_ok=True)
        whole = train_teacher(args, folders[0])
        killer = Killer(folders[1], wait=0.5 * whole["training_sec"])
        broken = train_teacher(args, folders[1])
        killer.stop.set()
    assert killer.killed is not None, "the run ended before a worker could be killed"
    curves = [[row["valid_loss"] for row in run["history"]] for run in (whole, broken)]
    finish(
        "worker_failure",
        broken["wall_sec"] / whole["wall_sec"],
        config=args.config,
        killed_after_sec=round(killer.killed, 1),
        fault_free={"wall_sec": whole["wall_sec"], "valid_loss": curves[0]},
        killed={"wall_sec": broken["wall_sec"], "valid_loss": curves[1]},
        largest_loss_difference=max(abs(a - b) for a, b in zip(*curves, strict=True)),
        largest_weight_difference=max(
            float(np.abs(weight - broken["weights"][name]).max()) for name, weight in whole["weights"].items()
        ),
        largest_weight=max(float(np.abs(weight).max()) for weight in whole["weights"].values()),
    )


class Killer(threading.Thread):
    """kill -9 of one training worker, `wait` seconds after the first checkpoint of the run."""

    def __init__(self, folder: Path, wait: float) -> None:
        super().__init__(daemon=True)
        self.folder, self.wait = folder, wait
        self.killed: float | None = None  # seconds after the first checkpoint
        self.stop = threading.Event()
        self.start()

    def run(self) -> None:
        """Wait, and kill."""
        first = None
        while not self.stop.wait(0.1):
            if first is None and list(self.folder.glob("training/*/checkpoint_*")):
                first = time.monotonic()
            if first is None or time.monotonic() - first < self.wait:
                continue
            for entry in Path("/proc").iterdir():
                with contextlib.suppress(OSError, ValueError):
                    if entry.name.isdigit() and "RayTrainWorker" in (entry / "cmdline").read_text():
                        os.kill(int(entry.name), signal.SIGKILL)
                        self.killed = time.monotonic() - first
                        return


def train_teacher(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run of the stage; its curve, its weights, and the time from its first checkpoint to its end."""
    settings = [*args.set, f"output={folder}", "train_teacher.num_workers=2"]
    command = [sys.executable, "pipelines/train_teacher.py", "--config", args.config]
    command += [part for setting in settings for part in ("--set", setting)]
    start, first = time.monotonic(), None
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None:
        time.sleep(0.2)
        if first is None and list(folder.glob("training/*/checkpoint_*")):
            first = time.monotonic()
    assert process.returncode == 0, f"train_teacher exited with {process.returncode}"
    (model,) = [path.parent for path in folder.glob("models/teacher/*/head.safetensors") if "warm" not in str(path)]
    return {
        "wall_sec": round(time.monotonic() - start, 1),
        "training_sec": time.monotonic() - (first or start),
        "history": json.loads((model / "history.json").read_text()),
        "weights": load_file(model / "lm" / "model.safetensors") | load_file(model / "head.safetensors"),
    }


if __name__ == "__main__":
    main()
