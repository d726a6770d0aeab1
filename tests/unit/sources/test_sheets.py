"""What adjudicators decided takes the raters' place; what cannot be used is not lost, and not silently believed."""

import json

import pyarrow as pa
import pytest
from minimal import make_config

from ray_app.base.errors import UserError
from ray_app.sources.human_labels import load_human_labels
from ray_app.sources.sheets import TO_GRADE, write_sheet
from ray_app.stages.ingest.stage import run as ingest
from ray_app.tables.manifest import read_output

COLUMNS = ["query", "locale", "pin_id", "title", "adjudicated_grade", "adjudicator", "note"]
LABELS = "shoe,p1,x,1\nshoe,p1,y,4\nshoe,p2,x,2\n=sock,p3,x,5\n"


@pytest.fixture
def run(tmp_path, store):
    """Ingest with a sheet of (query, pin_id, grade, adjudicator); None: without."""

    def ingested(*rows, data=None, path=None, max_error_rate=1.0):
        (tmp_path / "pins.csv").write_text("pin_id,title\np1,shoe\np2,boot\np3,sock\n")
        (tmp_path / "labels.csv").write_text(f"query,pin_id,rater_id,grade\n{LABELS}")
        cells = [dict(query=q, locale="en-US", pin_id=p, adjudicated_grade=g, adjudicator=who) for q, p, g, who in rows]
        (tmp_path / "sheet.csv").write_bytes(data or write_sheet(COLUMNS, cells))
        labels = {"adapter": "table", "path": str(tmp_path / "labels.csv"), "constants": {"locale": "en-US"}}
        sources = {
            "pins": {"adapter": "table", "path": str(tmp_path / "pins.csv")}, "human_labels": labels,
            "adjudicated": path or str(tmp_path / "sheet.csv"), "limits": {"max_error_rate": max_error_rate},
        }  # fmt: skip
        return ingest(make_config(store.uri, ingest=sources), store)

    return ingested


def labels(store, manifest):
    rows = read_output(store, manifest.output("human_labels")).to_pylist()
    return [(row["query"], row["pin_id"], row["rater_id"], row["grade"]) for row in rows]


def quarantine(store, manifest):
    rows = read_output(store, manifest.output("quarantine")).to_pylist()
    return [(row["table"], row["source"], row["row"], row["reason"].partition(":")[0]) for row in rows]


GRADES = [("=sock", "p3", "x", 5), ("shoe", "p1", "x", 1), ("shoe", "p1", "y", 4), ("shoe", "p2", "x", 2)]


@pytest.mark.parametrize(
    ("query", "pin", "who", "rater", "replaced"),
    [
        ("shoe", "p1", "anna", "adjudicated:anna", GRADES[1:3]),
        # Raters are combined per normalised query: grades of another spelling would go on beside the verdict.
        ("Shoe ", "p1", "anna", "adjudicated:anna", GRADES[1:3]),
        ("shoe", "p2", " ", "adjudicated", GRADES[3:]),
        ("=sock", "p3", "", "adjudicated", GRADES[:1]),  # looks like a formula
    ],
)
def test_a_verdict_takes_the_place_of_all_raters_of_its_pair(run, store, query, pin, who, rater, replaced):
    manifest = run((query, pin, "3", who))
    assert labels(store, manifest) == sorted({*GRADES, (query, pin, rater, 3)} - set(replaced))
    versions = read_output(store, manifest.output("human_labels"))["guideline_version"]
    assert versions.null_count == len(versions)


def test_counts_add_up(run, store):
    rows = [("shoe", "p1", "3", "anna"), ("shoe", "p2", "", ""), ("=sock", "p3", "9", ""), ("shoe", "p9", "1", "")]
    manifest = run(*rows)
    counts = manifest.counts
    # 3 pins, 4 grades of raters of which 2 are replaced; of 3 verdicts 1 holds; a row is not filled in.
    assert [counts[f"human_labels_{n}"] for n in ("in", "out", "quarantined")] == [4, 2, 2]
    assert [counts[f"adjudicated_{n}"] for n in ("in", "out", "quarantined", "ignored")] == [3, 1, 2, 1]
    assert [counts[f"rows_{n}"] for n in ("in", "out", "quarantined")] == [10, 6, 4]
    assert manifest.output("human_labels").rows == 2 + 1
    assert len(quarantine(store, manifest)) == 4


def test_replaced_grades_stay_readable_in_quarantine(run, store):
    manifest = run(("shoe", "p1", "3", ""))
    table = read_output(store, manifest.output("quarantine"))
    assert [(r["rater_id"], r["grade"]) for r in map(json.loads, table["content"].to_pylist())] == [("x", 1), ("y", 4)]
    assert quarantine(store, manifest) == [("human_labels", "labels.csv", row, "replaced") for row in (0, 1)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("shoe", "p1", "6", ""), "grade_off_scale"),
        (("shoe", "p1", "0", ""), "grade_off_scale"),
        (("shoe", "p1", "good", ""), "wrong_type"),
        (("shoe", "p1", "3.5", ""), "wrong_type"),
        (("shoe", "p9", "3", ""), "unknown_pin"),
        (("shoe", "p3", "3", ""), "unlabelled_pair"),
        (("", "p1", "3", ""), "null_key"),
    ],
)
def test_a_row_that_cannot_be_used_leaves_the_raters_grades_alone(run, store, row, reason):
    manifest = run(row)
    assert quarantine(store, manifest) == [("adjudicated", "sheet.csv", 0, reason)]
    assert labels(store, manifest) == GRADES


