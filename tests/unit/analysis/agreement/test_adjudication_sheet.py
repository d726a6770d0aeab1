"""The sheet must hold what is worth a human's look, and must not run anything on that human's machine."""

import csv
import io

import numpy as np
import pyarrow as pa
import pytest

from ray_app.analysis.agreement.adjudication_sheet import build_adjudication_sheet, find_label_issues
from ray_app.analysis.agreement.rater_counts import RaterCounts
from ray_app.base.schemas import HUMAN_LABELS, PIN_TEXTS
from ray_app.sources.sheets import ADJUDICATOR, GRADE, defuse, num_filled, restore, write_sheet
from ray_app.training.targets import combine_raters


def labels_of(rows):
    """rows: (query, pin_id, rater_id, grade)."""
    return pa.Table.from_pylist(
        [dict(query=q, locale="en-US", pin_id=p, rater_id=r, grade=g) for q, p, r, g in rows], schema=HUMAN_LABELS
    )


def suspects_of(rows, systems, max_rows=10, max_per_query=10):
    """Pins and reasons, worst first."""
    labels = labels_of(rows)
    counts = RaterCounts.of(labels)
    grades = combine_raters(labels, 0.0)["grade"].to_numpy().astype(np.int64)
    found = find_label_issues(counts, grades, systems, max_rows, max_per_query)
    return [(counts.keys[s.place][2], round(s.issue_score, 3), s.why) for s in found]


@pytest.fixture
def sheet_of(make_system):
    """The sheet of one pair on which the teacher differs, as rows."""

    def build(query="q", pins=("a",), **pin):
        counts = RaterCounts.of(labels_of([(query, "a", "x", 1), (query, "a", "y", 4)]))
        systems = {"teacher": make_system([4.2], [[0.0, 0.1, 0.1, 0.3, 0.5]])}
        grades = np.array([1])
        issues = find_label_issues(counts, grades, systems, 1, 1)
        texts = pa.Table.from_pylist([{"pin_id": pin_id, **pin} for pin_id in pins], schema=PIN_TEXTS)
        return build_adjudication_sheet(issues, counts, grades, systems, texts, ["train"])

    return build


def read(sheet):
    return list(csv.DictReader(io.StringIO(sheet.decode("utf-8-sig"), newline="")))


# --- which pairs ---


def test_surprise_by_hand(make_system):
    # The pair counts with 2, the mean of 1 and 3. -(ln .05 + ln .2) / 2, and two raters who are 2 apart.
    systems = {
        "teacher": make_system([3], [[0.2, 0.05, 0.5, 0.2, 0.05]]),
        "student": make_system([3], [[0.2, 0.2, 0.2, 0.2, 0.2]]),
    }
    ((_, issue_score, why),) = suspects_of([("q", "a", "x", 1), ("q", "a", "y", 3)], systems)
    assert issue_score == round(-(np.log(0.05) + np.log(0.2)) / 2 + 2.0, 3)
    assert why == "teacher gives grade 2 a chance of 5.0%; raters differ by 2"


def test_the_worst_comes_first_and_what_nobody_doubts_is_left_out(make_system, make_probs):
    rows = [("q", "a", "x", 5), ("q", "b", "x", 5), ("q", "c", "x", 5)]
    probs = [make_probs([5], 0.9)[0], make_probs([1], 0.9)[0], make_probs([1], 0.6)[0]]
    assert [pin for pin, *_ in suspects_of(rows, {"teacher": make_system([5, 1, 1], probs)})] == ["b", "c"]


def test_one_query_cannot_fill_the_sheet(make_system, make_probs):
    rows = [(query, pin, "x", 5) for query in ("q", "r") for pin in "abc"]
    systems = {"teacher": make_system([1] * 6, make_probs([1] * 6))}
    assert [pin for pin, *_ in suspects_of(rows, systems, max_rows=3, max_per_query=2)] == ["a", "b", "a"]


def test_a_pair_that_was_adjudicated_is_not_asked_again(make_system, make_probs):
    rows = [("q", "a", "adjudicated:anna", 5), ("q", "b", "adjudicated", 5), ("q", "c", "x", 5)]
    assert [pin for pin, *_ in suspects_of(rows, {"t": make_system([1] * 3, make_probs([1] * 3))})] == ["c"]


