"""nDCG and P of any ranking, ties and queries with nothing to find included, against ir_measures (trec_eval)."""

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.analysis.measurement.ranking_metrics import Metric, judge_by_grades, measure_ranking
from ray_app.analysis.measurement.rankings import read_ranking
from ray_app.analysis.metrics.bootstrap_result import GRADE_AS_RATING
from ray_app.analysis.metrics.evaluation import EvaluationSettings, evaluate_systems
from ray_app.analysis.metrics.protocol import NDCG, PRECISION, SystemScores, ranking_metrics, validate_judgments

# Few scores: ties are what goes wrong. All are exact in 32 bits, which is what trec_eval keeps. Most grades are 1.
PAIRS = st.tuples(st.sampled_from([1, 1, 1, 2, 3, 4, 5]), st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0]))
QUERIES = st.lists(st.lists(PAIRS, min_size=1, max_size=26), min_size=1, max_size=6)
PINS = [f"p{number}" for number in range(26)]  # as text, p10 is before p2


def by_ir_measures(queries):
    """(nDCG@20, P@8), each a list by query; ir_measures gets raw scores and breaks ties itself."""
    run = {str(q): {PINS[i]: score for i, (_, score) in enumerate(rows)} for q, rows in enumerate(queries)}
    out = []
    for measure, value in ((ir_measures.nDCG @ 20, lambda g: 2 ** (g - 1) - 1), (ir_measures.P(rel=4) @ 8, int)):
        qrels = {str(q): {PINS[i]: value(grade) for i, (grade, _) in enumerate(rows)} for q, rows in enumerate(queries)}
        found = {int(m.query_id): m.value for m in ir_measures.iter_calc([measure], qrels, run)}
        out.append([found[q] for q in range(len(queries))])
    return out


def judged_table(queries):
    rows = [(f"q{q}", "en-US", PINS[i], g) for q, pairs in enumerate(queries) for i, (g, _) in enumerate(pairs)]
    return pa.table(list(zip(*rows, strict=True)), names=["query", "locale", "pin_id", "grade"])


def system(queries):
    return SystemScores(score=np.array([score for rows in queries for _, score in rows]))


@given(QUERIES)
def test_evaluate_measures_as_ir_measures(queries):
    judged, order = validate_judgments(judged_table(queries), GRADE_AS_RATING)
    found = ranking_metrics(judged, system(queries).take(order), relevant_grade=4)
    ndcg, precision = by_ir_measures(queries)
    assert found[NDCG].tolist() == pytest.approx(ndcg)
    assert found[PRECISION].tolist() == pytest.approx(precision)


@given(QUERIES)
def test_the_mean_ndcg_is_that_of_the_queries_with_something_to_find(queries):
    """The figure of a test set must not be mostly its share of queries for which the catalogue has nothing."""
    settings = EvaluationSettings(samples=1, slice_columns=())
    row = evaluate_systems(judged_table(queries), {"s": system(queries)}, settings).rows()[0]
    fertile = [v for v, rows in zip(by_ir_measures(queries)[0], queries, strict=True) if any(g > 1 for g, _ in rows)]
    assert row[NDCG] == (pytest.approx(np.mean(fertile), abs=1e-6) if fertile else None)


@given(QUERIES)
def test_measurement_of_a_run_file_counts_every_query_as_trec_eval_does(tmp_path_factory, queries):
    path = tmp_path_factory.mktemp("run") / "r.trec"
    lines = (f"q{q} Q0 {PINS[i]} 0 {score} us\n" for q, rows in enumerate(queries) for i, (_, score) in enumerate(rows))
    path.write_text("".join(lines))
    ranking = read_ranking(str(path), "--control", "en-US")
    keys = [(f"q{q}", "en-US") for q in range(len(queries))]
    judgments = judge_by_grades(judged_table(queries), GRADE_AS_RATING, 4)
    for metric, wanted in zip((Metric(kind="ndcg", k=20), Metric(kind="p", k=8)), by_ir_measures(queries), strict=True):
        assert measure_ranking(metric, ranking, judgments, keys).tolist() == pytest.approx(wanted)
