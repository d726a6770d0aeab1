"""The stage around sample_pairs: what it reads of the other stages, resume, and the note where there is no log."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from ray_app.config import Config
from ray_app.errors import UserError
from ray_app.manifest import StageRun, read_output
from ray_app.sample.stage import run as sample
from ray_app.schemas import HUMAN_LABELS, PIN_TEXTS, SEARCH_LOG
from ray_app.storage import Storage

TITLES = ["red laptop", "blue laptop", "red bag", "desk"]
PIN_IDS = ["p0", "p1", "p2", "p3"]


def config(folder, **sections):
    source = {"adapter": "table", "path": "unused.csv"}
    models = {"teach": {"base_model": "m"}, "distill": {"base_model": "m"}, "features": {"zero_shot_model": "m"}}
    return Config.model_validate({"output": str(folder / "out"), "ingest": {"pins": source}, **models, **sections})


def fill(table, schema):
    """The columns of `schema`, null where `table` has none."""
    return pa.table([table[n] if n in table else [None] * len(table["query"]) for n in schema.names], schema=schema)


def write_inputs(cfg, store, log_queries=("laptop", "bag"), pins=("p0", "p2")):
    tables = {
        "ingest": {
            "search_log": fill(
                {
                    "event_id": [str(i) for i in range(len(log_queries))],
                    "timestamp": [datetime(2024, 1, 1, tzinfo=UTC)] * len(log_queries),
                    "query": list(log_queries),
                    "locale": ["en-US"] * len(log_queries),
                    "pin_id": list(pins)[: len(log_queries)],
                    "action": ["click"] * len(log_queries),
                },
                SEARCH_LOG,
            ),
            "human_labels": pa.table(
                [["Desk", "bag"], ["en-US"] * 2, ["p3", "p2"], ["r", "r"], [5, 5], ["v1", "v1"]], schema=HUMAN_LABELS
            ),
        },
        "enrich": {"pin_texts": fill({"query": TITLES, "pin_id": PIN_IDS, "title": TITLES}, PIN_TEXTS)},
        "teach": {"splits": pa.table({"query": ["desk", "bag"], "split": ["train", "test"]})},
        "zero_shot": {
            "zero_shot_pins": pa.table(
                {"pin_id": PIN_IDS, "text_embedding": vectors([[1, 0], [1, 0], [0, 1], [0, 1]])}
            ),
            "zero_shot_queries": pa.table(
                {"query": ["laptop", "desk", "bag"], "embedding": vectors([[1, 0], [0, 1], [0, 1]])}
            ),
        },
    }
    for stage, outputs in tables.items():
        run = StageRun(stage, cfg, store, 1, settings=[], inputs=[])
        for name, table in outputs.items():
            run.write_table(name, table)
        run.finish(counts={"rows_out": 1})


def vectors(rows):
    return pa.array(rows, pa.list_(pa.float32(), 2))


@pytest.fixture
def store(tmp_path):
    store = Storage(str(tmp_path / "out"))
    write_inputs(config(tmp_path), store)
    return store


def test_training_queries_come_in_and_test_queries_stay_out(tmp_path, store):
    pairs = read_output(store, sample(config(tmp_path), store).output("pairs"))
    assert set(pairs["query"].to_pylist()) == {"laptop", "desk"}


def test_the_manifest_counts_the_sample_by_stratum_and_source(tmp_path, store):
    manifest = sample(config(tmp_path), store)
    assert sum(s["num_sampled"] for s in manifest.info["strata"]) == manifest.counts["rows_out"]
    assert sum(manifest.info["num_by_source"].values()) == manifest.counts["rows_out"] > 0
    assert "source_note" not in manifest.info


def test_without_a_log_the_manifest_says_so(tmp_path):
    store = Storage(str(tmp_path / "out"))
    write_inputs(config(tmp_path), store, log_queries=(), pins=())
    manifest = sample(config(tmp_path), store)
    assert "no search log" in manifest.info["source_note"]
    assert read_output(store, manifest.output("pairs"))["query"].unique().to_pylist() == ["desk"]


def test_a_second_run_does_nothing(tmp_path, store):
    assert sample(config(tmp_path), store).created_at == sample(config(tmp_path), store).created_at


def test_another_seed_samples_again(tmp_path, store):
    first = sample(config(tmp_path), store)
    assert sample(config(tmp_path, seed=18), store).fingerprint != first.fingerprint


def test_without_teach_it_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"pipelines/"):
        sample(config(tmp_path), Storage(str(tmp_path / "empty")))
