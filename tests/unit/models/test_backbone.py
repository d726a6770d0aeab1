"""What trains of a language model, and that what has trained is what is saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from minimal import make_examples
from tiny_models import save_tiny_decoder

from ray_app.base.config import TeacherConfig, TrainConfig
from ray_app.base.errors import UserError
from ray_app.models import model_sources as sources
from ray_app.models.backbone import backbone_groups
from ray_app.models.cross_encoder import CrossEncoder
from ray_app.models.head import FeatureScaler
from ray_app.models.model_sources import load_backbone, model_identity
from ray_app.training.loop import fit
from ray_app.training.state import Worker

QUERIES, PINS = ["red cup", "usb hub", "laptop", "green mug"], ["red mug", "black usb hub cable", "shoe", "mug"]
FEATURES = np.arange(8, dtype=np.float32).reshape(4, 2)
SCALER = FeatureScaler.fit(FEATURES)
EXAMPLES = make_examples(QUERIES, PINS, FEATURES, [5, 5, 1, 3])
NONE = EXAMPLES.rows(np.arange(0))


def teacher(source: str, **overrides: object) -> CrossEncoder:
    torch.manual_seed(1)
    cfg = {
        "base_model": source,
        "max_tokens": 32,
        "projection_dim": 8,
        "hidden_dim": 8,
        "dropout": 0.0,
        "pooling": "last",
    }
    return CrossEncoder.from_base(TeacherConfig.model_validate(cfg | overrides), SCALER)


def train(model: CrossEncoder, **overrides: object) -> None:
    cfg = {"epochs": 3, "batch_size": 2, "learning_rate": 1e-2, "early_stopping_patience": 9}
    fit(model, EXAMPLES, NONE, TrainConfig.model_validate(cfg | overrides), 0, Worker())


def probs(model: CrossEncoder) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(model.prepare(QUERIES, PINS, FEATURES)).softmax(-1)


def weights_of(model: CrossEncoder) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], model: CrossEncoder) -> set[str]:
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


def test_adapters_train_further_after_a_first_training(tiny_decoder: str, tmp_path: Path) -> None:
    """The second training is the one on human labels: frozen adapters would never see one, and nothing would show."""
    first = teacher(tiny_decoder, lora_rank=2)
    train(first)
    first.save_pretrained(tmp_path)
    second = CrossEncoder.from_pretrained(tmp_path, SCALER)
    before = weights_of(second)
    train(second)
    adapters = {name for name in before if "lora_" in name}
    assert adapters <= moved(before, second)
    assert {name for name in moved(before, second) if name.startswith("backbone.")} == adapters


def test_a_teacher_that_labels_has_frozen_adapters_with_the_trained_weights(tiny_decoder: str, tmp_path: Path) -> None:
    model = teacher(tiny_decoder, lora_rank=2)
    train(model)
    model.save_pretrained(tmp_path)
    saved = CrossEncoder.from_pretrained(tmp_path)
    assert not any(weight.requires_grad for name, weight in saved.named_parameters() if "lora_" in name)
    torch.testing.assert_close(probs(saved), probs(model))


@pytest.mark.parametrize("base", ["decoder", "encoder"])
def test_trained_embeddings_are_saved_with_the_adapters(
    base: str, tiny_decoder: str, tiny_encoder: str, tmp_path: Path
) -> None:
    """Else the model that labels is not the one that was validated."""
    source, pooling = (tiny_decoder, "last") if base == "decoder" else (tiny_encoder, "mean")
    model = teacher(source, pooling=pooling, lora_rank=2, train={"train_embeddings": True})
    before = weights_of(model)
    train(model, train_embeddings=True)
    assert any("embed" in name for name in moved(before, model))
    model.save_pretrained(tmp_path)
    saved = CrossEncoder.from_pretrained(tmp_path)
    torch.testing.assert_close(probs(saved), probs(model))
    saved.merge_adapters()
    torch.testing.assert_close(probs(saved), probs(model), atol=1e-5, rtol=1e-4)


def test_embeddings_that_only_the_first_training_moved_are_kept_by_the_second(
    tiny_decoder: str, tmp_path: Path
) -> None:
    pretrain = {"train": {"train_embeddings": True}}
    first = teacher(tiny_decoder, lora_rank=2, pretrain=pretrain)
    train(first, train_embeddings=True)
    first.save_pretrained(tmp_path / "first")
    second = CrossEncoder.from_pretrained(tmp_path / "first", SCALER)
    before = weights_of(second)
    train(second)
    assert not any("embed" in name for name in moved(before, second))
    second.save_pretrained(tmp_path / "second")
    torch.testing.assert_close(probs(CrossEncoder.from_pretrained(tmp_path / "second")), probs(second))


def test_the_second_training_is_over_as_few_bits_as_the_first(
    tiny_decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base model in full precision would not fit where the first training ran, and would be another model."""
    asked = []
    real = load_backbone

    def spy(source: str, revision: object = None, num_layers: object = None, quantize: object = None) -> object:
        asked.append(quantize)
        return real(source, revision, num_layers)

    monkeypatch.setattr("ray_app.models.cross_encoder.load_backbone", spy)
    monkeypatch.setattr("ray_app.models.backbone.load_backbone", spy)
    teacher(tiny_decoder, lora_rank=2, quantize="4bit").save_pretrained(tmp_path)
    CrossEncoder.from_pretrained(tmp_path, SCALER)
    CrossEncoder.from_pretrained(tmp_path)
    assert asked == ["4bit", "4bit", None]  # labels are made in full precision


