"""The transformers engine: neither batches nor neighbours nor what pairs share may change a label."""

import numpy as np
import pytest
from label_world import expected, pairs, save_teacher

from ray_app.storage import Storage

ODD = ["\x00", "\u202egum", "👩\u200d🚀", "\u0301\u0301", "\ufffd\U0010ffff"]
POISON = [("", "red mug"), (" \u3000", "red mug"), ("cup", ""), ("cup " * 47, "red mug")]
ROWS = pairs(
    6, 5, first=[*POISON, *((odd, odd) for odd in ODD), ("cup " * 44, "red mug " * 9), ("cup", "red " * 100)]
)  # the last two fill all of the 48 tokens


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def teacher(request, tmp_path_factory, tiny_decoder, tiny_encoder):
    store = Storage(str(tmp_path_factory.mktemp(request.param)))
    base, pooling = (tiny_decoder, "last") if request.param == "decoder" else (tiny_encoder, "mean")
    return store, save_teacher(store, base, pooling)


@pytest.fixture(scope="module")
def plain(teacher):
    """One pair at a time: nothing to share, nothing to pad."""
    return expected(*teacher, ROWS, batch_size=1, share_prefix=False)


def test_errors_are_these_rows_and_no_others(plain):
    probs, errors = plain
    codes = [error.split(":")[0] for error in errors[: len(POISON)]]
    assert codes == ["empty_query", "empty_query", "empty_pin", "query_too_long"]
    assert errors[len(POISON) :] == [None] * (len(errors) - len(POISON))
    assert np.isnan(probs[: len(POISON)]).all()
    assert np.allclose(probs[len(POISON) :].sum(1), 1, atol=1e-6)


def test_the_teacher_tells_rows_apart(plain):
    """Else all that follows would hold for a constant."""
    assert np.nanstd(plain[0], axis=0).max() > 0.01


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_and_shared_pins_change_no_label(teacher, plain, batch_size, share_prefix):
    probs, errors = expected(*teacher, ROWS, batch_size=batch_size, share_prefix=share_prefix)
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
