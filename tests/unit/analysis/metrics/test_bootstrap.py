"""Intervals that are wrong would make a change look like progress."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ray_app.analysis.metrics.bootstrap import QueryAuroc, percentile_interval, resample_queries, weighted_auroc


@pytest.mark.parametrize("levels", [3, 10, 100_000])
def test_auroc_equals_sklearn_with_weights_and_ties(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, 200).astype(float)
    positive = rng.random(200) < 0.3
    weights = rng.integers(0, 4, (5, 200)).astype(float)
    expected = [roc_auc_score(positive, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(weighted_auroc(scores, positive, weights), expected, atol=1e-12)


def by_queries(scores, positive, weights):
    """Of queries with one pair each."""
    return QueryAuroc(scores, positive, np.arange(len(scores)), len(scores))(weights)


@pytest.mark.parametrize("auroc", [weighted_auroc, by_queries])
def test_auroc_is_undefined_when_a_resample_lost_a_class_and_refuses_nan_whose_order_would_be_arbitrary(auroc):
    value = auroc(np.array([1.0, 2.0]), np.array([True, False]), np.array([[2.0, 0.0], [1.0, 1.0]]))
    assert np.isnan(value).tolist() == [True, False]
    with pytest.raises(ValueError, match="NaN"):
        auroc(np.array([np.nan, 1.0]), np.array([True, False]), np.ones((1, 2)))


def test_missing_scores_tie_with_each_other_below_all_others():
    scores = np.array([-np.inf, -np.inf, -1e300])
    assert weighted_auroc(scores, np.array([True, False, False]), np.ones((1, 3))).tolist() == [0.25]


@pytest.mark.parametrize(("num_queries", "num_pairs"), [(12, 300), (60, 70)], ids=["table", "rows"])
def test_auroc_by_queries_equals_auroc_by_rows(num_queries, num_pairs):
    """Two ways to one number, chosen by size: they must not differ in a digit, or figures would jump with the data."""
    rng = np.random.default_rng(num_queries)
    scores = np.where(rng.random(num_pairs) < 0.1, -np.inf, rng.integers(0, 9, num_pairs).astype(float))
    positive, query = rng.random(num_pairs) < 0.3, np.sort(rng.integers(0, num_queries, num_pairs))
    counts = np.concatenate(list(resample_queries(num_queries, 40, seed=1, row_cells=1)))
    found = QueryAuroc(scores, positive, query, num_queries)
    assert np.array_equal(found(counts), weighted_auroc(scores, positive, counts[:, query]))


def test_each_resample_draws_as_many_queries_as_there_are_whatever_the_memory_block():
    small, large = (np.concatenate(list(resample_queries(7, 50, seed=1, row_cells=cells))) for cells in (2_000_000, 1))
    assert np.array_equal(small, large)
    assert large.sum(axis=1).tolist() == [7.0] * 50


def test_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = rng.normal(0.0, 1.0, 40)
        counts = np.concatenate(list(resample_queries(40, 400, seed=trial, row_cells=1)))
        found = percentile_interval(values.mean(), counts @ values / 40, confidence_level=0.9)
        covered += found.lo <= 0.0 <= found.hi
    assert 0.82 <= covered / 200 <= 0.96


@pytest.mark.parametrize(
    ("value", "samples", "confidence_level", "interval"),
    [
        (50.0, np.arange(101.0), 0.9, (50.0, 5.0, 95.0)),
        (0.5, [0.4, np.nan, 0.6], 1.0 - 1e-9, (0.5, 0.4, 0.6)),
        (float("nan"), [0.4], 0.95, (None, None, None)),
    ],
    ids=["by hand", "an undefined resample", "an undefined figure"],
)
def test_percentile_interval(value, samples, confidence_level, interval):
    found = percentile_interval(value, np.array(samples), confidence_level)
    assert tuple(found) == pytest.approx(interval)
