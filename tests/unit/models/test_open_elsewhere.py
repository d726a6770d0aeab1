"""A teacher's folder must open without this project: in plain transformers, and with adapters in plain peft."""

from pathlib import Path

import numpy as np
import pytest
import torch
from minimal import make_config

from ray_app.base.config import TeacherConfig
from ray_app.models.bi_encoder import BiEncoder
from ray_app.models.cross_encoder import CrossEncoder
from ray_app.models.head import FeatureScaler
from ray_app.models.model_card import model_card

TEXTS = ["red cup", "a small black usb hub cable for the laptop"]
KINDS = [("tiny_encoder", "cls"), ("tiny_encoder", "mean"), ("tiny_decoder", "last")]


def saved_teacher(source: str, pooling: str, folder: Path, lora_rank: int | None = None) -> CrossEncoder:
    """A teacher whose weights are no longer those of its base model."""
    torch.manual_seed(1)
    sizes = {"max_tokens": 32, "projection_dim": 8, "hidden_dim": 8}
    cfg = TeacherConfig(base_model=source, pooling=pooling, lora_rank=lora_rank, **sizes)
    teacher = CrossEncoder.from_base(cfg, FeatureScaler.fit(np.zeros((2, 0), np.float32))).eval()
    with torch.no_grad():
        for parameter in teacher.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    teacher.save_pretrained(folder)
    return teacher


def hidden(model, tokens) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**tokens).last_hidden_state


def tokens_of(folder: Path) -> dict:
    from transformers import AutoTokenizer

    batch = AutoTokenizer.from_pretrained(folder / "lm")(TEXTS, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize(("source", "pooling"), KINDS)
def test_a_teacher_opens_in_plain_transformers(request, tmp_path, source, pooling) -> None:
    from transformers import AutoModel

    teacher = saved_teacher(request.getfixturevalue(source), pooling, tmp_path)
    tokens = tokens_of(tmp_path)
    assert tokens["input_ids"].tolist() == teacher.tokenizer(TEXTS, padding=True)["input_ids"]
    opened = AutoModel.from_pretrained(tmp_path / "lm")
    torch.testing.assert_close(hidden(opened, tokens), hidden(teacher.backbone, tokens))


@pytest.mark.parametrize(("source", "pooling"), KINDS[1:])
def test_a_lora_teacher_opens_in_plain_peft(request, tmp_path, source, pooling) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    base = request.getfixturevalue(source)
    teacher = saved_teacher(base, pooling, tmp_path, lora_rank=2)
    tokens = tokens_of(tmp_path)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "lm")
    torch.testing.assert_close(hidden(model, tokens), hidden(teacher.backbone, tokens))
    assert not torch.allclose(hidden(model, tokens), hidden(AutoModel.from_pretrained(base), tokens), atol=1e-3)


@pytest.mark.parametrize(("kind", "rank"), [("teacher", None), ("teacher", 2), ("student", None)])
def test_the_code_of_the_card_runs(tmp_path, kind, rank) -> None:
    """With a base model inside a package, as the demo's."""
    source = "package:ray_app/demo/models/tower"
    if kind == "teacher":
        model = saved_teacher(source, "mean", tmp_path, rank)
        cfg = make_config(train_teacher=model.cfg.model_dump(), distill={"base_model": source})
    else:
        cfg = make_config(distill={"base_model": source, "shared_towers": False})
        model = BiEncoder.from_base(cfg.distill, FeatureScaler.fit(np.zeros((2, 0), np.float32)))
        model.save_pretrained(tmp_path)
    plain, ours = [
        block.split("```")[0].replace("folder", str(tmp_path))
        for block in model_card(kind, cfg, 1, 1, [], []).split("```python\n")[1:]
    ]
    names: dict = {}
    exec(plain, names)
    tokens = dict(names["tokenizer"](TEXTS, padding=True, return_tensors="pt"))
    tokens.pop("token_type_ids", None)
    torch.testing.assert_close(hidden(names["model"], tokens), hidden(model.backbone.eval(), tokens))
    exec(ours, names)
    torch.testing.assert_close(hidden(names["model"].backbone, tokens), hidden(model.backbone, tokens))
