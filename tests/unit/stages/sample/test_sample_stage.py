"""The stage around sample_pairs: what it reads of other stages and runs, resume, windows, and notes."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import side_world

from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.schemas import HUMAN_LABELS, PIN_TEXTS, SEARCH_LOG, SOFT_LABELS
from ray_app.base.storage import Storage
from ray_app.sources.source_reader import open_source, read_source
from ray_app.stages.corpus_statistics.stage import run as count_corpus
from ray_app.stages.sample.stage import run as sample
from ray_app.tables.manifest import read_manifest, read_output
from ray_app.tables.stage_run import StageRun

TITLES = ["red laptop", "blue laptop", "red bag", "desk"]
PIN_IDS = ["p0", "p1", "p2", "p3"]


def config(folder, **sections):
    source = {"adapter": "table", "path": "unused.csv"}
    models = {
        "train_teacher": {"base_model": "m"},
        "distill": {"base_model": "m"},
        "features": {"zero_shot_model": "m"},
    }
    return Config.model_validate({"output": str(folder / "out"), "ingest": {"pins": source}, **models, **sections})


def fill(table, schema):
    """The columns of `schema`, null where `table` has none."""
    return pa.table([table[n] if n in table else [None] * len(table["query"]) for n in schema.names], schema=schema)


def write_inputs(cfg, store, log_queries=("laptop", "bag"), pins=("p0", "p2"), times=None, clients=None):
    queries = sorted({"laptop", "desk", "bag", *log_queries})
    tables = {
        "ingest": {
            "search_log": fill(
                {
                    "event_id": [str(i) for i in range(len(log_queries))],
                    "timestamp": times or [datetime(2024, 1, 1, tzinfo=UTC)] * len(log_queries),
                    "query": list(log_queries),
                    "locale": ["en-US"] * len(log_queries),
                    "pin_id": list(pins)[: len(log_queries)],
                    "action": ["click"] * len(log_queries),
                    "client_id": clients or [f"c{i}" for i in range(len(log_queries))],
                },
                SEARCH_LOG,
            ),
            "human_labels": pa.table(
                [["Desk", "bag"], ["en-US"] * 2, ["p3", "p2"], ["r", "r"], [5, 5], ["v1", "v1"]], schema=HUMAN_LABELS
            ),
        },
        "enrich": {"pin_texts": fill({"query": TITLES, "pin_id": PIN_IDS, "title": TITLES}, PIN_TEXTS)},
        "train_teacher": {"splits": pa.table({"query": ["desk", "bag"], "split": ["train", "test"]})},
        "zero_shot": {
            "zero_shot_pins": pa.table(
                [PIN_IDS, *[vectors([[1, 0], [1, 0], [0, 1], [0, 1]])] * 2],
                names=["pin_id", "title_embedding", "text_embedding"],
            ),
            "zero_shot_queries": pa.table(
                {"query": queries, "embedding": vectors([[1, 0] if "laptop" in q else [0, 1] for q in queries])}
            ),
        },
    }
    for stage, outputs in tables.items():
        run = StageRun(stage, cfg, store, 1, settings=[], inputs=[])
        for name, table in outputs.items():
            run.write_table(name, table)
        run.finish(counts={"rows_out": 1}, info={"present": "2024-06-01T00:00:00+00:00"})
    count_corpus(cfg, store)


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


def test_queries_that_the_run_will_be_measured_on_are_not_labelled(tmp_path, store):
    """Nor their near-duplicates: else the student's figures are partly of queries that the teacher taught it."""
    (tmp_path / "judged.csv").write_text("query,locale,pin_id,rater_id,grade\nLaptops,en-US,p0,r1,5\n")
    cfg = config(tmp_path, evaluate={"human_labels": str(tmp_path / "judged.csv")}, sample={"product_type_min_pins": 1})
    manifest = sample(cfg, store)
    queries = set(read_output(store, manifest.output("pairs"))["query"].to_pylist())
    assert "desk" in queries and not queries & {"laptop", "laptops"}
    assert manifest.fingerprint != sample(config(tmp_path, sample={"product_type_min_pins": 1}), store).fingerprint


def test_a_run_of_an_older_version_says_what_to_run_again(tmp_path, store):
    """It said that a key is missing, and not what to do about it."""
    cfg = config(tmp_path)
    side_world.ingested_by_an_older_version(cfg, store, "client_id")
    with pytest.raises(UserError, match=r"ingest of an older version.*`python pipelines/ingest\.py --config \.\.\.`"):
        sample(cfg, store)


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


