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
    judge,
    judged_at,
    random_ranking,
    ranking_metrics,
)
from ray_app.base.errors import UserError

CHORUS = {1: 0, 3: 1, 4: 2, 5: 3}


def metrics_of(table, system, ratings=CHORUS, relevant_grade=4):
    judged, order = judge(table, ratings)
    return ranking_metrics(judged, system.take(order), relevant_grade)


def test_ndcg_has_exponential_gain(make_pairs, make_system):
    # gains 7, 3, 0 shown in the order 3, 0, 7
    found = metrics_of(make_pairs([("q", "a", 5), ("q", "b", 4), ("q", "c", 1)]), make_system([1, 3, 2]))
    expected = (3 + 7 / log2(4)) / (7 + 3 / log2(3))
    assert found[NDCG].tolist() == pytest.approx([expected])


def test_ndcg_stops_after_20_places(make_pairs, make_system):
    rows = [("q", f"p{i:02d}", 5 if i == 20 else 1) for i in range(21)]
    assert metrics_of(make_pairs(rows), make_system(-np.arange(21)))[NDCG].tolist() == [0.0]


def test_p_at_8_divides_by_8_even_if_fewer_are_judged(make_pairs, make_system):
    found = metrics_of(make_pairs([("q", "a", 5), ("q", "b", 4), ("q", "c", 3)]), make_system([3, 2, 1]))
    assert found[PRECISION].tolist() == [2 / 8]


def test_p_at_8_counts_only_the_top_8(make_pairs, make_system):
    rows = [("q", f"p{i}", 5 if i == 8 else 1) for i in range(9)]
    assert metrics_of(make_pairs(rows), make_system(-np.arange(9)))[PRECISION].tolist() == [0.0]


def test_what_counts_as_relevant_can_be_set(make_pairs, make_system):
    found = metrics_of(make_pairs([("q", "a", 3)]), make_system([1]), relevant_grade=3)
    assert found[PRECISION].tolist() == [1 / 8]


@pytest.mark.parametrize("flip", [False, True])
def test_ties_are_broken_by_pin_id_whatever_the_row_order(make_pairs, make_system, flip):
    """Descending, as in trec_eval: whoever runs trec_eval on the same scores gets the same figures."""
    rows = [("q", "a", 1), ("q", "b", 5)]
    found = metrics_of(make_pairs(rows[::-1] if flip else rows), make_system([0.5, 0.5]))
    assert found[NDCG].tolist() == [1.0]


def test_scores_closer_than_a_32_bit_float_keep_their_order(make_pairs, make_system):
    """trec_eval rounds scores to 32 bits: without our ranks it would call these a tie."""
    found = metrics_of(make_pairs([("q", "a", 1), ("q", "b", 5)]), make_system([0.5, 0.5 + 1e-12]))
    assert found[NDCG].tolist() == [1.0]


def test_a_query_without_relevant_pins_counts_as_zero(make_pairs, make_system):
    found = metrics_of(make_pairs([("empty", "a", 1), ("full", "a", 5)]), make_system([1, 1]))
    assert found[NDCG].tolist() == [0.0, 1.0]


def test_a_query_without_any_score_counts_as_zero(make_pairs, make_system):
    found = metrics_of(make_pairs([("q", "a", 5), ("r", "a", 5)]), make_system([np.nan, 1]))
    assert found[NDCG].tolist() == [0.0, 1.0]


def test_a_pin_without_a_score_brings_no_gain(make_pairs, make_system):
    found = metrics_of(make_pairs([("q", "a", 5), ("q", "b", 1)]), make_system([np.nan, 1]))
    assert found[NDCG].tolist() == [0.0]


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
    assert random_ranking(judge(table, CHORUS)[0], 4)[NDCG] == pytest.approx(mean)


def test_no_pairs_is_a_message_that_names_the_setting(make_pairs):
    with pytest.raises(UserError, match=r"evaluate\.human_labels"):
        judge(make_pairs([]), CHORUS)


def test_a_pair_judged_twice_is_refused(make_pairs):
    with pytest.raises(UserError, match="judged twice"):
        judge(make_pairs([("q", "a", 5), ("q", "a", 1)]), CHORUS)


def test_a_grade_off_the_scale_is_refused(make_pairs):
    with pytest.raises(UserError, match=r"1\.\.5"):
        judge(make_pairs([("q", "a", 0)]), GRADE_AS_RATING)


def test_a_grade_without_a_rating_is_refused(make_pairs):
    """ir_measures would take the grade itself as its gain, silently."""
    with pytest.raises(UserError, match="grade 2"):
        judge(make_pairs([("q", "a", 2)]), CHORUS)


def test_logits_in_place_of_probs_are_refused():
    with pytest.raises(ValueError, match="logits"):
        SystemScores(score=np.array([1.0]), probs=np.array([[0.0, 1.0, 2.0, 3.0, 4.0]]))


def judged_share(table, system, cutoff, ranking=None):
    judged, order = judge(table, CHORUS)
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
