"""Words that claim a difference must not come from looking often enough."""

import numpy as np
import pytest

from ray_app.analysis.metrics.corrections import bootstrap_p, enough_samples, holm


def test_holm_of_a_hand_computed_case():
    # sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, each at least the one before: .04 .06 .06 .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_an_adjusted_p_is_never_below_the_raw_one_nor_above_1_and_keeps_their_order():
    raw = np.random.default_rng(0).random(50) ** 3
    adjusted = np.array(holm(raw.tolist()))
    assert (adjusted >= raw).all() and (adjusted <= 1.0).all()
    assert (np.diff(adjusted[np.argsort(raw)]) >= 0).all()


def test_undefined_comparisons_do_not_make_the_others_stricter():
    assert holm([None, 0.02, None, 0.03]) == [None, 0.04, None, 0.04]


def test_of_equal_systems_few_families_give_a_false_alarm():
    """Without a correction 1 - .95^20 = 64% of families of 20 would."""
    rng = np.random.default_rng(2)
    alarms = sum(min(p for p in holm(rng.random(20).tolist()) if p is not None) < 0.05 for _ in range(400))
    assert alarms / 400 < 0.1


@pytest.mark.parametrize(
    ("samples", "p"),
    [
        ([0.1, 0.2, 0.3, -0.1], 0.8),  # one of four is on the other side, and the data count as one more: 2 * 2 / 5
        ([0.5] * 999, 2 / 1000),  # never zero
        ([0.0] * 100, 1.0),  # a system against itself
        ([np.nan, 1.0], 1.0),  # undefined resamples are left out
        ([np.nan], None),
    ],
)
def test_p_value_by_hand_which_has_no_sign(samples, p):
    assert bootstrap_p(np.array(samples)) == bootstrap_p(-np.array(samples)) == p


def test_enough_resamples_let_the_strictest_step_pass():
    """With fewer, no difference could ever be called one."""
    samples = enough_samples(40, confidence_level=0.95)
    best = holm([bootstrap_p(np.ones(samples))] + [1.0] * 39)[0]
    assert best < 0.05
