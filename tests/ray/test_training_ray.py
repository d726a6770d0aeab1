"""Training on Ray: the same steps on any number of workers, from files or memory, sharded or not, and through a kill."""

import contextlib
import json
import os
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from ray_app.base.config import TeacherConfig, WorkersConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.cluster.train import train_on_ray
from ray_app.cluster.train_job import TrainJob
from ray_app.models.head import FeatureScaler
from ray_app.stages.train_teacher.stage import build_teacher
from ray_app.training.examples import Examples

WORDS = ["red", "mug", "green", "lamp", "desk", "cup"]


def examples(num: int, seed: int) -> Examples:
    """Grade 5 where the query is a word of the pin."""
    rng = np.random.default_rng(seed)
    pins = [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(num)]
    queries = [str(rng.choice(WORDS)) for _ in range(num)]
    grades = [4 if query in pin.split() else 0 for query, pin in zip(queries, pins, strict=True)]
    return Examples(
        queries=queries, pin_texts=pins, features=rng.normal(size=(num, 2)).astype(np.float32),
        targets=np.eye(5, dtype=np.float32)[grades] * 0.9 + 0.02, weights=np.ones(num, np.float32),
    )  # fmt: skip


def train(folder: Path, base: Path, name: str = "run", rows: int = 300, **settings: object) -> SimpleNamespace:
    """A small teacher; its curve and its weights."""
    loop = {
        "epochs": 3, "batch_size": 16, "learning_rate": 1e-3, "early_stopping_patience": 9, "checkpoint_interval_sec": 0.5, "train_embeddings": True,
    } | settings  # fmt: skip
    workers = {name: loop.pop(name) for name in set(loop) & set(WorkersConfig.model_fields)}
    tree = {"base_model": str(base), "pooling": "mean", "dropout": 0.0, "train": loop}
    train_teacher, store = TeacherConfig.model_validate(tree | workers), Storage(str(folder))
    job = TrainJob(
        build=partial(build_teacher, train_teacher, FeatureScaler(np.zeros(2), np.ones(2)), store, None), train=examples(rows, 0),
        valid=examples(50, 1), cfg=train_teacher.train, model_folder=f"models/teacher/{name}",
    )  # fmt: skip
    train_on_ray(name, [job], 5, store, train_teacher)
    model = Path(folder) / job.model_folder
    weights = load_file(model / "lm" / "model.safetensors") | load_file(model / "head.safetensors")
    return SimpleNamespace(store=store, history=store.read_json(f"{job.model_folder}/history.json"), weights=weights)


def assert_same_run(one: SimpleNamespace, other: SimpleNamespace) -> None:
    assert len(one.history) == len(other.history) == 3
    for mine, theirs in zip(one.history, other.history, strict=True):
        for figure in ("epoch", "train_loss", "valid_loss"):
            assert mine[figure] == pytest.approx(theirs[figure], rel=1e-3)
    for name, weight in one.weights.items():
        torch.testing.assert_close(other.weights[name], weight, atol=2e-3, rtol=1e-2, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, ray_cluster, tiny_encoder):
    """One worker, examples in memory."""
    return train(tmp_path_factory.mktemp("alone"), tiny_encoder)


def test_it_learns(alone):
    assert alone.history[-1]["valid_loss"] < alone.history[0]["valid_loss"] - 0.01


def test_two_workers_and_small_parts_take_the_steps_of_one(alone, tmp_path, tiny_encoder):
    assert_same_run(alone, train(tmp_path, tiny_encoder, num_workers=2, micro_batch_tokens=64))


def test_a_sharded_model_takes_the_same_steps(alone, tmp_path, tiny_encoder):
    """FSDP2: its checkpoints are whole again, and so is the model that it leaves."""
    assert_same_run(alone, train(tmp_path, tiny_encoder, num_workers=2, strategy="fsdp", micro_batch_tokens=64))


class KillOne(threading.Thread):
    """kill -9 of one training worker of this test's cluster, once a checkpoint of the run is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.killed = folder, None
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and self.killed is None:
            time.sleep(0.02)
            if len(list(self.folder.glob("training/*/checkpoint_*"))) < 2:
                continue
            # Of this session's cluster: another one on the machine may be training, too.
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any("RayTrainWorker" in part for part in process.cmdline()):
                        process.kill()
                        self.killed = process.pid
                        return


STREAMED = {"shuffle_window_rows": 100, "num_workers": 2}
OFTEN = {"checkpoint_interval_sec": 0.05}  # else a fast machine is done before there is a second checkpoint


@pytest.fixture(scope="module")
def streamed(tmp_path_factory, ray_cluster, tiny_encoder):
    """Two workers, each with its stream of Ray Data, over windows of 100 rows."""
    return train(tmp_path_factory.mktemp("streamed"), tiny_encoder, rows=400, **STREAMED)


def test_a_stream_learns(streamed):
    assert streamed.history[-1]["valid_loss"] < streamed.history[0]["valid_loss"] - 0.01


def test_kill_9_of_a_worker_ends_with_the_same_curve_and_weights(streamed, tmp_path, tiny_encoder):
    """Issue 5: with the data in the same order. The streams of both workers begin again in the middle of an epoch."""
    killer = KillOne(tmp_path)
    again = train(tmp_path, tiny_encoder, rows=400, **STREAMED, **OFTEN)
    assert killer.killed
    assert_same_run(streamed, again)


@pytest.mark.parametrize("left", [b"", None], ids=["emptied", "never written"])
def test_a_kill_while_ray_lists_its_checkpoints_costs_none_of_them(left, alone, tmp_path, ray_cluster, tiny_encoder):
    """Ray Train writes that list in place. Without a rescue, a run killed in that moment could never be resumed."""
    killer = KillOne(tmp_path)
    with contextlib.suppress(UserError):
        train(tmp_path, tiny_encoder, max_failures=0, **OFTEN)
    assert killer.killed
    folder = tmp_path / "training" / "run"
    listed = folder / "checkpoint_manager_snapshot.json"
    listed.unlink(missing_ok=True)
    if left is not None:
        listed.write_bytes(left)
    whole, *_ = sorted(folder.glob("checkpoint_*/state.json"))
    for later in sorted(folder.glob("checkpoint_*/state.pt"))[1:]:
        os.truncate(later, 100)  # the kill came while these were on their way
    state = json.loads(whole.read_text())
    assert state["total_steps"] > 0
    shown = json.dumps(state | {"padded_tokens": 10 * state["padded_tokens"]})
    whole.write_text(shown)  # leaves a trace in the curve of the run that goes on from it
    about = json.loads((whole.parent / "job.json").read_text())
    about["bytes"]["state.json"] = len(shown)
    (whole.parent / "job.json").write_text(json.dumps(about))
    resumed = train(tmp_path, tiny_encoder)
    assert_same_run(alone, resumed)
    assert resumed.history[-1]["padding_share"] > alone.history[-1]["padding_share"] + 0.1


def test_a_worker_that_dies_too_often_is_one_line(tmp_path, ray_cluster, tiny_encoder):
    killer = KillOne(tmp_path)
    with pytest.raises(UserError, match=r"training run failed: .*; fix that and run again, it resumes") as caught:
        train(tmp_path, tiny_encoder, max_failures=0, epochs=300)
    assert killer.killed
    assert "\n" not in str(caught.value)
