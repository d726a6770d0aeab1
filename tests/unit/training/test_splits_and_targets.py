"""Which queries test the models, and what raters' grades become."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.analysis.agreement.rater_counts import RaterCounts
from ray_app.base.columns import matrix_of
from ray_app.base.schemas import HUMAN_LABELS
from ray_app.base.text import query_group
from ray_app.training.splits import queries_of, split_queries
from ray_app.training.targets import combine_raters, query_weights

QUERIES = [f"query {i}" for i in range(50)] + ["laptop", "laptops", "smart watch", "smartwatch"]


def labels(*rows: tuple[str, str, str, int]) -> pa.Table:
    """query, pin_id, rater_id, grade."""
    plain = [dict(query=q, locale="en-US", pin_id=p, rater_id=r, grade=g) for q, p, r, g in rows]
    return pa.Table.from_pylist(plain, schema=HUMAN_LABELS)


def test_near_duplicate_queries_are_on_the_same_side() -> None:
    """Else a test query was seen in training, and the figures flatter."""
    for seed in range(20):
        splits = split_queries(QUERIES, 0.3, 0.3, seed)
        side = dict(zip(splits["query"].to_pylist(), splits["split"].to_pylist(), strict=True))
        assert side["laptop"] == side["laptops"]
        assert side["smart watch"] == side["smartwatch"]


def test_every_query_has_one_split_of_about_the_asked_size() -> None:
    splits = split_queries(QUERIES, 0.2, 0.1, seed=1)
    assert sorted(splits["query"].to_pylist()) == sorted(QUERIES)
    num_groups = len({query_group(query) for query in QUERIES})
    assert len({query_group(q) for q in queries_of(splits, "test")}) == round(0.2 * num_groups)


def test_the_split_does_not_follow_the_order_of_the_labels() -> None:
    assert split_queries(QUERIES, 0.2, 0.1, 1).equals(split_queries(QUERIES[::-1] * 2, 0.2, 0.1, 1))


def test_a_new_query_moves_at_most_one_group_across_each_border() -> None:
    before = split_queries(QUERIES, 0.2, 0.1, 1)
    after = split_queries([*QUERIES, "brand new"], 0.2, 0.1, 1)
    assert len(queries_of(before, "test") ^ queries_of(after, "test") - {"brand new"}) <= 2


def test_the_final_grade_is_the_truth_and_the_raters_shape_the_target() -> None:
    table = labels(("q", "a", "final", 5), ("q", "a", "r1", 5), ("q", "a", "r2", 3))
    row = combine_raters(table, smoothing=0.0).to_pylist()[0]
    assert (row["grade"], row["num_raters"]) == (5, 2)
    assert row["target"] == pytest.approx([0, 0, 0.25, 0, 0.75])


def test_without_a_final_grade_the_raters_are_the_target_and_their_mean_the_grade() -> None:
    table = labels(("q", "a", "r1", 1), ("q", "a", "r2", 4), ("q", "a", "r3", 5))
    row = combine_raters(table, 0.0).to_pylist()[0]
    assert row["grade"] == 3  # 10 / 3
    assert row["target"] == pytest.approx([1 / 3, 0, 0, 1 / 3, 1 / 3])


def test_two_raters_who_differ_pull_grades_neither_down_nor_up() -> None:
    """The lower grade as the truth makes a fifth of a grade of raters who err evenly, and a third of the relevant pins vanish."""
    rng, n = np.random.default_rng(0), 3_000
    true = rng.integers(2, 5, n)
    said = true[:, None] + rng.choice([-1, 0, 1], (n, 2), p=[0.2, 0.6, 0.2])
    table = labels(*(("q", f"p{i:04d}", rater, int(said[i, j])) for i in range(n) for j, rater in enumerate("ab")))
    combined = combine_raters(table, 0.0)
    assert combined["grade"].to_numpy().mean() == pytest.approx(said.mean(), abs=0.03)
    assert (matrix_of(combined["target"]) @ np.arange(1, 6)).mean() == pytest.approx(said.mean(), abs=1e-4)
    assert combine_raters(table.take(list(range(2 * n))[::-1]), 0.0).equals(combined)


def test_spellings_of_one_query_are_one_pair() -> None:
    """Else the pair trains with contradicting targets and triple weight, and evaluate refuses the labels."""
    table = labels(("Red Mug", "p", "anna", 5), ("red mug", "p", "ben", 1), ("red  mug ", "p", "cy", 5))
    (row,) = combine_raters(table, 0.0).to_pylist()
    assert (row["query"], row["num_raters"], row["grade"]) == ("red mug", 3, 4)
    assert row["target"] == pytest.approx([1 / 3, 0, 0, 0, 2 / 3])
    assert RaterCounts.of(table).given.tolist() == [[1, 0, 0, 0, 2]]
    again = labels(("Red Mug", "p", "anna", 5), ("red mug", "p", "anna", 1))
    assert RaterCounts.of(again).given.tolist() == [[0, 0, 0, 0, 1]]


def test_targets_sum_to_one_with_smoothing_and_no_labels_give_no_pairs() -> None:
    row = combine_raters(labels(("q", "a", "final", 1)), smoothing=0.1).to_pylist()[0]
    assert row["target"] == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])
    assert combine_raters(labels(), 0.05).num_rows == 0


def test_a_query_with_many_pairs_does_not_rule_the_others() -> None:
    weights = query_weights(np.array([0] * 100 + [1]), balance=1.0)
    assert weights[:100].sum() == pytest.approx(weights[100])
    assert weights.mean() == pytest.approx(1.0)
