"""The table that people decide by."""

import json
import time

import numpy as np
import pyarrow as pa
import pytest

from ray_app.analysis.evaluate.render_text import render_table
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings, rating_of_grade
from ray_app.analysis.metrics.evaluation import evaluate_systems
from ray_app.analysis.metrics.protocol import METRICS

FAST = EvaluationSettings(samples=50)


def test_row_has_exactly_the_promised_keys(synthetic):
    (row, *_) = evaluate_systems(*synthetic, FAST).rows()
    assert METRICS == ("auroc_3", "auroc_4", "auroc_5", "accuracy", "ndcg@20", "p@8")
    figures = [f"{m}{end}" for m in METRICS for end in ("", "_lo", "_hi")]
    assert list(row) == ["system", *figures, "num_queries", "num_pairs"]


def test_auroc_is_pooled_over_queries(make_pairs, make_system):
    # Each query is ordered perfectly, the pool is not: positives 2, 4 and negatives 1, 3 win 3 of 4.
    pairs = make_pairs([("q", "a", 5), ("q", "b", 1), ("r", "a", 5), ("r", "b", 1)])
    row = evaluate_systems(pairs, {"s": make_system([2, 1, 4, 3])}, FAST).rows()[0]
    assert row["auroc_3"] == 0.75


def test_a_score_has_an_accuracy_with_thresholds_only(make_pairs, make_system):
    pairs = make_pairs([("q", "a", 5), ("q", "b", 1)])
    scores = make_system([0.9, 0.1], thresholds=np.array([0.5, 0.5, 0.5, 0.5]))
    cut, bare = evaluate_systems(pairs, {"s": scores, "bare": make_system([0.9, 0.1])}, FAST).rows()
    assert cut["accuracy"] == 1.0
    assert (bare["accuracy"], bare["accuracy_lo"], bare["accuracy_hi"]) == (None, None, None)


def test_an_absent_grade_makes_its_auroc_null_and_says_so(make_pairs, make_system):
    found = evaluate_systems(make_pairs([("q", "a", 4), ("r", "a", 1)]), {"s": make_system([2, 1])}, FAST)
    assert (found.rows()[0]["auroc_5"], "AUROC 5+ is undefined" in " ".join(found.notes)) == (None, True)


def test_an_unscored_pair_is_kept_and_counts_as_wrong(make_pairs, make_system, make_probs):
    pairs = make_pairs([("q", "a", 5), ("q", "b", 1), ("q", "c", 1)])
    probs = make_probs([5, 1, 1])
    probs[0] = np.nan
    found = evaluate_systems(pairs, {"s": make_system([np.nan, 2, 1], probs)}, FAST)
    row = found.rows()[0]
    assert (row["num_pairs"], row["auroc_3"], row["accuracy"], row["ndcg@20"]) == (3, 0.0, 0.666667, 0.0)
    assert found.details["s"]["num_missing"] == 1


def test_a_single_query_has_figures_and_no_intervals(make_pairs, make_system):
    """Zero width would read as certainty."""
    row = evaluate_systems(make_pairs([("q", "a", 5), ("q", "b", 1)]), {"s": make_system([2, 1])}, FAST).rows()[0]
    assert (row["ndcg@20"], row["ndcg@20_lo"], row["ndcg@20_hi"]) == (1.0, None, None)


def test_the_order_of_rows_changes_nothing_and_other_grades_change_the_hash_of_the_judged_pairs(synthetic):
    pairs, systems = synthetic
    order = np.random.default_rng(1).permutation(pairs.num_rows)
    made = evaluate_systems(pairs, systems, FAST).to_json()
    shuffled = evaluate_systems(pairs.take(pa.array(order)), {n: s.take(order) for n, s in systems.items()}, FAST)
    assert shuffled.to_json() == made
    other = pairs.set_column(3, "grade", pa.array([5] * pairs.num_rows, pa.int8()))
    hashes = [found["protocol"]["judged_pairs"] for found in (made, evaluate_systems(other, systems, FAST).to_json())]
    assert hashes[0] != hashes[1]


