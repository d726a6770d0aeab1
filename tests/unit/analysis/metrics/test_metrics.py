"""The protocol of the ranking metrics, against sums done by hand."""

from math import log2

import numpy as np
import pyarrow as pa
import pytest

from ray_app.analysis.metrics.bootstrap_result import GRADE_AS_RATING
from ray_app.analysis.metrics.protocol import (
    NDCG,
    PRECISION,
    SystemScores,
    judged_at,
    random_ranking,
    ranking_metrics,
    validate_judgments,
)
from ray_app.base.errors import UserError

CHORUS = {1: 0, 3: 1, 4: 2, 5: 3}


def metrics_of(table, system, ratings=CHORUS, relevant_grade=4):
    judged, order = validate_judgments(table, ratings)
    return ranking_metrics(judged, system.take(order), relevant_grade)


@pytest.mark.parametrize(
    ("metric", "rows", "scores", "values"),
    [
        # gains 7, 3, 0 shown in the order 3, 0, 7
        (NDCG, ["qa5", "qb4", "qc1"], [1, 3, 2], [(3 + 7 / log2(4)) / (7 + 3 / log2(3))]),
        (NDCG, [f"q{chr(97 + i)}{5 if i == 20 else 1}" for i in range(21)], -np.arange(21), [0.0]),
        # trec_eval rounds scores to 32 bits: without our ranks it would call these a tie.
        (NDCG, ["qa1", "qb5"], [0.5, 0.5 + 1e-12], [1.0]),
        (NDCG, ["qa1", "ra5"], [1, 1], [0.0, 1.0]),
        (NDCG, ["qa5", "ra5"], [np.nan, 1], [0.0, 1.0]),
        (NDCG, ["qa5", "qb1"], [np.nan, 1], [0.0]),
        (PRECISION, ["qa5", "qb4", "qc3"], [3, 2, 1], [2 / 8]),
        (PRECISION, [f"q{chr(97 + i)}{5 if i == 8 else 1}" for i in range(9)], -np.arange(9), [0.0]),
    ],
    ids=["exponential gain", "20 places", "scores nearer than 32 bits", "nothing relevant", "no score", "a missing score",
         "of 8 places even if fewer are judged", "8 places"],
)  # fmt: skip
def test_by_hand(make_pairs, make_system, metric, rows, scores, values):
    """rows: query, pin and grade, a letter each."""
    found = metrics_of(make_pairs([(q, p, int(g)) for q, p, g in rows]), make_system(scores))
    assert found[metric].tolist() == pytest.approx(values)


def test_what_counts_as_relevant_can_be_set(make_pairs, make_system):
    found = metrics_of(make_pairs([("q", "a", 3)]), make_system([1]), relevant_grade=3)
    assert found[PRECISION].tolist() == [1 / 8]


@pytest.mark.parametrize("flip", [False, True])
def test_ties_are_broken_by_pin_id_whatever_the_row_order(make_pairs, make_system, flip):
    """Descending, as in trec_eval: whoever runs trec_eval on the same scores gets the same figures."""
    rows = [("q", "a", 1), ("q", "b", 5)]
    found = metrics_of(make_pairs(rows[::-1] if flip else rows), make_system([0.5, 0.5]))
    assert found[NDCG].tolist() == [1.0]


def test_the_same_query_in_two_locales_is_two_queries(make_pairs, make_system):
    table = make_pairs([("q", "a", 5), ("q", "b", 5)]).set_column(1, "locale", [["de-DE", "en-US"]])
    assert len(metrics_of(table, make_system([1, 1]))[NDCG]) == 2


def test_a_gain_rating_column_overrides_the_mapping(make_pairs, make_system):
    table = make_pairs([("q", "a", 5), ("q", "b", 1)], gain_rating=[0, None])
    assert metrics_of(table, make_system([1, 2]))[NDCG].tolist() == [0.0]


def test_expected_value_of_a_random_order_equals_the_mean_over_all_orders(make_pairs, make_system):
    table = make_pairs([("q", "a", 5), ("q", "b", 3), ("q", "c", 1)])
    orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]]
    mean = np.mean([metrics_of(table, make_system(o))[NDCG][0] for o in orders])
    assert random_ranking(validate_judgments(table, CHORUS)[0], 4)[NDCG] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("rows", "ratings", "told"),
    [
        ([], CHORUS, r"evaluate\.human_labels"),
        ([("q", "a", 5), ("q", "a", 1)], CHORUS, "judged twice"),
        ([("q", "a", 0)], GRADE_AS_RATING, r"1\.\.5"),
        ([("q", "a", 2)], CHORUS, "grade 2"),  # ir_measures would take the grade itself as its gain, silently
    ],
    ids=["no pairs", "a pair twice", "a grade off the scale", "a grade without a rating"],
)
def test_judgements_that_cannot_be_used_are_refused(make_pairs, rows, ratings, told):
    with pytest.raises(UserError, match=told):
        validate_judgments(make_pairs(rows), ratings)


def test_logits_in_place_of_probs_are_refused():
    with pytest.raises(ValueError, match="logits"):
        SystemScores(score=np.array([1.0]), probs=np.array([[0.0, 1.0, 2.0, 3.0, 4.0]]))


def judged_share(table, system, cutoff, ranking=None):
    judged, order = validate_judgments(table, CHORUS)
    return judged_at(judged, system.take(order), cutoff, ranking).tolist()


def ranking_of(rows):
    query, pin, score = zip(*rows, strict=True)
    return pa.table(
        {"query": query, "locale": ["en-US"] * len(rows), "pin_id": pin, "score": pa.array(score, pa.float64())}
    )


def test_judged_at_is_1_where_only_judged_pairs_are_ranked(make_pairs, make_system):
    """Also for a query with fewer judged pins than places."""
    pairs = make_pairs([("q", "a", 5), ("r", "a", 5), ("r", "b", 1), ("r", "c", 1)])
    assert judged_share(pairs, make_system([1, 1, 2, 3]), 2) == [1.0, 1.0]


def test_a_missing_score_leaves_a_place_empty(make_pairs, make_system):
    pairs = make_pairs([("q", "a", 5), ("q", "b", 1), ("q", "c", 1), ("q", "d", 1)])
    assert judged_share(pairs, make_system([1, np.nan, np.nan, np.nan]), 2) == [0.5]
    assert judged_share(pairs, make_system([1, np.nan, np.nan, np.nan]), 8) == [0.25]


def test_unjudged_pins_in_the_first_places_are_counted(make_pairs, make_system):
    """A ranking of pins that nobody judged would look as well known as any other."""
    pairs = make_pairs([("q", "a", 5), ("q", "b", 1)])
    shown = ranking_of(
        [("q", "x", 4), ("q", "a", 3), ("q", "y", 2), ("q", "b", 1), ("q", "z", None), ("other", "a", 9)]
    )
    scores = make_system([3, 1])
    assert [judged_share(pairs, scores, k, shown)[0] for k in (1, 2, 4, 8)] == [0.0, 0.5, 0.5, 0.5]


def test_ties_of_a_ranking_are_broken_by_pin_id(make_pairs, make_system):
    pairs = make_pairs([("q", "b", 5), ("q", "d", 1)])
    assert judged_share(pairs, make_system([1, 1]), 1, ranking_of([("q", "b", 1), ("q", "c", 1)])) == [0.0]


def test_a_query_that_a_system_does_not_answer_has_nothing_judged(make_pairs, make_system):
    pairs = make_pairs([("q", "a", 5), ("r", "a", 5)])
    assert judged_share(pairs, make_system([1, 1]), 8, ranking_of([("q", "a", 1)])) == [1.0, 0.0]
