"""When the teacher is trained again: when anything that it learned from is another."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import side_world

from ray_app.base.columns import matrix_column
from ray_app.models import model_sources as sources
from ray_app.stages.corpus_statistics.stage import run as count_corpus
from ray_app.stages.train_teacher import stage
from ray_app.tables.manifest import read_output, require_output
from ray_app.tables.stage_run import StageRun


@pytest.fixture
def world(tmp_path, tiny_encoder):
    """A run up to `train_teacher`, with a copy of the zero-shot model that may be changed."""
    shutil.copytree(tiny_encoder, tmp_path / "zero_shot")
    cfg, store = side_world.build(
        tmp_path, labelled=("apple", "banana", "cherry"), train_teacher={"base_model": tiny_encoder},
        features={"zero_shot_model": str(tmp_path / "zero_shot")},
    )  # fmt: skip
    pin_texts = require_output(store, "enrich", "pin_texts")
    vectors = matrix_column(np.eye(4, 16, dtype=np.float32))
    run = StageRun("zero_shot", cfg, store, 1, settings=[], inputs=[pin_texts])
    ids = read_output(store, pin_texts)["pin_id"]
    run.write_table("zero_shot_pins", pa.table({"pin_id": ids, "title_embedding": vectors, "text_embedding": vectors}))
    run.finish({})
    count_corpus(cfg, store)
    return cfg, store, tmp_path / "zero_shot"


def fingerprint(cfg, store):
    sources.model_identity.cache_clear()
    training = stage._TeacherTraining.of(cfg, store)
    return stage.StageRun.of(training.stage, training.cfg, store).fingerprint


def test_other_bytes_of_the_zero_shot_model_are_another_teacher(world):
    """Its cosines are features: else the teacher would keep those of the old encoder, and label with the new one's."""
    cfg, store, folder = world
    before = fingerprint(cfg, store)
    assert fingerprint(cfg, store) == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert fingerprint(cfg, store) != before


def test_other_features_or_vectors_of_another_dtype_are_another_teacher(world, monkeypatch):
    cfg, store, _ = world
    found = []
    for dtype in ("float32", "bfloat16"):
        found.append(
            fingerprint(cfg.model_copy(update={"embed": cfg.embed.model_copy(update={"dtype": dtype})}), store)
        )
    monkeypatch.setattr(stage, "FEATURES_VERSION", -1)
    found.append(fingerprint(cfg, store))
    assert len(set(found)) == 3


def test_settings_of_batches_and_workers_train_nothing_again(world):
    cfg, store, _ = world
    more = {"embed": cfg.embed.model_copy(update={"batch_size": 7, "num_actors": 3}),
            "train_teacher": cfg.train_teacher.model_copy(update={"num_workers": 2})}  # fmt: skip
    assert fingerprint(cfg.model_copy(update=more), store) == fingerprint(cfg, store)
