"""A node dies while a teacher is trained by workers on several: do the others go on, and to the same model?

    python benchmarks/node_failure.py

Two Ray nodes on this machine (`ray.cluster_utils`), three training workers, `min_workers: 1`. Once a checkpoint is there
one node is killed with its worker; Ray Train restarts on what is left. The same training by one worker, fault-free, is
the reference. Ends with a JSON line: the two curves' last losses, and how long the training stood still.
"""

import logging
import os
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _bench import finish

from ray_app.base.config import TeacherConfig
from ray_app.base.storage import Storage
from ray_app.cluster.resources import local_environment
from ray_app.cluster.train import train_on_ray
from ray_app.cluster.train_job import TrainJob
from ray_app.models.head import FeatureScaler
from ray_app.stages.train_teacher.stage import build_teacher
from ray_app.training.examples import Examples

WORDS = ("red", "mug", "green", "lamp", "desk", "cup")
EPOCHS = 20


def main() -> None:
    os.environ |= {
        **local_environment(os.environ),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    }
    import ray
    from ray.cluster_utils import Cluster

    logging.disable(logging.INFO)
    memory: dict[str, Any] = {"object_store_memory": 200_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": True, **memory})
    node = cluster.add_node(num_cpus=1, **memory)
    ray.init(address=cluster.address, log_to_driver=False)
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "disturbed"
        times: dict[str, float] = {}
        killer = threading.Thread(target=_kill, args=(cluster, node, folder, times), daemon=True)
        killer.start()
        disturbed = _train(folder, num_workers=3, min_workers=1)
        alone = _train(Path(temp) / "alone", num_workers=1)
    ray.shutdown()
    cluster.shutdown()
    last = [run[-1]["valid_loss"] for run in (disturbed, alone)]
    finish(
        "node_failure", last[0] / last[1], valid_loss_disturbed=last[0], valid_loss_alone=last[1], epochs=EPOCHS,
        workers_before=3, workers_after=2, stood_still_sec=round(times["resumed"] - times["killed"], 1),
    )  # fmt: skip


def _train(folder: Path, **workers: Any) -> list[dict[str, float]]:
    loop = {
        "epochs": EPOCHS,
        "batch_size": 16,
        "learning_rate": 1e-4,
        "early_stopping_patience": EPOCHS,
        "checkpoint_interval_sec": 1.0,
    }
    train_teacher = TeacherConfig.model_validate(
        {"base_model": "package:ray_app/demo/models/teacher", "pooling": "last", "dropout": 0.0, "train": loop}
        | workers
    )
    store = Storage(str(folder))
    job = TrainJob(
        build=partial(build_teacher, train_teacher, FeatureScaler(np.zeros(2), np.ones(2)), store, None),
        train=_examples(300, 0), valid=_examples(50, 1), cfg=train_teacher.train, model_folder="models/teacher/run",
    )  # fmt: skip
    train_on_ray("run", [job], 5, store, train_teacher)
    history: list[dict[str, float]] = store.read_json(f"{job.model_folder}/history.json")
    return history


def _examples(num: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    pins = [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(num)]
    queries = [str(rng.choice(WORDS)) for _ in range(num)]
    grades = [4 if query in pin.split() else 0 for query, pin in zip(queries, pins, strict=True)]
    return Examples(
        queries=queries, pin_texts=pins, features=rng.normal(size=(num, 2)).astype(np.float32),
        targets=np.eye(5, dtype=np.float32)[grades] * 0.9 + 0.02, weights=np.ones(num, np.float32),
    )  # fmt: skip


def _kill(cluster: Any, node: Any, folder: Path, times: dict[str, float]) -> None:
    def checkpoints() -> set[Path]:
        return set(folder.glob("training/*/checkpoint_*"))

    while not checkpoints():
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    times["killed"] = time.monotonic()
    time.sleep(5)  # checkpoints that were on their way
    known = checkpoints()
    while not checkpoints() - known:
        time.sleep(0.05)
    times["resumed"] = time.monotonic()


if __name__ == "__main__":
    main()
