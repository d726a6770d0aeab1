"""What a training's workers are told: all of them the same, and what the fingerprint says."""

import numpy as np
import pytest
import torch

from ray_app.base.config import DistillConfig, TeacherConfig
from ray_app.cluster import train as stage
from ray_app.cluster import train_worker
from ray_app.cluster.train import resolved
from ray_app.cluster.train_job import CalibrationPairs, TrainJob
from ray_app.models.bi_encoder import BiEncoder
from ray_app.models.head import FeatureScaler
from ray_app.training.examples import Examples
from ray_app.training.loop import fit
from ray_app.training.state import Worker

AUTO = {"dtype": "auto"}


@pytest.fixture
def gpus(monkeypatch):
    """Sets the number of GPUs of the cluster; the driver's CPU has no bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)

    def set_to(number):
        monkeypatch.setattr(stage, "total_gpus", lambda: number)

    return set_to


def dtypes(cfg):
    cfg = resolved(cfg)
    if isinstance(cfg, TeacherConfig):
        return [cfg.train.dtype, cfg.pretrain.train.dtype]
    return [cfg.train.dtype, cfg.feature_train.dtype]


@pytest.mark.parametrize("use_gpu", ["auto", True, False])
@pytest.mark.parametrize("num_gpus", [0, 1, 2])
def test_auto_is_what_the_training_workers_have(gpus, tiny_encoder, use_gpu, num_gpus):
    gpus(num_gpus)
    workers = {"use_gpu": use_gpu, "num_workers": 2, "base_model": tiny_encoder}
    train_teacher = TeacherConfig.model_validate(workers | {"train": AUTO, "pretrain": {"train": AUTO}})
    distill = DistillConfig.model_validate(workers | {"train": AUTO, "feature_train": AUTO})
    has = num_gpus == 2 if use_gpu == "auto" else use_gpu
    expected = ["bfloat16" if has else "float32"] * 2
    assert dtypes(train_teacher) == dtypes(distill) == expected
    fixed = TeacherConfig.model_validate(
        workers | {"train": {"dtype": expected[0]}, "pretrain": {"train": {"dtype": expected[0]}}}
    )
    assert resolved(train_teacher).recipe == fixed.recipe, "the fingerprint of auto is that of what it stands for"


def test_a_dtype_that_is_given_asks_no_cluster(monkeypatch, tiny_encoder):
    monkeypatch.setattr(stage, "total_gpus", lambda: pytest.fail("asked"))
    cfg = DistillConfig(base_model=tiny_encoder)
    assert resolved(cfg) == cfg


def test_workers_load_the_commit_that_the_driver_saw(monkeypatch):
    """A worker's machine without a copy would load what the branch is by then."""
    monkeypatch.setattr(stage, "pinned_revision", lambda source, revision: f"{source}@{revision}")
    assert resolved(TeacherConfig(base_model="m")).revision == "m@None"


def test_a_frozen_student_is_calibrated_on_texts_that_it_did_not_train_on(tiny_encoder):
    """Its language model's states are kept of the texts of its training; the raters' validation pairs are others."""
    cfg = DistillConfig(base_model=tiny_encoder, dim=8, train={"train_top_layers": 0, "epochs": 1})

    def examples(query, pin_text):
        return Examples(
            queries=[query] * 4, pin_texts=[pin_text] * 4, features=np.zeros((4, 2), np.float32),
            targets=np.eye(5, dtype=np.float32)[[0, 1, 2, 3]], weights=np.ones(4, np.float32), locales=["en-US"] * 4,
        )  # fmt: skip

    model = BiEncoder.from_base(cfg, FeatureScaler(np.zeros(2), np.ones(2)))
    train, others = examples("red", "red mug"), examples("blue", "blue cable")
    fit(model, train, train, cfg.train, 0, Worker())
    job = TrainJob(
        build=lambda: model, train=train, valid=train, cfg=cfg.train, model_folder="m",
        calibrate_on=CalibrationPairs(examples=others, fitted_to="human grades"),
    )  # fmt: skip
    assert '"fitted_to": "human grades"' in train_worker._describe(job, model, others, [])["calibration.json"]