def test_a_pair_that_one_system_did_not_score_is_judged_by_the_other(make_system, make_probs):
    none = np.full(5, np.nan)
    systems = {
        "teacher": make_system([np.nan, np.nan], [none, none]),
        "student": make_system([1, np.nan], [make_probs([1])[0], none]),
    }
    ((pin, issue_score, _),) = suspects_of([("q", "a", "x", 5), ("q", "b", "x", 5)], systems)
    assert (pin, issue_score) == ("a", round(-np.log(0.05), 3))


def test_a_certain_system_alone_does_not_make_an_infinite_surprise(make_system):
    ((_, issue_score, _),) = suspects_of([("q", "a", "x", 1)], {"t": make_system([5], [[0, 0, 0, 0, 1]])})
    assert issue_score == round(-np.log(1e-4), 3)


def test_order_of_rows_changes_nothing(make_system, make_probs):
    rows = [(f"q{i}", "a", rater, 1 + (i + j) % 5) for i in range(6) for j, rater in enumerate("xy")]
    systems = {"t": make_system([3] * 6, make_probs([3] * 6, 0.5))}
    assert suspects_of(rows[::-1], systems) == suspects_of(rows, systems)


def test_a_system_without_probabilities_is_refused(make_system):
    with pytest.raises(ValueError, match="must have probabilities"):
        suspects_of([("q", "a", "x", 1)], {"bm25": make_system([1])})


# --- the sheet ---


def test_the_sheet_shows_what_is_needed_to_decide(sheet_of):
    (row,) = read(sheet_of(title="Red  shoe", caption="a red shoe"))
    assert (row["query"], row["locale"], row["pin_id"], row["title"], row["caption"]) == (
        "q", "en-US", "a", "Red shoe", "a red shoe")  # fmt: skip
    assert (row["raters_grades"], row["present_grade"], row["split"]) == ("1 4", "1", "train")
    assert (row["teacher_expected_grade"], row["teacher_likeliest_grade"]) == ("4.20", "5")
    assert (row[GRADE], row[ADJUDICATOR], row["note"]) == ("", "", "")


def test_what_is_filled_in_stands_left_of_the_opinions_so_that_those_can_be_hidden(sheet_of):
    columns = list(read(sheet_of())[0])
    assert columns.index("note") < min(columns.index(c) for c in columns if "grade" in c and c != GRADE)


def test_a_pin_that_is_gone_has_an_empty_title(sheet_of):
    assert [row["title"] for row in read(sheet_of(pins=()))] == [""]


FORMULAS = ["=1+1", "+1", "-2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "＝1", '=HYPERLINK("http://x","y")']


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_starts_as_a_formula(sheet_of, text):
    (row,) = read(sheet_of(query=text, title=text, caption=text))
    assert not [cell for cell in row.values() if cell.lstrip()[:1] in tuple("=+-@＝")]


@pytest.mark.parametrize("text", [*FORMULAS, "'=1", "''+1", "'70s dress", "it's", "", "plain", "1-2", 'a "b", c;d\ne'])
def test_defused_texts_are_read_back_as_they_were(text):
    (row,) = read(write_sheet(["query"], [{"query": text}]))
    assert restore(row["query"]) == text


def test_a_cell_whose_apostrophe_the_spreadsheet_took_is_read_back_as_well():
    assert restore(defuse("=1+1").removeprefix("'")) == "=1+1"


def test_spreadsheets_are_told_that_the_sheet_is_utf8(sheet_of):
    assert sheet_of(title="वाह").startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize("column", [GRADE, ADJUDICATOR, "note"])
def test_whatever_somebody_wrote_counts_as_filled_in(column):
    """It would be lost with the file."""
    rows = [{"query": "q"}, {"query": "q", column: "x"}, {"query": "q", column: " "}]
    assert num_filled(write_sheet(["query", GRADE, ADJUDICATOR, "note"], rows)) == 1


@pytest.mark.parametrize(("data", "filled"), [(b"my,own\nfile,1\n", 2), (b"my,own\rfile,1\r", 2), (b"", 0)])
def test_a_file_that_is_no_sheet_counts_as_filled_in_unless_it_is_empty(data, filled):
    assert num_filled(data) == filled
