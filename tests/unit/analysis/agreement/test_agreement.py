"""Agreement that is wrong would send people to relabel what is right, or trust what is not."""

import itertools
import json

import krippendorff
import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from ray_app.analysis.agreement.agreement_table import RATERS, AgreementTable, agreement_tables
from ray_app.analysis.agreement.coefficients import AGREEMENT_METRICS, coincidences_of, krippendorff_alphas
from ray_app.analysis.agreement.render_text import render_agreement
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.base.errors import UserError
from ray_app.base.schemas import HUMAN_LABELS

FAST = EvaluationSettings(samples=40)


def labels_of(rows, **columns):
    """rows: (query, pin_id, rater_id, grade), all en-US unless a query says `de:...`."""
    locale = ["de-DE" if query.startswith("de:") else "en-US" for query, *_ in rows]
    query, pin, rater, grade = zip(*rows, strict=True) if rows else ((), (), (), ())
    table = pa.table([query, locale, pin, rater, grade, [None] * len(rows)], schema=HUMAN_LABELS)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


class Grades:
    """A system of which only the grades are known."""

    def __init__(self, grades):
        self.grades = None if grades is None else np.array(grades)


def row_of(rows, subject=RATERS, grades=None):
    """Of the whole table; `grades`: what the system `subject` says of the pairs."""
    systems = {} if grades is None else {subject: Grades(grades)}
    return agreement_tables(labels_of(rows), systems, FAST)[0].row(subject)


def values_of(row):
    return {name: row.metrics[name].value for name in AGREEMENT_METRICS}


@pytest.fixture
def random_labels():
    """60 pairs of 12 queries, 5 raters of whom each pair has 1 to 4; a system that missed some.

    Returns rows, the matrix of (rater, pair) with NaN, and the system's grades.
    """
    rng = np.random.default_rng(5)
    rows, matrix, system = [], np.full((5, 60), np.nan), []
    for pair in range(60):
        truth = rng.integers(1, 6)
        for rater in rng.choice(5, size=rng.integers(1, 5), replace=False):
            grade = int(np.clip(truth + rng.choice([-2, -1, 0, 0, 0, 1]), 1, 5))
            matrix[rater, pair] = grade
            rows.append((f"query {pair // 5:02d}", f"p{pair:02d}", f"r{rater}", grade))
        system.append(0 if pair % 17 == 0 else int(np.clip(truth + rng.choice([-1, 0, 0, 1]), 1, 5)))
    return rows, matrix, np.array(system)


# --- by hand ---


def test_shares_of_raters_with_each_other_by_hand():
    # a: 5 and 5 agree. b: 3, 4, 1 make three comparisons, none exact, one within one. c: nobody to compare with.
    rows = [("q", "a", "x", 5), ("q", "a", "y", 5), ("q", "b", "x", 3), ("q", "b", "y", 4), ("q", "b", "z", 1)]
    row = row_of([*rows, ("q", "c", "x", 2)])
    assert (row.num_pairs, row.num_comparisons) == (2, 4)
    assert (row.metrics["exact"].value, row.metrics["within_one"].value) == (1 / 4, 2 / 4)


def test_a_missing_prediction_agrees_with_nobody_not_even_with_grade_1():
    row = row_of([("q", "a", "x", 1), ("q", "b", "x", 2)], "teacher", [0, 2])
    assert (row.num_missing, row.metrics["exact"].value, row.metrics["within_one"].value) == (1, 0.5, 0.5)


# --- against libraries ---


def test_figures_of_a_system_equal_those_of_scikit_learn(random_labels):
    rows, matrix, system = random_labels
    row = row_of(rows, "teacher", system)
    pairs = [(system[p], int(g)) for p in range(matrix.shape[1]) for g in matrix[:, p] if not np.isnan(g)]
    said, given = zip(*pairs, strict=True)
    kappa = cohen_kappa_score(said, given, weights="linear", labels=range(6))
    assert row.metrics["kappa"].value == pytest.approx(kappa)
    shares = [np.mean([s == g for s, g in pairs]), np.mean([s > 0 and abs(s - g) <= 1 for s, g in pairs])]
    assert [row.metrics[name].value for name in ("exact", "within_one")] == pytest.approx(shares)
    assert row.num_comparisons == len(pairs)
    assert all(found.lo <= found.value <= found.hi for found in row.metrics.values())
    assert row.confusion == confusion_matrix(said, given, labels=range(6))[:, 1:].tolist()


