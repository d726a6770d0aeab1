"""Garbage collection deletes what nothing names, and nothing else."""

from datetime import date, timedelta

import pyarrow as pa
from minimal import make_config

from ray_app.base.schemas import SOFT_LABEL_RESULTS, embedding_results
from ray_app.base.storage import Storage
from ray_app.tables import garbage
from ray_app.tables import ledger as tables_ledger
from ray_app.tables.garbage import collect_all, collect_releases
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Output, hash_files, read_manifest, read_output
from ray_app.tables.publish import publish_release
from ray_app.tables.stage_run import StageRun


def labels(*keys):
    rows = [{"content_key": key, "probs": [0.2] * 5, "error": None} for key in keys]
    return pa.Table.from_pylist(rows, schema=SOFT_LABEL_RESULTS)


def test_current_outputs_and_their_ledger_rows_stay_and_the_rest_goes(store):
    cfg = make_config(store.uri)
    ledger = Ledger(store, "soft_labels", "r1", SOFT_LABEL_RESULTS)
    ledger.commit(labels("old", "kept"))
    Ledger(store, "soft_labels", "r0", SOFT_LABEL_RESULTS).commit(labels("older"))
    for version, key in ((1, "old"), (2, "kept")):
        run = StageRun("label", cfg, store, version, [], [])
        run.write_table("soft_labels", labels(key))
        run.finish({"rows_out": 1})

    counts = collect_all(store)

    assert (counts.folders, counts.ledger_rows) == (1, 2)
    manifest = read_manifest(store, "label")
    assert manifest is not None
    assert read_output(store, manifest.outputs["soft_labels"])["content_key"].to_pylist() == ["kept"]
    assert ledger.present_keys().to_pylist() == ["kept"]


def test_what_a_release_is_served_with_stays_as_long_as_the_release(store):
    """No manifest names the texts of an old release any more, but a rollback needs them."""
    ledger = Ledger(store, "pin_embeddings", "r1", embedding_results(1))
    ledger.commit(pa.table({"content_key": ["k"], "embedding": [[1.0]], "error": pa.nulls(1)}))
    for version in ("v1", "v2", "v3"):
        file = store.write_bytes(f"tables/pin_texts/{version}/part", version.encode())
        content = hash_files(version, {file.path: file.sha256})
        path = f"tables/pin_texts/{version}"
        texts = Output(name="pin_texts", path=path, files=[file.path], rows=1, content_hash=content)
        pins = pa.table({"pin_id": ["p"], "content_key": ["k"]})
        publish_release(store, lambda _, pins=pins: pins, ledger, 1, "5" * 16, sources={"pin_texts": texts}, config={})
    assert collect_all(store).folders == 0
    collect_releases(store, keep=1)  # v3 is served, v2 was before
    assert collect_all(store).folders == 1
    assert store.list_files("tables") == ["tables/pin_texts/v2/part", "tables/pin_texts/v3/part"]


def test_what_experiments_made_stays(store):
    """Their models and labels cost money, and their manifests lie deeper than others."""
    cfg = make_config(store.uri)
    variant = Storage(store.uri, "losses/hard")
    run = StageRun("train_teacher", cfg, variant, 1, [], [])
    run.add_output("teacher", "models/teacher/v2", [variant.write_bytes("models/teacher/v2/weights", b"x")])
    run.finish({})
    ledger = Ledger(store, "soft_labels", "r1", SOFT_LABEL_RESULTS)
    ledger.commit(labels("of the run", "of the arm", "of nobody"))
    for of, key in ((store, "of the run"), (variant, "of the arm")):
        run = StageRun("label", cfg, of, 1, [key], [])
        run.write_table("soft_labels", labels(key))
        run.finish({"rows_out": 1})
    store.write_bytes("models/teacher/v1/weights", b"x")
    counts = collect_all(store)
    assert (counts.folders, counts.ledger_rows) == (1, 1)
    assert store.list_files("models") == ["models/teacher/v2/weights"]
    assert sorted(ledger.present_keys().to_pylist()) == ["of the arm", "of the run"]


def test_embeddings_of_two_dimensions_may_lie_side_by_side(store):
    """Another student is another recipe, and its vectors may be longer: this ended in an ArrowTypeError."""
    for recipe, dim in (("r1", 1), ("r2", 3)):
        ledger = Ledger(store, "pin_embeddings", recipe, embedding_results(dim))
        keys = [f"{recipe} {name}" for name in ("kept", "dropped")]
        ledger.commit(pa.table({"content_key": keys, "embedding": [[1.0] * dim] * 2, "error": pa.nulls(2)}))
        pins = pa.table({"pin_id": ["p"], "content_key": keys[:1]})
        publish_release(store, lambda _, pins=pins: pins, ledger, dim, "5" * 16, sources={}, config={})
    assert collect_all(store).ledger_rows == 2
    for recipe, dim in (("r1", 1), ("r2", 3)):
        ledger = Ledger(store, "pin_embeddings", recipe, embedding_results(dim))
        assert ledger.present_keys().to_pylist() == [f"{recipe} kept"]


def test_labels_of_another_days_sample_are_kept_for_some_days_though_files_are_merged(store, monkeypatch):
    """A merged file is young, and its rows may be old."""
    first = date(2026, 3, 1)
    ledger = Ledger(store, "soft_labels", "r1", SOFT_LABEL_RESULTS)
    for day in range(40):
        monkeypatch.setattr(tables_ledger, "today", lambda day=day: first + timedelta(days=day))
        ledger.commit(labels(f"day {day}"))
        ledger.compact(0)
    assert len(ledger.files()) <= 16
    run = StageRun("label", make_config(store.uri), store, 1, [], [])
    run.write_table("soft_labels", labels("day 3"))
    run.finish({"rows_out": 1})
    monkeypatch.setattr(garbage, "today", lambda: first + timedelta(days=39))
    assert collect_all(store, keep_days=30).ledger_rows == 9
    left = ["day 3", *(f"day {day}" for day in range(10, 40))]
    assert sorted(ledger.present_keys().to_pylist()) == sorted(left)
    assert collect_all(store, keep_days=30).ledger_rows == 0
    assert collect_all(store).ledger_rows == 30


def test_the_texts_that_changes_are_measured_from_stay(store):
    """Without them the day after is a full training: teacher, sample and student."""
    cfg = make_config(store.uri)
    old = StageRun("enrich", cfg, store, 1, [], []).write_table("pin_texts", pa.table({"pin_id": ["p"]}))
    StageRun("distill", cfg, store, 1, [], []).finish({"rows_out": 1}, pin_texts=old)
    store.write_bytes("tmp/sample/x/selected.parquet", b"of a job that was killed")
    assert collect_all(store).folders == 0
    assert store.list_files("tables") == old.files and store.list_files("tmp") == []
