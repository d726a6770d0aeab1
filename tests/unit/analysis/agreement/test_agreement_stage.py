"""From labels to a sheet and back, as a user goes round; only the models are made up."""

import csv
import io

import numpy as np
import pyarrow as pa
import pytest
from tiny_config import finished_stage, tiny_config

from ray_app.analysis.agreement import stage as agreement_stage
from ray_app.analysis.agreement.stage import METRICS_FILE, SHEET
from ray_app.analysis.evaluate.stage import _agreement as agreement_of_report
from ray_app.analysis.metrics.systems import graded
from ray_app.base.columns import matrix_column
from ray_app.base.errors import UserError
from ray_app.base.schemas import PIN_TEXTS, SPLITS
from ray_app.stages.corpus_statistics.stage import run as count_corpus
from ray_app.stages.ingest.stage import run as ingest

PINS = ["p1", "p2", "p3"]
LABELS = "Red Shoe,p1,x,1\nRed Shoe,p1,y,1\nRed Shoe,p2,x,5\nboot,p1,x,5\nboot,p3,x,2\n"


@pytest.fixture
def finished(tmp_path, store, monkeypatch):
    """Runs ingest with a sheet or none, puts the other stages' outputs beside it; returns the config.

    Teacher and student believe in grade 5, whatever they read.
    """

    def score(cfg, store, features, models, judged, calibration):
        probs = np.tile([0.01, 0.01, 0.03, 0.15, 0.8], (len(judged.pin_index), 1))
        return {name: graded(probs) for name in ("bm25", "teacher", "student")}

    monkeypatch.setattr(agreement_stage, "score_systems", score)
    (tmp_path / "pins.csv").write_text("pin_id,title\n" + "".join(f"{pin},shoe\n" for pin in PINS))
    (tmp_path / "labels.csv").write_text(f"query,pin_id,rater_id,grade\n{LABELS}")

    def build(sheet=None):
        labels = {"adapter": "table", "path": str(tmp_path / "labels.csv"), "constants": {"locale": "en-US"}}
        pins = {"adapter": "table", "path": str(tmp_path / "pins.csv")}
        section = {"pins": pins, "human_labels": labels, "adjudicated": sheet}
        cfg = tiny_config(store.uri, ingest=section, evaluate={"num_resamples": 5})
        ingest(cfg, store)
        texts = [{"pin_id": pin, "title": "shoe", "caption": f"a shoe, {pin}"} for pin in PINS]
        finished_stage(cfg, store, "enrich", pin_texts=pa.Table.from_pylist(texts, schema=PIN_TEXTS))
        vectors = matrix_column(np.ones((3, 1), np.float32))
        zero_shot = pa.table({"pin_id": PINS, "title_embedding": vectors, "text_embedding": vectors})
        finished_stage(cfg, store, "zero_shot", zero_shot_pins=zero_shot)
        count_corpus(cfg, store)
        splits = pa.table({"query": ["boot", "red shoe"], "split": ["test", "train"]}, schema=SPLITS)
        model = pa.table({"a": [1]})
        finished_stage(cfg, store, "train_teacher", splits=splits, teacher=model)
        finished_stage(cfg, store, "distill", student=model, feature_only_student=model)
        return cfg

    return build


def sheet_rows(store):
    return list(csv.DictReader(io.StringIO(store.read_bytes(SHEET).decode("utf-8-sig"), newline="")))


def test_figures_and_a_sheet_that_names_pairs_as_the_raters_did_are_written_once(finished, store):
    """People must know their labels again."""
    cfg = finished()
    manifest = agreement_stage.run(cfg, store)
    assert (manifest.counts["rows_in"], manifest.counts["pairs"], manifest.counts["sheet_rows"]) == (5, 4, 2)
    whole, *slices = store.read_json(METRICS_FILE)["tables"]
    assert len(agreement_of_report(store, manifest)) == 3
    assert {row["subject"]: row["exact"] for row in whole["rows"]} == {"raters": 1.0, "teacher": 0.4, "student": 0.4}
    assert [(t["slice"], t["value"], t["num_pairs"]) for t in slices] == [("split", "test", 2), ("split", "train", 2)]
    assert [(row["query"], row["pin_id"], row["split"], row["caption"]) for row in sheet_rows(store)] == [
        ("boot", "p3", "test", "a shoe, p3"), ("Red Shoe", "p1", "train", "a shoe, p1")]  # fmt: skip
    assert agreement_stage.run(cfg, store).created_at == manifest.created_at


@pytest.fixture
def filled(finished, store, tmp_path):
    """The sheet of a run with the verdict 5 on (Red Shoe, p1), apart from the run."""
    agreement_stage.run(finished(), store)
    rows = sheet_rows(store)
    for row in rows:
        row["adjudicated_grade"] = "5" if (row["query"], row["pin_id"]) == ("Red Shoe", "p1") else ""
    with (tmp_path / "filled.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "filled.csv"


def test_verdicts_change_the_figures_and_do_not_come_back(finished, store, filled):
    manifest = agreement_stage.run(finished(str(filled)), store)
    assert [(row["query"], row["pin_id"]) for row in sheet_rows(store)] == [("boot", "p3")]
    assert {row["subject"]: row["exact"] for row in manifest.info["rows"]}["teacher"] == 0.75
    assert "1 pairs were adjudicated" in manifest.info["text"]


def test_a_sheet_that_somebody_has_filled_in_is_not_written_over(finished, store, filled):
    store.write_bytes(SHEET, filled.read_bytes())
    with pytest.raises(UserError, match=r"adjudicate.csv: 1 rows have been filled in.*ingest.adjudicated"):
        agreement_stage.run(finished(str(filled)), store)
    assert store.read_bytes(SHEET) == filled.read_bytes()


def test_before_the_models_are_there_the_command_to_run_is_named(finished, store):
    cfg = finished()
    store.delete("manifests/distill.json")
    with pytest.raises(UserError, match=r"pipelines/distill\.py"):
        agreement_stage.run(cfg, store)
