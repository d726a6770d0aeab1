"""Code that comes with a model is never run, whatever a config says and whoever is asked on the terminal."""

import json
import shutil

import pytest
from label_world import save_teacher

from ray_app.base.config import CaptionConfig, LabelConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.models.backbone import load_saved_backbone
from ray_app.models.model_sources import load_backbone, load_model_config, load_tokenizer
from ray_app.stages.caption.engine import load_processor
from ray_app.stages.label.vllm import _reader, shares_prefixes
from ray_app.tables.local_folder import local_folder

CODE = """
from pathlib import Path
Path({marker!r}).write_text("run")
from transformers import BertConfig as Config, BertModel as Model, PreTrainedTokenizerFast as Tokenizer
"""


@pytest.fixture
def with_code(tiny_encoder, tmp_path, monkeypatch):
    """(folder of a model whose files name code of its own, file that the code would write); the terminal says yes."""
    folder, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(tiny_encoder, folder)
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    model = {"auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}, "model_type": "own"}
    tokenizer = {"auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}, "tokenizer_class": "Own"}
    for name, changes in (("config.json", model), ("tokenizer_config.json", tokenizer)):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "code.Tokenizer"}}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    return folder, marker


@pytest.mark.parametrize(
    "load",
    [
        load_model_config, load_tokenizer, load_backbone,
        lambda folder: load_processor(CaptionConfig(model=folder)),
    ],
    ids=["config", "tokenizer", "backbone", "processor"],
)  # fmt: skip
def test_a_models_own_code_is_not_run(with_code, load):
    folder, marker = with_code
    with pytest.raises(UserError, match="cannot be loaded"):
        load(str(folder))
    assert not marker.exists()


def test_nor_is_that_of_a_teacher_from_the_runs_storage(with_code, tiny_decoder, tmp_path):
    """Whoever can write to the bucket is trusted with weights, not with code."""
    model, marker = with_code
    store = Storage(str(tmp_path / "run"))
    folder = local_folder(store, save_teacher(store, tiny_decoder))
    for name in ("config.json", "tokenizer_config.json", "code.py"):
        shutil.copy(model / name, folder / "lm" / name)
    for load in (shares_prefixes, _reader, lambda folder: load_saved_backbone(folder / "lm", "x", None)):
        with pytest.raises((UserError, ValueError)):
            load(folder)
    assert not marker.exists()


@pytest.mark.parametrize("section", [LabelConfig, CaptionConfig])
@pytest.mark.parametrize(
    "args",
    [
        {"trust_remote_code": True}, {"trust_remote_code": False}, {"trust-remote-code": "yes"},
        {"speculative_config": {"model": "x", "trust_remote_code": True}}, {"hf_overrides": [{"trust_remote_code": 1}]},
    ],
)  # fmt: skip
def test_engine_args_cannot_switch_it_on(section, args):
    with pytest.raises(ValueError, match="trust_remote_code is always false"):
        section(engine_args=args)


def test_other_engine_args_are_taken():
    args = {"max_num_seqs": 4, "speculative_config": {"model": "x"}}
    assert LabelConfig(engine_args=args).engine_args == args
