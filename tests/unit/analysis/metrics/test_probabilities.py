"""Intervals of calibration figures, which say how far a predicted probability can be believed."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.analysis.metrics import grading
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.probabilities import calibration_by_locale, calibration_curve, detail_intervals
from ray_app.analysis.metrics.protocol import validate_judgments

FAST = EvaluationSettings(samples=300)


@pytest.fixture
def judged(synthetic):
    pairs, systems = synthetic
    found, order = validate_judgments(pairs, FAST.rating_of_grade)
    return found, {name: scores.take(order) for name, scores in systems.items()}


def test_figures_are_those_of_the_plain_functions_and_undefined_without_probabilities(judged):
    pairs, systems = judged
    found, student = detail_intervals(pairs, systems["student"], FAST), systems["student"]
    bare = detail_intervals(pairs, systems["bm25"], FAST)
    assert bare == dict.fromkeys(("ece_3", "log_loss", "kappa"), (None,) * 3)
    assert found["ece_3"].value == grading.reliability_curve(student.probs, pairs.grade, 3).error
    assert found["kappa"].value == grading.linear_kappa(student.grades, pairs.grade)
    assert found["log_loss"].value == grading.log_loss(student.probs, pairs.grade)
    points, plain = (
        calibration_curve(pairs, student.probs, FAST),
        grading.reliability_curve(student.probs, pairs.grade, 3),
    )
    assert [p.observed.value for p in points] == pytest.approx(plain.observed.tolist())
    assert sum(p.num_pairs for p in points) == len(pairs.grade)


def test_intervals_hold_their_figures(judged):
    """Resampled ECE lies above the figure: without moving it back the interval would leave it out."""
    pairs, systems = judged
    for value, lo, hi in detail_intervals(pairs, systems["student"], FAST).values():
        assert lo < value < hi


def test_intervals_are_those_of_recomputed_resamples(judged):
    """Against drawing queries and computing kappa again."""
    pairs, systems = judged
    grades, rng = systems["student"].grades, np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(pairs.query_index == q) for q in rng.integers(0, 30, 30)])
        drawn.append(grading.linear_kappa(grades[rows], pairs.grade[rows]))
    found = detail_intervals(pairs, systems["student"], EvaluationSettings(samples=2000))["kappa"]
    assert [found.lo, found.hi] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_locales_have_their_own_ece_and_small_ones_none(synthetic):
    pairs, systems = synthetic
    locales = ["en-US"] * 200 + ["de-DE"] * 90 + ["fr-FR"] * 10
    judged, order = validate_judgments(pairs.set_column(1, "locale", pa.array(locales)), FAST.rating_of_grade)
    rows = calibration_by_locale(judged, {"student": systems["student"].take(order)}, FAST)
    assert [(row["locale"], row["num_pairs"]) for row in rows] == [("en-US", 200), ("de-DE", 90)]
    assert rows[0]["ece_3"] != rows[1]["ece_3"]