def test_kappa_of_raters_equals_that_of_scikit_learn_over_both_orders(random_labels):
    rows, matrix, _ = random_labels
    ordered = [(a, b) for pair in matrix.T for a, b in itertools.permutations(pair[~np.isnan(pair)], 2)]
    kappa = cohen_kappa_score(*zip(*ordered, strict=True), weights="linear", labels=range(1, 6))
    assert row_of(rows).metrics["kappa"].value == pytest.approx(kappa)


@pytest.mark.parametrize("level", ["ordinal", "interval"])
def test_alpha_equals_that_of_the_library_and_a_system_is_one_more_rater(random_labels, level):
    rows, matrix, system = random_labels
    more = np.vstack([matrix, np.where(system == 0, np.nan, system)])
    for row, grades in ((row_of(rows), matrix), (row_of(rows, "s", system), more)):
        expected = krippendorff.alpha(grades, level_of_measurement=level, value_domain=range(1, 6))
        assert row.metrics[f"alpha_{level}"].value == pytest.approx(expected), row.subject


def test_alpha_of_a_resample_is_that_of_the_drawn_queries(random_labels):
    """Ordinal distances depend on all grades drawn, so that a resample has its own."""
    _, matrix, _ = random_labels
    given = np.stack([(matrix == g).sum(axis=0) for g in range(1, 6)], axis=1).astype(float)
    by_query = coincidences_of(given).reshape(12, 5, 5, 5).sum(axis=1)
    times = np.array([3, 0, 1, 0, 2, 1, 1, 0, 0, 2, 1, 1])
    drawn = np.concatenate([given.reshape(12, 5, 5)[q] for q in np.repeat(np.arange(12), times)])
    found = krippendorff_alphas(np.tensordot(times[None], by_query, 1), ordinal=True)
    expected = krippendorff.alpha(value_counts=drawn, level_of_measurement="ordinal")
    assert found == pytest.approx([expected])


# --- what must not matter ---


def test_order_of_rows_and_names_of_raters_change_nothing(random_labels):
    rows, _, system = random_labels
    before = agreement_tables(labels_of(rows), {"s": Grades(system)}, FAST)[0]
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    other_name = {"r0": "z", "r1": "y", "r2": "x", "r3": "w", "r4": "v"}
    renamed = labels_of([(q, p, other_name[r], g) for q, p, r, g in shuffled])
    assert agreement_tables(renamed, {"s": Grades(system)}, FAST)[0].to_json() == before.to_json()


def test_a_slice_is_what_its_rows_alone_would_be(random_labels):
    rows, _, system = random_labels
    german = [(f"de:{q}", p, r, g) for q, p, r, g in rows[:40]]
    num_german = len({(q, p) for q, p, *_ in german})
    both = agreement_tables(labels_of([*rows, *german]), {"s": Grades([*system[:num_german], *system])}, FAST)
    alone = agreement_tables(labels_of(german), {"s": Grades(system[:num_german])}, FAST)[0]
    assert [table.value for table in both] == [None, "de-DE", "en-US"]
    assert [values_of(row) for row in both[1].rows] == [values_of(row) for row in alone.rows]


def test_a_system_that_is_as_one_of_two_raters_is_exactly_above_them_by_what_it_gains():
    # The system says what x says, so it agrees with half of all grades for certain: (1 + raters) / 2 in every resample.
    rng = np.random.default_rng(1)
    pairs = [(f"q{i:02d}", "p", int(rng.integers(1, 6)), int(rng.integers(1, 6))) for i in range(30)]
    rows = [(q, p, r, g) for q, p, x, y in pairs for r, g in (("x", x), ("y", y))]
    table = agreement_tables(labels_of(rows), {"s": Grades([x for _, _, x, _ in pairs])}, FAST)[0]
    raters, above = table.row(RATERS).metrics["exact"], table.row("s").above_raters["exact"]
    assert above.value == pytest.approx((1 - raters.value) / 2)
    assert above.hi - above.lo == pytest.approx((raters.hi - raters.lo) / 2)


# --- what is undefined, left out, refused ---


