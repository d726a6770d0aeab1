"""Figures of the report against the library that people would check them with, and by hand where none has them.

nDCG and precision: tests/properties/test_ranking_properties.py.
"""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from ray_app.analysis.metrics import grading
from ray_app.analysis.metrics.bootstrap_result import GRADE_AS_RATING, EvaluationSettings, measure
from ray_app.analysis.metrics.protocol import PRECISION, random_ranking, validate_judgments


@pytest.fixture
def random_case(make_pairs, make_system):
    """8 queries of 30 pins, and a system without ties.

    Returns the judged pairs, and the system in their order.
    """
    rng = np.random.default_rng(11)
    rows = [(f"q{query}", f"p{pin:02d}", int(rng.integers(1, 6))) for query in range(8) for pin in range(30)]
    probs = rng.dirichlet(np.ones(5), len(rows))
    judged, order = validate_judgments(make_pairs(rows), GRADE_AS_RATING)
    return judged, make_system(probs @ np.arange(1, 6), probs).take(order)


def test_accuracy_log_loss_calibration_curve_and_confusion_equal_those_of_scikit_learn(random_case):
    judged, system = random_case
    accuracy = measure(judged, {"s": system}, EvaluationSettings(samples=2)).points["s"]["accuracy"]
    assert accuracy == pytest.approx(accuracy_score(judged.grade, system.grades))
    expected_loss = log_loss(judged.grade, system.probs, labels=range(1, 6))
    assert grading.log_loss(system.probs, judged.grade) == pytest.approx(expected_loss)
    found = grading.reliability_curve(system.probs, judged.grade, at_least=3)
    observed, predicted = calibration_curve(judged.grade >= 3, system.probs[:, 2:].sum(axis=1), n_bins=10)
    np.testing.assert_allclose(found.observed, observed)
    np.testing.assert_allclose(found.predicted, predicted)
    expected = confusion_matrix(judged.grade, system.grades, labels=range(6))
    assert grading.confusion(system.grades, judged.grade).tolist() == expected[1:].tolist()


def test_kappas_of_several_tables_are_those_of_each(random_case):
    judged, system = random_case
    halves = [np.arange(len(judged.grade)) % 2 == i for i in (0, 1)]
    tables = np.zeros((3, 6, 6))
    for table, half in zip(tables, halves, strict=False):
        np.add.at(table, (system.grades[half], judged.grade[half]), 1.0)
    found = grading.linear_kappas(tables)
    assert found[:2].tolist() == pytest.approx(
        [grading.linear_kappa(system.grades[h], judged.grade[h]) for h in halves]
    )
    assert np.isnan(found[2])  # nothing was counted


def test_precision_of_a_random_order_by_hand(make_pairs):
    # q: 10 pins of which 2 are relevant, so 8 * 0.2 of 8 places; r: one relevant pin alone in 8 places.
    rows = [("q", f"p{i}", 5 if i < 2 else 1) for i in range(10)] + [("r", "a", 5)]
    assert random_ranking(validate_judgments(make_pairs(rows), GRADE_AS_RATING)[0], 4)[PRECISION] == pytest.approx(
        (0.2 + 1 / 8) / 2
    )
