"""The transformers engine: neither batches nor neighbours nor what pairs share may change a label."""

import numpy as np
import pytest
import torch
from label_world import expected, pairs, save_teacher
from tiny_models import save_tiny_causal

from ray_app.base.storage import Storage
from ray_app.models.cross_encoder import CrossEncoder
from ray_app.stages.label.teacher import Teacher
from ray_app.stages.label.vllm import shares_prefixes
from ray_app.tables.local_folder import local_folder

ODD = ["\x00", "\u202egum", "👩\u200d🚀", "\u0301\u0301", "\ufffd\U0010ffff"]
UNSCORABLE = [("", "red mug"), (" \u3000", "red mug"), ("cup", ""), ("cup " * 47, "red mug")]
ROWS = pairs(
    6, 5, first=[*UNSCORABLE, *((odd, odd) for odd in ODD), ("cup " * 44, "red mug " * 9), ("cup", "red " * 100)]
)  # the last two fill all of the 48 tokens


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def teacher(request, tmp_path_factory, tiny_decoder, tiny_encoder):
    store = Storage(str(tmp_path_factory.mktemp(request.param)))
    base, pooling = (tiny_decoder, "last") if request.param == "decoder" else (tiny_encoder, "mean")
    return store, save_teacher(store, base, pooling)


@pytest.fixture(scope="module")
def plain(teacher):
    """One pair at a time: nothing to share, nothing to pad."""
    return expected(*teacher, ROWS, batch_size=1, prefix_sharing=False)


def test_errors_are_these_rows_and_no_others(plain):
    probs, errors = plain
    codes = [error.split(":")[0] for error in errors[: len(UNSCORABLE)]]
    assert codes == ["empty_query", "empty_query", "empty_pin", "query_too_long"]
    assert errors[len(UNSCORABLE) :] == [None] * (len(errors) - len(UNSCORABLE))
    assert np.isnan(probs[: len(UNSCORABLE)]).all()
    assert np.allclose(probs[len(UNSCORABLE) :].sum(1), 1, atol=1e-6)


def test_the_teacher_tells_rows_apart(plain):
    """Else all that follows would hold for a constant."""
    assert np.nanstd(plain[0], axis=0).max() > 0.01


@pytest.mark.parametrize("prefix_sharing", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_and_shared_pins_change_no_label(teacher, plain, batch_size, prefix_sharing):
    probs, errors = expected(*teacher, ROWS, batch_size=batch_size, prefix_sharing=prefix_sharing)
    assert errors == plain[1]
    np.testing.assert_allclose(probs, plain[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_of_pairs_changes_no_label(teacher, plain, seed):
    """A label that slipped to a neighbour would look like any other."""
    order = np.random.default_rng(seed).permutation(len(ROWS))
    probs, errors = expected(*teacher, ROWS.take(order), batch_size=7)
    assert errors == [plain[1][i] for i in order]
    np.testing.assert_allclose(probs, plain[0][order], rtol=0, atol=1e-5)


def test_features_count(teacher, plain):
    """A head that never saw them would still answer."""
    without = ROWS.set_column(3, "features", pairs(6, 5, seed=9)["features"].slice(0, 1).take([0] * len(ROWS)))
    probs, _ = expected(*teacher, without)
    assert np.nanmax(np.abs(probs - plain[0])) > 0.01


# --- decoders that cannot be packed ---

OTHERS = {
    "hybrid": ("GraniteMoeHybridConfig", {
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2,
        "mamba_d_state": 16, "num_local_experts": 0, "shared_intermediate_size": 32,
    }),
    "sinks": ("GptOssConfig", {
        "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 128,
        "layer_types": ["full_attention", "full_attention"],
    }),
    "window": ("MistralConfig", {"sliding_window": 16}),
    "bidirectional": ("Gemma3TextConfig", {"use_bidirectional_attention": True}),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_a_decoder_that_is_not_plain_labels_a_pair_as_it_does_alone(kind, tmp_path, caplog):
    """Packed, what stands beside a pair would leak into its label, and nothing would show."""
    family, values = OTHERS[kind]
    base = save_tiny_causal(tmp_path / "base", family, **values)
    store = Storage(str(tmp_path / "run"))
    output = save_teacher(store, str(base))
    teacher = Teacher(store, output, "float32", 64)
    plain = _as_trained(store, output)
    assert np.std(plain, axis=0).max() > 0.01
    np.testing.assert_allclose(_probs(teacher), plain, rtol=0, atol=1e-4)
    assert not teacher.packs
    assert sum("padded batches" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("family", ["LlamaConfig", "Qwen3Config"])
def test_plain_decoders_are_packed(family, tmp_path, caplog):
    base = save_tiny_causal(tmp_path / "base", family)
    store = Storage(str(tmp_path / "run"))
    output = save_teacher(store, str(base))
    teacher = Teacher(store, output, "float32", 64)
    assert teacher.packs
    assert not caplog.records
    np.testing.assert_allclose(_probs(teacher), _as_trained(store, output), rtol=0, atol=1e-4)


def _inputs():
    rows = pairs(4, 4)
    return rows["query"].to_pylist(), rows["pin_text"].to_pylist(), np.array(rows["features"].to_pylist(), np.float32)


def _probs(teacher):
    return teacher.score(*_inputs()).probs


def _as_trained(store, output):
    """One pair at a time through the model that training and calibration run."""
    model = CrossEncoder.from_pretrained(local_folder(store, output))
    rows = []
    with torch.inference_mode():
        for query, pin_text, features in zip(*_inputs(), strict=True):
            rows.append(model(model.prepare([query], [pin_text], features[None])).softmax(-1).numpy())
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("family", "values", "pooling", "shares"),
    [
        ("LlamaConfig", {}, "last", True),
        *((*other, "last", False) for other in OTHERS.values()),
    ],
)
def test_vllm_keeps_a_prefix_cache_of_plain_decoders_only(family, values, pooling, shares, tmp_path):
    """vllm would keep one of a bidirectional model too if it is told to, with no more than a warning."""
    store = Storage(str(tmp_path / "run"))
    output = save_teacher(store, str(save_tiny_causal(tmp_path / "base", family, **values)), pooling)
    assert shares_prefixes(local_folder(store, output, weights=False)) is shares