def daily_store(folder, clients=None):
    """`red laptop` thirty times on each of three days, and `blue laptop` twelve times on the third."""
    times = [datetime(2024, 1, day, 12, m, tzinfo=UTC) for day in (1, 2, 3) for m in range(30)]
    times += [datetime(2024, 1, 3, 18, m, tzinfo=UTC) for m in range(12)]
    queries = ["red laptop"] * 90 + ["blue laptop"] * 12
    store = Storage(str(folder / "out"))
    write_inputs(config(folder), store, log_queries=queries, pins=["p0"] * len(queries), times=times, clients=clients)
    return store


def shown(store, manifest):
    pairs = read_output(store, manifest.output("pairs")).to_pylist()
    return {row["query"]: row["stratum"] for row in pairs if row["source"] == "log"}


def test_only_the_window_is_sampled(tmp_path):
    store = daily_store(tmp_path)
    first = sample(config(tmp_path, sample={"since": "2024-01-01", "until": "2024-01-02"}), store)
    assert set(shown(store, first)) == {"red laptop"}
    assert first.counts["log_rows"] == 30
    assert first.info["window"] == {
        "since": "2024-01-01T00:00:00+00:00", "until": "2024-01-02T00:00:00+00:00", "num_before": 0
    }  # fmt: skip
    assert "no event before" in first.info["window_note"]


def test_a_query_that_trends_in_the_window_has_its_own_band(tmp_path):
    store = daily_store(tmp_path)
    last = sample(config(tmp_path, sample={"days": 1, "trending_boost": 3.0}), store)
    assert shown(store, last)["blue laptop"] == "en-US/trending/engaged"
    assert (last.info["num_trending"], last.info["trending"][0]["query"]) == (1, "blue laptop")
    assert last.info["window"]["num_before"] == 60


def test_what_one_visitor_searched_is_named_to_nobody(tmp_path):
    """The manifest's trends go into the report, the public queries onto the start page."""
    store = daily_store(tmp_path, clients=[f"c{i}" for i in range(90)] + ["jane"] * 12)
    last = sample(config(tmp_path, sample={"days": 1}), store)
    assert (last.info["num_trending"], last.info["trending"]) == (1, [])
    assert read_output(store, last.output("public_queries")).to_pylist() == [{"query": "red laptop", "num_clients": 90}]


def test_another_number_of_clients_samples_again(tmp_path, store):
    first, second = (sample(config(tmp_path, enrich={"min_clients": k}), store) for k in (1, 2))
    assert first.fingerprint != second.fingerprint and first.counts["public_queries"] == 2


def test_a_daily_run_of_an_unchanged_log_does_nothing(tmp_path):
    store, cfg = daily_store(tmp_path), config(tmp_path, sample={"days": 1})
    assert sample(cfg, store).created_at == sample(cfg, store).created_at


def test_without_a_window_nothing_is_said_about_trends(tmp_path):
    manifest = sample(config(tmp_path), daily_store(tmp_path))
    assert not manifest.info.keys() & {"window", "num_trending", "trending", "window_note"}


def test_another_day_draws_other_pairs(tmp_path):
    """The same events with two open ends: only the windows' names differ."""
    store, drawn = daily_store(tmp_path), []
    for since in ("2023-01-01", "2023-01-02"):
        cfg = config(tmp_path, sample={"since": since, "num_pairs": 6})
        drawn.append(read_output(store, sample(cfg, store).output("pairs")).select(["query", "pin_id"]).to_pylist())
    assert drawn[0] != drawn[1]


def write_labels(store, cfg):
    """Soft labels of the run's sample: each pair is surely of grade 1 or 5."""
    pairs = read_output(store, read_manifest(store, "sample").output("pairs"))
    run = StageRun("label", cfg, store, 1, settings=[], inputs=[read_manifest(store, "sample").output("pairs")])
    probs = [[1.0, 0, 0, 0, 0] if row % 2 else [0, 0, 0, 0, 1.0] for row in range(pairs.num_rows)]
    probs[0] = None  # a pair that the teacher could not read
    columns = {name: pairs[name] for name in ("query", "locale", "pin_id")}
    run.write_table("soft_labels", fill(columns | {"content_key": pairs["pin_id"], "probs": probs}, SOFT_LABELS))
    run.finish(counts={"rows_out": pairs.num_rows})


