"""nDCG and P of a query, by hand and by ir_measures."""

from math import log2

import ir_measures
import numpy as np
import pyarrow as pa
import pytest

from ray_app.analysis.measurement.ranking_metrics import (
    Metric,
    PinJudgment,
    judge_by_grades,
    judge_by_probs,
    judged_share,
    measure_query,
    measure_ranking,
)
from ray_app.analysis.measurement.rankings import Ranking
from ray_app.analysis.metrics.bootstrap_result import GRADE_AS_RATING

Q = ("q", "en-US")
NDCG_2, NDCG_3, P_2 = Metric(kind="ndcg", k=2), Metric(kind="ndcg", k=3), Metric(kind="p", k=2)


def graded(**grades):
    return {pin: PinJudgment(2.0 ** (grade - 1) - 1, float(grade >= 4)) for pin, grade in grades.items()}


@pytest.mark.parametrize(
    ("metric", "shown", "grades", "value"),
    [
        # Gains 15, 3, 0 (grades 5, 3, 1) are shown in the order 3, 15, 0.
        pytest.param(NDCG_3, "bac", {"a": 5, "b": 3, "c": 1}, (3 + 15 / log2(3)) / (15 + 3 / log2(3)), id="ndcg"),
        pytest.param(NDCG_2, "b", {"a": 5, "b": 3, "c": 4, "d": 2}, 3 / (15 + 7 / log2(3)), id="ideal of all judged"),
        pytest.param(NDCG_3, "xa", {"a": 5}, 1 / log2(3), id="x is not judged but keeps its place"),
        pytest.param(P_2, "xa", {"a": 5}, 0.5, id="x is not relevant"),
        pytest.param(Metric(kind="p", k=8), "a", {"a": 4}, 1 / 8, id="P is over k places even if fewer are shown"),
        pytest.param(P_2, "", {"a": 4}, 0.0, id="nothing shown"),
        pytest.param(NDCG_3, "ab", {"a": 1, "b": 1}, 0.0, id="nothing relevant"),
    ],
)
def test_a_query_by_hand(metric, shown, grades, value):
    assert measure_query(metric, list(shown), graded(**grades)) == pytest.approx(value)


def test_the_teacher_counts_by_its_expectations():
    # Half 5, half 1: gain 7.5, relevant 0.5. All 3: gain 3.
    probs = np.array([[0.5, 0, 0, 0, 0.5], [0, 0, 1, 0, 0], [np.nan] * 5])
    judged = judge_by_probs([Q, Q, Q], ["a", "b", "c"], probs, GRADE_AS_RATING, 4)
    assert judged == {Q: {"a": PinJudgment(7.5, 0.5), "b": PinJudgment(3.0, 0.0)}}
    assert measure_query(NDCG_3, ["b", "a"], judged[Q]) == pytest.approx((3 + 7.5 / log2(3)) / (7.5 + 3 / log2(3)))


def test_judged_at_k_counts_the_top_of_what_is_shown():
    ranking = Ranking(name="r", pins={Q: ["a", "x", "b", "y"], ("r", "en-US"): []})
    queries = [Q, ("r", "en-US"), ("absent", "en-US")]
    assert judged_share(3, ranking, {Q: graded(a=1, b=1)}, queries).tolist() == pytest.approx([2 / 3, 1, 1])


@pytest.mark.parametrize("metric", [Metric(kind=kind, k=k) for kind in ("ndcg", "p") for k in (1, 8, 20)])
def test_whole_grades_give_what_ir_measures_gives(metric):
    rng = np.random.default_rng(5)
    queries = [(f"q{i}", "en-US") for i in range(30)]
    rows, pins, qrels, run = [], {}, {}, {}
    for number, query in enumerate(queries):
        pool = [f"p{i}" for i in range(rng.integers(3, 40))]
        judged = [pin for pin in pool if rng.random() < 0.8] or pool[:1]
        grades = rng.integers(1, 6, len(judged)) if number else np.ones(len(judged), np.int64)  # one without relevant
        rows += [(*query, pin, int(grade)) for pin, grade in zip(judged, grades, strict=True)]
        pins[query] = rng.permutation(pool)[: rng.integers(1, 31)].tolist()
        # pytrec_eval has linear gain only, so the qrels of nDCG hold the exponential gain itself.
        qrels[str(number)] = {
            pin: int(2 ** (grade - 1) - 1 if metric.kind == "ndcg" else grade)
            for pin, grade in zip(judged, grades, strict=True)
        }
        run[str(number)] = {pin: float(-place) for place, pin in enumerate(pins[query])}
    table = pa.table(dict(zip(("query", "locale", "pin_id", "grade"), map(list, zip(*rows, strict=True)), strict=True)))
    judgments = judge_by_grades(table, GRADE_AS_RATING, 4)
    ours = measure_ranking(metric, Ranking(name="r", pins=pins), judgments, queries)
    measure = ir_measures.nDCG @ metric.k if metric.kind == "ndcg" else ir_measures.P(rel=4) @ metric.k
    theirs = {int(m.query_id): m.value for m in ir_measures.iter_calc([measure], qrels, run)}
    assert ours.tolist() == pytest.approx([theirs[i] for i in range(len(queries))])


def test_a_cutoff_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Metric(kind="p", k=0)