def test_layers_that_should_train_but_cannot_are_refused(tiny_decoder: str) -> None:
    """Only the head would learn, with a normal loss curve."""
    backbone, _ = load_backbone(tiny_decoder)
    backbone.requires_grad_(False)
    with pytest.raises(UserError, match="train_top_layers"):
        backbone_groups(backbone, TrainConfig())
    assert backbone_groups(backbone, TrainConfig(train_top_layers=0)) == []


def test_adapters_train_over_a_frozen_base_in_bfloat16(tiny_decoder: str) -> None:
    model = teacher(tiny_decoder, lora_rank=2)
    before = weights_of(model)
    train(model, epochs=2, dtype="bfloat16", frozen_dtype="bfloat16")
    now = dict(model.backbone.named_parameters())
    changed = {name for name, w in now.items() if not torch.equal(w, before[f"backbone.{name}"].to(w.dtype))}
    assert changed and all("lora_" in name for name in changed)
    frozen = {weight.dtype for name, weight in model.backbone.named_parameters() if "lora_" not in name}
    assert frozen == {torch.bfloat16}


def test_embeddings_that_should_train_but_cannot_are_refused(tiny_decoder: str) -> None:
    """Adapters that were made without a copy of them: trained in place they would be lost."""
    model = teacher(tiny_decoder, lora_rank=2)
    with pytest.raises(UserError, match="train_embeddings"):
        train(model, train_embeddings=True)


# --- the weights under the adapters ---


def test_other_weights_under_the_adapters_are_another_teacher(tmp_path: Path) -> None:
    """The adapters' files are the same; a label by the one must not pass for a label by the other."""
    base = save_tiny_decoder(tmp_path / "base")
    sources.model_identity.cache_clear()
    model = teacher(str(base), lora_rank=2)
    model.save_pretrained(tmp_path / "teacher")
    assert CrossEncoder.from_pretrained(tmp_path / "teacher").base == model_identity(str(base))

    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    sources.model_identity.cache_clear()
    with pytest.raises(UserError, match=r"train_teacher\.base_model .* with the weights"):
        CrossEncoder.from_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"train_teacher\.base_model"):
        CrossEncoder.from_pretrained(tmp_path / "teacher", SCALER)
    other = teacher(str(base), lora_rank=2)
    other.load_state_dict(
        {name: weight for name, weight in model.state_dict().items() if "lora_" in name}, strict=False
    )
    other.save_pretrained(tmp_path / "other")
    assert (tmp_path / "teacher" / "model.json").read_text() != (tmp_path / "other" / "model.json").read_text()


def test_a_merged_teacher_needs_its_base_no_more(tmp_path: Path) -> None:
    base = save_tiny_decoder(tmp_path / "base")
    model = teacher(str(base), lora_rank=2)
    model.merge_adapters()
    model.save_pretrained(tmp_path / "merged")
    (base / "model.safetensors").unlink()
    sources.model_identity.cache_clear()
    torch.testing.assert_close(probs(CrossEncoder.from_pretrained(tmp_path / "merged")), probs(model))