def test_a_single_rater_has_nobody_to_agree_with_and_says_so():
    rows = [("q", "a", "truth", 5), ("q", "b", "truth", 1), ("r", "a", "truth", 3)]
    table = agreement_tables(labels_of(rows), {"s": Grades([5, 2, 3])}, FAST)[0]
    row = table.row(RATERS)
    assert set(values_of(row).values()) == {None}
    assert set(row.undefined.values()) == {"no pair has two grades to compare"}
    assert table.row("s").metrics["exact"].value == 2 / 3
    assert "raters: no pair has two grades" in render_agreement([table])


def test_one_grade_everywhere_leaves_kappa_and_alpha_undefined_but_not_the_shares():
    row = row_of([("q", "a", "x", 3), ("q", "a", "y", 3), ("r", "b", "x", 3), ("r", "b", "y", 3)])
    assert set(row.undefined) == {"kappa", "alpha_ordinal", "alpha_interval"}
    assert row.metrics["exact"].value == 1.0


def test_a_single_query_has_figures_and_no_intervals():
    rows = [("q", "a", "x", 3), ("q", "a", "y", 3), ("q", "b", "x", 1), ("q", "b", "y", 2)]
    assert row_of(rows).metrics["exact"] == (0.5, None, None)


def test_a_final_grade_is_no_rater_beside_those_who_came_to_it():
    """It would agree with them by construction."""
    rows = [("q", "a", "x", 1), ("q", "a", "y", 2), ("q", "a", "final", 1), ("q", "b", "final", 5)]
    table = agreement_tables(labels_of(rows), {"s": Grades([2, 5])}, FAST)[0]
    assert (table.row(RATERS).num_comparisons, table.row(RATERS).metrics["exact"].value) == (1, 0.0)
    assert (table.row("s").num_comparisons, "1 pairs have a final grade" in table.notes[0]) == (3, True)


def test_adjudicated_pairs_are_pointed_out():
    rows = [("q", "a", "adjudicated:anna", 1), ("q", "b", "x", 2), ("q", "b", "y", 2)]
    table = agreement_tables(labels_of(rows), {}, FAST)[0]
    assert (table.num_raters, "1 pairs were adjudicated" in table.notes[0]) == (2, True)


def test_a_column_that_says_two_things_of_a_pair_is_a_slice_of_its_own():
    rows = [("q", "a", "x", 1), ("q", "a", "y", 2), ("q", "b", "x", 2)]
    settings = EvaluationSettings(samples=5, slice_columns=("version",))
    found = agreement_tables(labels_of(rows, version=["v1", "v2", "v2"]), {}, settings)
    assert [(table.title, table.num_pairs) for table in found] == [
        ("all pairs", 2), ("version several", 1), ("version v2", 1)]  # fmt: skip


def test_systems_without_grades_are_left_out():
    assert [r.subject for r in agreement_tables(labels_of([("q", "a", "x", 1)]), {"bm25": Grades(None)}, FAST)[0].rows] == [
        RATERS]  # fmt: skip


def test_grades_of_other_pairs_are_refused():
    with pytest.raises(ValueError, match="2 grades for 1 labelled pairs"):
        agreement_tables(labels_of([("q", "a", "x", 1)]), {"s": Grades([1, 2])}, FAST)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no human labels"),
        ([("q", "a", "x", 6)], r"not 1\.\.5"),
        ([("q", "a", "x", 1), ("q", "a", "x", 2)], "x graded query 'q', pin 'a' twice"),
    ],
)
def test_labels_that_cannot_be_counted_are_refused(rows, message):
    with pytest.raises(UserError, match=message):
        agreement_tables(labels_of(rows), {}, FAST)


def test_json_has_no_nan_and_the_report_reads_it_back(random_labels):
    rows, _, system = random_labels
    undefined = agreement_tables(labels_of([("q", "a", "x", 3)]), {"s": Grades([3])}, FAST)[0]
    assert undefined.to_json()["rows"][0]["kappa"] is None
    for table in (undefined, *agreement_tables(labels_of(rows), {"teacher": Grades(system)}, FAST)):
        written = json.dumps(table.to_json(), allow_nan=False)
        assert AgreementTable.from_json(json.loads(written)).to_json() == table.to_json()
