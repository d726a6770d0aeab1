"""A teacher trained over 4 bits labels in full precision: what is measured of it must be measured there.

Four bits need a GPU; here a coarse rounding of the weights stands for them.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from minimal import make_examples

from ray_app.base.config import TeacherConfig, TrainConfig
from ray_app.base.storage import Storage
from ray_app.cluster import train_worker as stage
from ray_app.cluster.train_job import CalibrationPairs, ExampleFiles, TrainJob
from ray_app.models import model_sources as sources
from ray_app.models.cross_encoder import CrossEncoder
from ray_app.models.head import FeatureScaler
from ray_app.training.loop import predict
from ray_app.training.quantized import labelling_form

CFG = TrainConfig(epochs=1, batch_size=2)
EXAMPLES = make_examples(
    ["red cup", "usb hub", "laptop", "green mug"], ["red mug", "usb cable", "shoe", "mug"], np.zeros((4, 0), np.float32),
    [5, 4, 1, 3], locales=["en-US"] * 4,
)  # fmt: skip


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_4_bits(path: str, config: object, where: dict) -> object:
        from transformers import AutoModel

        model = AutoModel.from_pretrained(path, config=config, dtype=torch.float32, **where)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_((weight * 20).round() / 20)
        return model

    monkeypatch.setattr(sources, "_in_4_bits", in_4_bits)


def build(source: str, quantize: str | None) -> CrossEncoder:
    torch.manual_seed(1)
    cfg = TeacherConfig(base_model=source, pooling="last", max_tokens=32, lora_rank=2, quantize=quantize, train=CFG)
    model = CrossEncoder.from_base(cfg, FeatureScaler(np.zeros(0), np.ones(0)))
    with torch.no_grad():
        model.head.head[-1].weight.mul_(10)  # so that another state shows
    return model


@pytest.mark.usefixtures("rounded")
def test_what_is_measured_is_the_model_that_labels(tiny_decoder: str, tmp_path: Path) -> None:
    model = build(tiny_decoder, "4bit")
    form, texts = labelling_form(model, EXAMPLES, CFG)
    model.save_pretrained(tmp_path)
    labels = predict(CrossEncoder.from_pretrained(tmp_path), EXAMPLES, CFG)
    np.testing.assert_allclose(predict(form, EXAMPLES, CFG), labels, atol=1e-5)
    apart = np.abs(predict(model, EXAMPLES, CFG) - labels)
    assert apart.max() > 1e-3, "else this would hold for the trained model too"
    figures = json.loads(texts["quantization.json"])
    assert figures["max_abs_difference"] == pytest.approx(apart.max(), abs=1e-5)
    assert figures["valid_loss_4bit"] != figures["valid_loss_merged"]


def test_other_models_label_as_they_are(tiny_decoder: str) -> None:
    model = build(tiny_decoder, None)
    assert labelling_form(model, EXAMPLES, CFG) == (model, {})


@pytest.mark.usefixtures("rounded")
def test_a_training_over_4_bits_calibrates_the_model_that_labels(tiny_decoder, tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(stage, "fit_calibration", lambda probs, *_, **__: seen.append(probs))
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(stage.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(stage.ray.train, "get_checkpoint", lambda: None)
    store, none, file = Storage(str(tmp_path)), EXAMPLES.rows(np.arange(0)), "train.parquet"
    job = TrainJob(
        build=lambda: build(tiny_decoder, "4bit"), train=none, valid=none, cfg=CFG, model_folder="models/teacher/x",
        calibrate_on=CalibrationPairs(examples=none, fitted_to="human grades"),
    )  # fmt: skip
    store.write_table(file, EXAMPLES.to_table())
    where = ExampleFiles(train=[file], train_rows=[4], train_weight=4.0, valid=[file], calibrate_on=[file])
    stage._train_job(
        job, where, {"name": "train_teacher-x", "seed": 0, "store": store, "rescued": None}, torch.device("cpu")
    )
    saved = CrossEncoder.from_pretrained(tmp_path / "models/teacher/x")
    np.testing.assert_allclose(seen[0], predict(saved, EXAMPLES, CFG), atol=1e-5)
    assert store.exists("models/teacher/x/quantization.json")
