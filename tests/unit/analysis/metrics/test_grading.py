"""Accuracy of systems that only have a score, and calibration."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from ray_app.analysis.metrics import grading


@pytest.mark.parametrize(
    ("scores", "grades", "asked", "found"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [0.0, 1.5, 1.49, 4.5, 9.0], [1, 2, 1, 5, 5]),
        ([0, 1], [1, 5], [-9.0, 0.4, 0.6, 9.0], [1, 1, 5, 5]),
        ([1, np.nan, 2], [1, 5, 5], [1.4, 1.6], [1, 5]),
        ([1, np.nextafter(1, 2)], [1, 5], [1, np.nextafter(1, 2)], [1, 5]),
    ],
    ids=[
        "cut in the middle",
        "a grade that never occurs gets no range",
        "a pair without a score",
        "neighbouring floats",
    ],
)
def test_scores_are_cut_between_the_grades(scores, grades, asked, found):
    thresholds = grading.fit_grade_thresholds(np.array(scores, float), np.array(grades))
    assert grading.scores_to_grades(np.array(asked, float), thresholds).tolist() == found


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cuts_are_more_accurate(seed):
    rng = np.random.default_rng(seed)
    scores, grades = rng.integers(0, 8, 30).astype(float), rng.integers(1, 6, 30)
    fitted = grading.scores_to_grades(scores, grading.fit_grade_thresholds(scores, grades))
    tried = itertools.combinations_with_replacement(np.arange(-0.5, 9.0), 4)
    best = max((grading.scores_to_grades(scores, np.array(t)) == grades).sum() for t in tried)
    assert (fitted == grades).sum() == best


def test_thresholds_on_nothing_are_refused():
    with pytest.raises(ValueError, match="nothing to fit"):
        grading.fit_grade_thresholds(np.array([np.nan]), np.array([1]))


def test_calibration_error_of_a_hand_computed_case():
    # bin 0.9: two pairs, one of them relevant; bin 0.1: two pairs, none relevant -> (0.4 + 0.1) / 2
    probs = np.array([[0.1, 0, 0, 0, 0.9]] * 2 + [[0.9, 0, 0, 0, 0.1]] * 2)
    found = grading.reliability_curve(probs, np.array([5, 1, 1, 1]), at_least=3)
    assert found.error == pytest.approx(0.25)


def test_log_loss_of_a_silent_system_is_that_of_a_uniform_guess():
    assert grading.log_loss(np.full((1, 5), np.nan), np.array([4])) == pytest.approx(np.log(5))


def test_kappa_equals_sklearn_and_is_undefined_when_both_sides_know_one_grade():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 100), rng.integers(1, 6, 100)
    expected = cohen_kappa_score(a, b, weights="linear", labels=range(6))
    assert grading.linear_kappa(a, b) == pytest.approx(expected)
    assert grading.linear_kappa(np.array([3, 3]), np.array([3, 3])) is None


def test_confusion_counts_missing_predictions_in_their_own_column():
    table = grading.confusion(np.array([0, 5, 5]), np.array([5, 5, 1]))
    assert (table[4, 0], table[4, 5], table[0, 5], table.sum()) == (1, 1, 1, 3)
