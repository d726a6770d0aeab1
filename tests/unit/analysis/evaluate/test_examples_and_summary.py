"""What the report says in words, and which pairs it shows."""

import numpy as np
import pytest

from ray_app.analysis.evaluate.report.examples import example_queries, query_changes, worst_disagreements
from ray_app.analysis.evaluate.report.summary import standings, summarize
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.evaluation import evaluate_systems

FAST = EvaluationSettings(samples=200)


@pytest.fixture
def good_and_bad(make_pairs, make_system, make_probs):
    """Query `good` is ordered rightly by the student, `bad` wrongly; `none` has nothing to find. bm25: the reverse."""
    queries = ("good", "bad", "none")
    pairs = make_pairs([(q, p, g) for q in queries for p, g in (("a", 1 if q == "none" else 5), ("b", 1))])
    student = make_system([5, 1, 1, 5, 2, 1], make_probs([5, 1, 1, 5, 2, 1]))
    return evaluate_systems(pairs, {"bm25": make_system([1, 2, 2, 1, 1, 2]), "student": student}, FAST)


def test_examples_run_from_the_best_query_to_the_worst_in_the_systems_own_order(good_and_bad):
    found = example_queries(good_and_bad, "student", {})
    assert [(e.query, [p.pin_id for p in e.pairs]) for e in found] == [("good", ["a", "b"]), ("bad", ["b", "a"])]


def test_examples_of_only_barren_queries_are_still_shown(make_pairs, make_system):
    found = evaluate_systems(make_pairs([("q", "a", 1)]), {"student": make_system([1])}, FAST)
    assert [e.query for e in example_queries(found, "student", {})] == ["q"]


def test_worst_disagreement_comes_first(good_and_bad):
    first = worst_disagreements(good_and_bad, "student", {"a": "Title A"})[0]
    assert (first.query, first.grade, first.title) == ("bad", 5, "Title A")


def test_one_bad_query_cannot_fill_the_list(synthetic):
    found = worst_disagreements(evaluate_systems(*synthetic, FAST), "student", {}, per_query=1)
    assert len({p.query for p in found}) == len(found)


def test_query_changes_leave_out_what_did_not_change(good_and_bad):
    gained, lost = query_changes(good_and_bad, "student", "bm25")
    assert ([q for q, _ in gained], [q for q, _ in lost]) == (["good"], ["bad"])


def test_a_clear_difference_is_called_more_than_chance(synthetic):
    text = " ".join(summarize(evaluate_systems(*synthetic, FAST)))
    assert "the student is" in text and "above BM25 in AUROC 3+" in text and "significant" in text


def test_a_difference_that_may_be_chance_is_called_so(good_and_bad):
    assert "not significant" in " ".join(summarize(good_and_bad))


def test_the_best_system_is_marked_and_a_clearly_worse_one_is_not_called_tied(synthetic):
    found = standings(evaluate_systems(*synthetic, FAST))
    assert found["teacher"]["auroc_3"] == "best" and "auroc_3" not in found["bm25"]


def test_examples_of_a_slice_come_from_that_slice(good_and_bad):
    within = np.array([q == "none" for q in good_and_bad.pairs.table["query"].to_pylist()])
    assert {p.query for p in worst_disagreements(good_and_bad, "student", {}, within=within)} == {"none"}


def test_a_system_of_thresholds_has_examples_too(make_pairs, make_system):
    scores = make_system([0.9, 0.1], thresholds=np.array([0.5] * 4))
    found = evaluate_systems(make_pairs([("q", "a", 1), ("q", "b", 1)]), {"student": scores}, FAST)
    assert next(p.pin_id for p in worst_disagreements(found, "student", {})) == "a"