def test_another_seed_gives_other_intervals(synthetic):
    other = EvaluationSettings(samples=50, seed=18)
    assert evaluate_systems(*synthetic, FAST).rows() != evaluate_systems(*synthetic, other).rows()


def test_intervals_hold_the_figure(synthetic):
    rows = evaluate_systems(*synthetic, EvaluationSettings(samples=500)).rows()
    assert all(row[f"{m}_lo"] < row[m] < row[f"{m}_hi"] for row in rows for m in METRICS if row[m] is not None)


def test_differences_are_paired(make_pairs, make_system):
    """A system against itself differs by exactly nothing, however uncertain its figure is."""
    pairs = make_pairs([(f"q{i}", p, g) for i in range(6) for p, g in (("a", 5), ("b", 1))])
    scores = make_system(np.random.default_rng(0).random(12))
    found = evaluate_systems(pairs, {"x": scores, "y": scores}, FAST)
    assert found.difference("x", "y", "auroc_3") == (0.0, 0.0, 0.0)


def test_the_rival_is_the_strongest_baseline_of_each_metric(make_pairs, make_system):
    pairs = make_pairs([("q", "a", 5), ("q", "b", 1), ("r", "a", 5), ("r", "b", 1)])
    systems = {"bm25": make_system([1, 2, 3, 4]), "embedding_cosine": make_system([2, 1, 4, 3])}
    assert evaluate_systems(pairs, systems, FAST).best_baseline("ndcg@20") == "embedding_cosine"


def test_json_has_no_nan(make_pairs, make_system):
    pairs = make_pairs([("q", "a", 1), ("r", "a", 1)])
    found = evaluate_systems(pairs, {"s": make_system([np.nan, 1]), "teacher": make_system([1, 1])}, FAST)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["rows"][0]["auroc_3"] is None


def test_slices_by_locale_have_their_own_figures(make_pairs, make_system):
    pairs = make_pairs([("q", "a", 5), ("q", "b", 1), ("r", "a", 5), ("r", "b", 1)])
    pairs = pairs.set_column(1, "locale", [["de-DE", "de-DE", "en-US", "en-US"]])
    slices = evaluate_systems(pairs, {"s": make_system([2, 1, 1, 2])}, FAST).slices
    assert {s["value"]: s["auroc_3"] for s in slices} == {"de-DE": 1.0, "en-US": 0.0}
    one_locale = pairs.set_column(1, "locale", [["en-US"] * 4])
    assert evaluate_systems(one_locale, {"s": make_system([2, 1, 1, 2])}, FAST).slices == []


def test_scores_of_another_length_are_refused(make_pairs, make_system):
    with pytest.raises(ValueError, match="2 scores for 1"):
        evaluate_systems(make_pairs([("q", "a", 5)]), {"s": make_system([1, 2])}, FAST)


def test_chorus_ratings_are_the_inverse_of_its_grade_map():
    assert rating_of_grade({0: 1, 1: 3, 2: 4, 3: 5}) == {1: 0, 2: 0, 3: 1, 4: 2, 5: 3}


def test_a_thousand_samples_take_seconds(make_pairs, make_system):
    """Brief: below 10 s on one core for 5 systems, 1,100 pairs, 45 queries."""
    rng = np.random.default_rng(0)
    pairs = make_pairs([(f"q{i % 45}", str(i), grade) for i, grade in enumerate(rng.choice([1, 3, 4, 5], 1100))])
    systems = {f"s{i}": make_system(rng.random(1100)) for i in range(5)}
    started = time.process_time()
    evaluate_systems(pairs, systems, EvaluationSettings(samples=1000))
    assert time.process_time() - started < 10


