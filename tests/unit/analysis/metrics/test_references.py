"""Every figure of the report against the library that people would check it with, and by hand where none has it."""

import ir_measures
import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, ndcg_score

from ray_app.analysis.metrics import grading
from ray_app.analysis.metrics.bootstrap import percentile_interval
from ray_app.analysis.metrics.bootstrap_result import GRADE_AS_RATING, EvaluationSettings, measure
from ray_app.analysis.metrics.protocol import NDCG, PRECISION, judge, random_ranking, ranking_ideal, ranking_metrics


@pytest.fixture
def random_case(make_pairs, make_system):
    """8 queries of 30 pins, and a system without ties.

    Returns the judged pairs, and the system in their order.
    """
    rng = np.random.default_rng(11)
    rows = [(f"q{query}", f"p{pin:02d}", int(rng.integers(1, 6))) for query in range(8) for pin in range(30)]
    probs = rng.dirichlet(np.ones(5), len(rows))
    judged, order = judge(make_pairs(rows), GRADE_AS_RATING)
    return judged, make_system(probs @ np.arange(1, 6), probs).take(order)


def test_ndcg_equals_that_of_scikit_learn(random_case):
    judged, system = random_case
    found = ranking_metrics(judged, system, relevant_grade=4)[NDCG]
    gains, scores = judged.gain.reshape(8, 30), system.score.reshape(8, 30)
    expected = [ndcg_score([g], [s], k=20) for g, s in zip(gains, scores, strict=True)]
    assert found.tolist() == pytest.approx(expected)


def test_precision_equals_that_of_ir_measures_on_the_raw_scores(random_case):
    judged, system = random_case
    pins = judged.table["pin_id"].to_pylist()
    qrels = [
        ir_measures.Qrel(str(q), p, int(g)) for q, p, g in zip(judged.query_index, pins, judged.grade, strict=True)
    ]
    run = [
        ir_measures.ScoredDoc(str(q), p, float(s))
        for q, p, s in zip(judged.query_index, pins, system.score, strict=True)
    ]
    expected = {int(m.query_id): m.value for m in ir_measures.iter_calc([ir_measures.P(rel=4) @ 8], qrels, run)}
    assert ranking_metrics(judged, system, relevant_grade=4)[PRECISION].tolist() == [expected[q] for q in range(8)]


def test_accuracy_equals_that_of_scikit_learn(random_case):
    judged, system = random_case
    found = measure(judged, {"s": system}, EvaluationSettings(samples=2)).points["s"]["accuracy"]
    assert found == pytest.approx(accuracy_score(judged.grade, system.grades))


def test_log_loss_equals_that_of_scikit_learn(random_case):
    judged, system = random_case
    expected = log_loss(judged.grade, system.probs, labels=range(1, 6))
    assert grading.log_loss(system.probs, judged.grade) == pytest.approx(expected)


def test_log_loss_by_hand():
    # The human grades had .5 and .25: (ln 2 + ln 4) / 2.
    probs = np.array([[0.5, 0.5, 0, 0, 0], [0.75, 0, 0, 0, 0.25]])
    assert grading.log_loss(probs, np.array([1, 5])) == pytest.approx(1.5 * np.log(2))


def test_calibration_curve_equals_that_of_scikit_learn(random_case):
    judged, system = random_case
    found = grading.calibrate(system.probs, judged.grade, at_least=3)
    chance = system.probs[:, 2:].sum(axis=1)
    observed, predicted = calibration_curve(judged.grade >= 3, chance, n_bins=10)
    np.testing.assert_allclose(found.observed, observed)
    np.testing.assert_allclose(found.predicted, predicted)


def test_confusion_equals_that_of_scikit_learn(random_case):
    judged, system = random_case
    expected = confusion_matrix(judged.grade, system.grades, labels=range(6))
    assert grading.confusion(system.grades, judged.grade).tolist() == expected[1:].tolist()


def test_kappa_by_hand():
    # Off by one in 1 of 3. By chance: (1, 2) in 2/3 * 2/3 and (2, 1) in 1/3 * 1/3, together 5/9: 1 - (1/3) / (5/9).
    kappa = grading.linear_kappa(np.array([1, 1, 2]), np.array([1, 2, 2]))
    assert kappa == pytest.approx(0.4)


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


def test_percentile_interval_by_hand():
    assert percentile_interval(50.0, np.arange(101.0), confidence=0.9) == (
        50.0,
        pytest.approx(5.0),
        pytest.approx(95.0),
    )


def test_ideal_of_a_query_by_hand(make_pairs):
    # Ratings 4 and 2 give gains 15 and 3, the better one first.
    judged, _ = judge(make_pairs([("q", "a", 3), ("q", "b", 5), ("r", "a", 1)]), GRADE_AS_RATING)
    assert ranking_ideal(judged).tolist() == pytest.approx([15 + 3 / np.log2(3), 0.0])


def test_precision_of_a_random_order_by_hand(make_pairs):
    # q: 10 pins of which 2 are relevant, so 8 * 0.2 of 8 places; r: one relevant pin alone in 8 places.
    rows = [("q", f"p{i}", 5 if i < 2 else 1) for i in range(10)] + [("r", "a", 5)]
    assert random_ranking(judge(make_pairs(rows), GRADE_AS_RATING)[0], 4)[PRECISION] == pytest.approx((0.2 + 1 / 8) / 2)