@pytest.fixture
def pilot(tmp_path):
    """The output of a finished run with a larger log."""
    folder = tmp_path / "pilot"
    cfg, store = config(folder), Storage(str(folder / "out"))
    queries = [title for title in TITLES for _ in PIN_IDS]
    write_inputs(cfg, store, log_queries=queries, pins=PIN_IDS * len(TITLES))
    sample(cfg, store)
    write_labels(store, cfg)
    return store


def neyman(folder, pilot=None):
    return config(folder, sample={"allocation": "neyman", "pilot": pilot and pilot.uri})


def test_neyman_reads_the_deviations_of_the_pilot(tmp_path, store, pilot):
    manifest = sample(neyman(tmp_path, pilot), store)
    assert manifest.info["deviations"]["overall"] > 0
    assert "allocation_note" not in manifest.info
    assert manifest.inputs["soft_labels"] == read_manifest(pilot, "label").output("soft_labels").content_hash


def test_neyman_without_a_pilot_is_proportional_and_says_so(tmp_path, store):
    info = sample(neyman(tmp_path), store).info
    assert "names no run" in info["allocation_note"] and "deviations" not in info


def test_own_labels_never_make_the_sample_again(tmp_path, store, pilot):
    """Else each `make run` would sample and label anew."""
    first = sample(neyman(tmp_path, pilot), store)
    write_labels(store, neyman(tmp_path, pilot))
    assert sample(neyman(tmp_path, pilot), store).created_at == first.created_at


def test_a_pilot_that_moves_makes_nothing_again(tmp_path, store, pilot):
    first = sample(neyman(tmp_path, pilot), store)
    moved = (tmp_path / "pilot" / "out").rename(tmp_path / "elsewhere")
    assert sample(neyman(tmp_path, Storage(str(moved))), store).created_at == first.created_at


def test_a_pilot_with_other_labels_samples_again(tmp_path, store, pilot):
    first = sample(neyman(tmp_path, pilot), store)
    sample(config(tmp_path / "pilot", sample={"num_pairs": 8}), pilot)
    write_labels(pilot, config(tmp_path / "pilot"))
    assert sample(neyman(tmp_path, pilot), store).fingerprint != first.fingerprint


def test_a_run_cannot_be_its_own_pilot(tmp_path, store):
    with pytest.raises(UserError, match="another run"):
        sample(neyman(tmp_path, Storage(f"{store.uri}/")), store)


def test_an_unfinished_pilot_is_refused(tmp_path, store):
    with pytest.raises(UserError, match="no finished sample stage"):
        sample(neyman(tmp_path, Storage(str(tmp_path / "none"))), store)


def test_a_pilot_whose_labels_are_of_an_older_sample_is_refused(tmp_path, store, pilot):
    """Its probabilities and its labels would belong to different draws."""
    sample(config(tmp_path / "pilot", sample={"num_pairs": 8}), pilot)
    with pytest.raises(UserError, match="older sample"):
        sample(neyman(tmp_path, pilot), store)


def test_a_log_partitioned_by_day_is_read(tmp_path):
    """Hive's folders, one per day: the adapter reads all files below the folder, or those that a glob names."""
    for day in (1, 2):
        folder = tmp_path / "log" / f"date=2024-01-0{day}"
        folder.mkdir(parents=True)
        row = {"event_id": [f"e{day}"], "timestamp": [datetime(2024, 1, day, tzinfo=UTC)], "query": ["bag"]}
        table = fill(row | {"locale": ["en-US"], "pin_id": ["p2"], "action": ["click"]}, SEARCH_LOG)
        pq.write_table(table, folder / "part.parquet")
        (folder / "_SUCCESS").touch()

    def events(path):
        source = {"adapter": "table", "path": str(tmp_path / "log") + path}
        cfg = config(tmp_path, ingest={"pins": {"adapter": "table", "path": "unused.csv"}, "search_log": source})
        tables, _ = read_source(open_source(cfg, "search_log"))
        return sorted(event for table in tables for event in table["event_id"].to_pylist())

    assert events("") == ["e1", "e2"]
    assert events("/date=2024-01-02") == ["e2"]
    assert events("/date=2024-01-*/*.parquet") == ["e1", "e2"]