def test_of_two_verdicts_on_a_pair_the_first_stays(run, store):
    """Two adjudicators are two rater ids, but a pair has one verdict."""
    manifest = run(("shoe", "p1", "3", "anna"), ("shoe", "p1", "5", "ben"))
    assert ("shoe", "p1", "adjudicated:anna", 3) in labels(store, manifest)
    assert ("adjudicated", "sheet.csv", 1, "duplicate_key") in quarantine(store, manifest)


@pytest.mark.parametrize("cell", ["3", " 3 ", "3.0"])
def test_grades_are_read_as_spreadsheets_write_them(run, store, cell):
    assert ("shoe", "p2", "adjudicated", 3) in labels(store, run(("shoe", "p2", cell, "")))


def test_a_sheet_that_nobody_has_filled_in_changes_nothing(run, store):
    manifest = run(("shoe", "p1", "", ""), ("shoe", "p2", " ", "anna"))
    assert (manifest.counts["adjudicated_in"], manifest.counts["adjudicated_ignored"]) == (0, 2)
    assert labels(store, manifest) == GRADES


def test_several_sheets_in_a_folder_are_read(run, store, tmp_path):
    (tmp_path / "sheets").mkdir()
    for name, pin, grade in (("a.csv", "p1", "3"), ("b.csv", "p2", "4")):
        cells = {"query": "shoe", "locale": "en-US", "pin_id": pin, "adjudicated_grade": grade}
        (tmp_path / "sheets" / name).write_bytes(write_sheet(COLUMNS, [cells]))
    found = labels(store, run(path=str(tmp_path / "sheets")))
    assert found == [GRADES[0], ("shoe", "p1", "adjudicated", 3), ("shoe", "p2", "adjudicated", 4)]


def test_a_changed_sheet_is_read_again_and_an_unchanged_one_is_not(run, store):
    first = run(("shoe", "p1", "3", ""))
    assert run(("shoe", "p1", "3", "")).created_at == first.created_at
    assert ("shoe", "p1", "adjudicated", 5) in labels(store, run(("shoe", "p1", "5", "")))


def test_replaced_grades_are_no_errors(run, store):
    """They would stop the run as soon as a fifth of the grades is adjudicated."""
    rows = [("shoe", "p1", "3", ""), ("shoe", "p2", "3", ""), ("=sock", "p3", "3", "")]
    assert run(*rows, max_error_rate=0.0).counts["human_labels_quarantined"] == 4


def test_a_sheet_of_bad_rows_stops_the_run_by_its_own_name(run):
    with pytest.raises(UserError, match=r"ingest.adjudicated: 1 of 2 rows are bad.*unlabelled_pair"):
        run(("shoe", "p1", "3", ""), ("shoes", "p1", "3", ""), max_error_rate=0.2)


@pytest.mark.parametrize(
    "data", [b"a;b\n1;2\n", b"a,b\r1,2\r", b"PK\x03\x04\x00\xff\n", b"query,locale,pin_id\nshoe,en-US,p1\n"]
)
def test_a_file_that_is_no_sheet_is_refused(run, data):
    with pytest.raises(UserError, match=r"ingest.adjudicated: .*sheet.csv has no column .*adjudicated_grade"):
        run(data=data)


def test_a_line_with_a_lost_field_is_quarantined(run, store):
    data = b"query,locale,pin_id,adjudicated_grade,adjudicator\nshoe,en-US,p1,3,anna\nshoe,en-US,p2\n"
    assert ("adjudicated", "sheet.csv", 1, "corrupt_row") in quarantine(store, run(data=data))


def test_a_sheet_without_raters_is_refused(tmp_path, store):
    (tmp_path / "pins.csv").write_text("pin_id\np1\n")
    sources = {"pins": {"adapter": "table", "path": str(tmp_path / "pins.csv")}, "adjudicated": "sheet.csv"}
    with pytest.raises(UserError, match=r"ingest\.adjudicated: there are no raters' grades to replace"):
        ingest(make_config(store.uri, ingest=sources), store)


def test_first_grades_come_back_whatever_the_query_looks_like_and_blanks_are_no_labels(tmp_path, run):
    run()
    old = {"adapter": "table", "path": str(tmp_path / "labels.csv"), "columns": {"grade": "stars"}, "grade_map": {0: 5}}
    cfg = make_config(tmp_path / "out", ingest={"human_labels": old})
    cells = [
        {"query": "=cmd|x", "locale": "en-US", "pin_id": "p3", "grade": "4.0", "rater_id": "-ann"},
        {"query": "boot", "locale": "de-DE", "pin_id": "p2", "grade": "1"},
        {"query": "boot", "locale": "de-DE", "pin_id": "p1"},
    ]
    (tmp_path / "next.csv").write_bytes(write_sheet(TO_GRADE, cells))
    assert b"=cmd" not in (tmp_path / "next.csv").read_bytes().replace(b"'=cmd", b"")
    found, refused = load_human_labels(cfg, str(tmp_path / "next.csv"), lambda _: pa.array(["p1", "p2", "p3"]))
    names = ("query", "locale", "pin_id", "rater_id", "grade")
    assert sorted(tuple(row[name] for name in names) for row in found.to_pylist()) == [
        ("=cmd|x", "en-US", "p3", "-ann", 4),
        ("boot", "de-DE", "p2", "unnamed", 1),
    ]
    assert refused.num_rows == 0
