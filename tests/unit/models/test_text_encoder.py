"""`dtype: auto` is resolved once: else results of two kinds would stand under one key."""

import pytest
import torch
from minimal import make_config

from ray_app.base.config import CaptionConfig, EmbedConfig, LabelConfig
from ray_app.base.storage import Storage
from ray_app.cluster.encoders import student_tower, zero_shot_tower
from ray_app.models.text_encoder import stage_dtype
from ray_app.stages.label import labeller as labeller_module
from ray_app.stages.label.labeller import Labeller
from ray_app.tables.manifest import Output


@pytest.fixture
def cpu(monkeypatch):
    """Sets whether this machine's CPU multiplies bfloat16."""

    def set_to(has_bf16):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})

    return set_to


@pytest.mark.parametrize("section", [CaptionConfig, EmbedConfig, LabelConfig])
def test_auto_is_what_the_workers_have(section, cpu):
    cpu(False)
    assert stage_dtype(section()) == "float32"
    assert stage_dtype(section(num_gpus=0.5)) == "bfloat16", "the driver's CPU says nothing of the workers' GPUs"
    assert stage_dtype(section(num_gpus=1, dtype="float32")) == "float32"
    cpu(True)
    assert stage_dtype(section()) == "bfloat16"


NOTHING = Output(name="model", path="m", files=[], rows=0, content_hash="x")


def recipes(tmp_path, encoder, dtype, num_gpus=0):
    sections = {name: {"dtype": dtype, "num_gpus": num_gpus} for name in ("embed", "label")}
    base = {"base_model": encoder}
    cfg = make_config(tmp_path, features={"zero_shot_model": encoder}, train_teacher=base, distill=base, **sections)
    store = Storage(cfg.output)
    return {
        "zero_shot": zero_shot_tower(cfg, store, "pin").recipe,
        "embed": student_tower(cfg, store, NOTHING, "pin").recipe,
        "label": Labeller(cfg=cfg, store=store, teacher=NOTHING).recipe,
    }


def test_auto_on_two_kinds_of_machine_is_two_recipes_and_each_is_that_of_its_dtype(tmp_path, tiny_encoder, cpu):
    cpu(False)
    plain = recipes(tmp_path, tiny_encoder, "auto")
    on_gpu = recipes(tmp_path, tiny_encoder, "auto", num_gpus=1)
    cpu(True)
    fast = recipes(tmp_path, tiny_encoder, "auto")
    assert plain == recipes(tmp_path, tiny_encoder, "float32")
    assert fast == on_gpu == recipes(tmp_path, tiny_encoder, "bfloat16")
    assert all(plain[name] != fast[name] for name in plain)


def test_workers_are_told_the_dtype_of_the_recipe(store, tiny_encoder, cpu, monkeypatch):
    """A node with another CPU would choose otherwise, and a label would hang on the node that its pair came to."""
    cpu(False)
    built = []
    monkeypatch.setattr(labeller_module, "actor_chain", lambda _udf, settings: built.append(settings["build"]))
    cfg = make_config(features={"zero_shot_model": tiny_encoder}, embed={"dtype": "auto"}, label={"dtype": "auto"})
    Labeller(cfg=cfg, store=store, teacher=NOTHING)._chain()
    built.append(zero_shot_tower(cfg, store, "pin").build)
    assert [("float32" in build.args, "auto" in build.args) for build in built] == [(True, False)] * 2