def test_the_mean_ndcg_leaves_out_queries_where_nothing_is_relevant(make_pairs, make_system):
    """nDCG is 0/0 there for every order; counted as 0 it would hide differences between systems."""
    pairs = make_pairs([("empty", "a", 1), ("full", "a", 5)])
    evaluation = evaluate_systems(pairs, {"s": make_system([1, 1])}, FAST)
    assert evaluation.rows()[0]["ndcg@20"] == 1.0
    assert any("no relevant pin" in note for note in evaluation.notes)
    assert "nDCG@20 (of 1 query)" in render_table(evaluation)
    assert evaluation.to_json()["protocol"]["num_ndcg_queries"] == 1


def test_the_student_is_compared_with_the_teacher_and_p_corrected_for_all_comparisons_shown_each_once(synthetic):
    rows = evaluate_systems(*synthetic, FAST).differences()
    against = {row["against"] for row in rows if row["system"] == "student" and row["metric"] == "auroc_3"}
    assert against == {"bm25", "teacher"}
    assert all(row["p_adjusted"] >= row["p"] for row in rows if row["p"] is not None)
    best = min(rows, key=lambda row: (row["p"] is None, row["p"]))
    assert best["p_adjusted"] == pytest.approx(best["p"] * sum(row["p"] is not None for row in rows), abs=1e-5)
    assert len({(frozenset((row["system"], row["against"])), row["metric"]) for row in rows}) == len(rows)


def test_a_clear_difference_survives_the_correction_whatever_the_samples_asked_for(synthetic):
    """50 resamples cannot tell 18 comparisons from chance: more are drawn."""
    found = evaluate_systems(*synthetic, FAST)
    assert found.significant("student", "bm25", "auroc_3") and found.significant("bm25", "student", "auroc_3")
    assert found.num_samples > FAST.samples


def test_twenty_equal_systems_do_not_beat_each_other(make_pairs, make_system):
    """Uncorrected, of some hundred comparisons several would be called significant."""
    rng = np.random.default_rng(4)
    rows = [(f"q{q:02d}", f"p{p}", int(rng.integers(1, 6))) for q in range(40) for p in range(6)]
    systems = {f"s{i}": make_system(rng.random(len(rows))) for i in range(12)}
    settings = EvaluationSettings(samples=50, baselines=("s0", "s1"))
    differences = evaluate_systems(make_pairs(rows), systems, settings).differences()
    assert not any(row["significant"] for row in differences)


def test_one_query_has_no_p_values(make_pairs, make_system):
    systems = {"bm25": make_system([1, 2]), "student": make_system([2, 1])}
    found = evaluate_systems(make_pairs([("q", "a", 5), ("q", "b", 1)]), systems, FAST)
    assert {row["p_adjusted"] for row in found.differences()} == {None}
    assert not found.significant("student", "bm25", "ndcg@20")


def test_slices_of_parts_of_queries_have_no_ranking_metrics(make_pairs, make_system):
    """nDCG of the old half of a query's pins is easier than that of all, and says nothing of the query."""
    rows = [(q, p, g) for q in ("q", "r") for p, g in (("a", 5), ("b", 1), ("c", 5), ("d", 1))]
    pairs = make_pairs(rows, pin_age=["x", "x", "y", "y"] * 2, query_length=["1 word"] * 4 + ["2 words"] * 4)
    slices = evaluate_systems(pairs, {"s": make_system(range(8))}, FAST).slices
    by_column = {row["slice"]: row for row in slices}
    assert by_column["pin_age"]["ndcg@20"] is None and by_column["pin_age"]["auroc_3"] is not None
    assert by_column["query_length"]["ndcg@20"] is not None


def test_judged_at_k_is_computed_for_each_system(make_pairs, make_system):
    pairs = make_pairs([("q", "a", 5), ("q", "b", 1)])
    shown = pa.table({"query": ["q"] * 2, "locale": ["en-US"] * 2, "pin_id": ["x", "a"], "score": [2.0, 1.0]})
    systems = {"narrow": make_system([1, 2]), "wide": make_system([1, np.nan])}
    details = evaluate_systems(pairs, systems, FAST, rankings={"wide": shown}).details
    assert (details["narrow"]["judged@8"], details["wide"]["judged@8"]) == (1.0, 0.5)
