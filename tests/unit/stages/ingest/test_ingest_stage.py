"""Counts that add up, a failure that can be read, and the same bytes for the same input."""

import json

import pytest

from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.stages.ingest.stage import FAILED
from ray_app.stages.ingest.stage import run as ingest
from ray_app.tables.manifest import read_manifest, read_output

PINS = "pin_id,title\np1,shoe\np2,boot\np3,sock\n"


def config(folder, pins=PINS, labels=None, tables=None, **ingest_section):
    (folder / "pins.csv").write_text(pins)
    section = {"pins": {"adapter": "table", "path": str(folder / "pins.csv")}, **ingest_section}
    if labels is not None:
        (folder / "labels.csv").write_text("query,pin_id,rater_id,grade\n" + labels)
        source = {"adapter": "table", "path": str(folder / "labels.csv")}
        section["human_labels"] = source | {"constants": {"locale": "en-US"}}
    return Config.model_validate(
        {
            "output": str(folder / "out"),
            "ingest": section,
            "tables": tables or {},
            "features": {"zero_shot_model": "m"},
            "train_teacher": {"base_model": "m"},
            "distill": {"base_model": "m"},
        }
    )


@pytest.fixture
def store(tmp_path):
    return Storage(str(tmp_path / "out"))


def test_counts_add_up(tmp_path, store):
    labels = "shoe,p1,r,5\nshoe,p9,r,5\nshoe,p2,r,1\nsock,p3,r,4\nsock,p2,r,1\n"
    counts = ingest(config(tmp_path, labels=labels), store).counts
    assert (counts["rows_in"], counts["rows_out"], counts["rows_quarantined"]) == (8, 7, 1)


def test_counts_are_kept_by_table(tmp_path, store):
    counts = ingest(config(tmp_path, labels="shoe,p1,r,5\n"), store).counts
    assert {name: counts[f"{name}_out"] for name in ("pins", "boards", "search_log", "human_labels")} == {
        "pins": 3, "boards": 0, "search_log": 0, "human_labels": 1}  # fmt: skip


def test_absent_sources_are_empty_tables(tmp_path, store):
    """Later stages read all four without asking which were configured."""
    manifest = ingest(config(tmp_path), store)
    assert read_output(store, manifest.output("search_log")).num_rows == 0


def test_a_second_run_reads_nothing(tmp_path, store):
    cfg = config(tmp_path)
    assert ingest(cfg, store).created_at == ingest(cfg, store).created_at


def test_a_changed_source_is_read_again(tmp_path, store):
    ingest(config(tmp_path), store)
    assert ingest(config(tmp_path, pins=PINS + "p4,hat\n"), store).counts["pins_out"] == 4


def test_the_order_of_rows_does_not_change_the_tables(tmp_path, store):
    first = ingest(config(tmp_path), store).output("pins")
    second = ingest(config(tmp_path, pins="pin_id,title\np3,sock\np1,shoe\np2,boot\n"), store).output("pins")
    assert first.content_hash == second.content_hash


def test_tables_are_cut_into_files(tmp_path, store):
    assert len(ingest(config(tmp_path, tables={"rows_per_file": 2}), store).output("pins").files) == 2


def test_too_many_bad_rows_fail_with_counts_reason_and_place(tmp_path, store):
    with pytest.raises(UserError, match=r"ingest.human_labels: 2 of 3 rows are bad.*grade_off_scale \(2\).*quarantine"):
        ingest(config(tmp_path, labels="shoe,p1,r,5\nshoe,p2,r,9\nshoe,p3,r,0\n"), store)


def test_after_too_many_bad_rows_counts_and_rows_can_be_read(tmp_path, store):
    with pytest.raises(UserError):
        ingest(config(tmp_path, labels="shoe,p1,r,9\n"), store)
    failure = store.read_json(FAILED)
    quarantine = store.read_table(failure["quarantine"][0])
    content = json.loads(quarantine["content"][0].as_py())
    assert (failure["counts"]["human_labels_quarantined"], content["grade"]) == (1, "9")


def test_a_failed_run_is_not_taken_for_a_finished_one(tmp_path, store):
    with pytest.raises(UserError):
        ingest(config(tmp_path, labels="shoe,p1,r,9\n"), store)
    assert read_manifest(store, "ingest") is None


def test_a_failure_is_forgotten_once_fixed(tmp_path, store):
    with pytest.raises(UserError):
        ingest(config(tmp_path, labels="shoe,p1,r,9\n"), store)
    ingest(config(tmp_path, labels="shoe,p1,r,5\n"), store)
    assert not store.exists(FAILED)


@pytest.mark.parametrize("pins", ["", "pin_id,title\n"])
def test_an_empty_catalogue_says_what_to_do(tmp_path, store, pins):
    with pytest.raises(UserError, match=r"ingest.pins.path: no pins in .*pins.csv: it has no rows; give it"):
        ingest(config(tmp_path, pins=pins), store)


def test_a_catalogue_of_bad_rows_only_is_empty_too(tmp_path, store):
    with pytest.raises(UserError, match=r"all 1 rows are bad"):
        ingest(config(tmp_path, pins="pin_id,title\n,shoe\n", limits={"max_error_rate": 1.0}), store)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"boards": {"adapter": "chorus", "path": "."}}, "ingest.boards.adapter: chorus has no boards"),
        ({"boards": {"adapter": "ubi", "path": "."}}, "ingest.boards.adapter: ubi has no boards"),
        ({"search_log": {"adapter": "ubi", "path": "none.gz"}}, "ingest.search_log.path: .*does not exist"),
        ({"search_log": {"adapter": "ubi", "path": ".", "id_map": "ean"}}, "ingest.search_log.id_map"),
    ],
)
def test_a_source_that_cannot_be_is_refused_by_its_key(tmp_path, store, section, message):
    with pytest.raises(UserError, match=message):
        ingest(config(tmp_path, **section), store)
