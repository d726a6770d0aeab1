"""Gains and their intervals: what decides whether a treatment is shipped."""

import numpy as np
import pytest

from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.simulate.intervals import Resamples

SETTINGS = EvaluationSettings(samples=400, seed=1)


@pytest.fixture
def searches():
    """200 queries that differ much from each other, 10 searches each; the treatment adds a tenth to every one."""
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(200), 10)
    control = rng.gamma(1.0, size=200)[cluster] + 0.1 * rng.random(2000)
    return Resamples(cluster, SETTINGS), control, 1.1 * control


@pytest.fixture
def noisy(searches):
    resamples, control, treatment = searches
    return resamples, control, treatment + np.random.default_rng(1).normal(0, 0.3, len(treatment))


def test_the_gain_is_relative(searches):
    resamples, control, treatment = searches
    gain = resamples.gain(control, treatment)
    assert tuple(gain) == pytest.approx((0.1, 0.1, 0.1))  # every query gains as much: no resample can differ


def test_swapping_the_arms_flips_the_sign(noisy):
    resamples, control, treatment = noisy
    there, back = resamples.gain(control, treatment), resamples.gain(treatment, control)
    assert there.value > 0 > back.value
    assert (1 + there.value) * (1 + back.value) == pytest.approx(1.0)
    assert resamples.p_value(control, treatment) == resamples.p_value(treatment, control)


def test_equal_arms_gain_exactly_nothing(searches):
    resamples, control, _ = searches
    assert tuple(resamples.gain(control, control)) == (0.0, 0.0, 0.0)
    assert resamples.p_value(control, control) == 1.0


def test_paired_intervals_are_narrower_than_unpaired_ones(noisy):
    """What makes a query easy for both arms cancels out; that is why both arms meet the same people."""
    resamples, control, treatment = noisy
    paired, apart = resamples.gain(control, treatment), resamples.gain(control, treatment, paired=False)
    assert paired.value == apart.value
    assert paired.hi - paired.lo < (apart.hi - apart.lo) / 3


def test_searches_of_one_query_are_one_observation():
    """A thousand searches of one query, all better, show nothing about other queries."""
    control = np.zeros(1000)
    resamples = Resamples(np.zeros(1000, np.int64), SETTINGS)
    assert resamples.p_value(control, control + 1.0) == 1.0


def test_p_value_of_ten_queries_that_all_gain_is_two_in_a_thousand():
    """Of the 1,024 ways to give ten equal differences a sign, two are as extreme."""
    found = Resamples(np.arange(10), SETTINGS).p_value(np.zeros(10), np.full(10, 0.1))
    assert 0 < found == pytest.approx(2 / 1024, abs=0.0025)


def test_a_control_with_nothing_has_no_relative_gain():
    resamples = Resamples(np.arange(4), SETTINGS)
    assert tuple(resamples.gain(np.zeros(4), np.ones(4))) == (None, None, None)


def test_means_weigh_searches_not_queries():
    resamples = Resamples(np.array([0, 0, 0, 1]), SETTINGS)
    assert resamples.mean(np.array([1.0, 1.0, 1.0, 0.0])).value == 0.75
    assert resamples.num_queries == 2
