"""Tables in buckets as others read them, and who reads how much of them."""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import duckdb
import polars
import pytest
import yaml
from tiny_config import config_tree

from ray_app.base.config import load_config
from ray_app.base.storage import Storage
from ray_app.tables.manifest import read_manifest, read_output

NUM_BUCKETS, NUM_PINS = 64, 400
BY_PIN = {"ingest": ("pins", "boards", "search_log"), "caption": ("captions",), "enrich": ("pin_texts",)}
BY_PIN |= {"zero_shot": ("zero_shot_pins",), "sample": ("pairs",), "label": ("soft_labels",)}
STAGES = ["ingest", "caption", "enrich", "zero_shot", "corpus_statistics"]
LATER = ["train_teacher", "sample", "label", "distill"]


def write_sources(folder):
    rows = range(NUM_PINS)
    tables = {
        "pins": ["pin_id,title", *(f"p{i},thing {i % 50}" for i in rows)],
        "boards": ["board_id,pin_id,board_title", *(f"b{i % 20},p{i},Board {i % 3}" for i in rows)],
        "search_log": [
            "event_id,timestamp,query,locale,pin_id,action,client_id",
            *(f"e{i},2026-01-01,query {i % 7},en-US,p{i % NUM_PINS},click,c{i}" for i in range(3 * NUM_PINS)),
        ],
        "human_labels": [
            "query,locale,pin_id,rater_id,grade",
            *(f"query {i},en-US,p{i},r,{1 + i % 5}" for i in range(20, 30)),
        ],
    }
    for name, (header, *lines) in tables.items():
        (folder / name).mkdir()
        for i in range(min(3, len(lines))):
            (folder / name / f"{i}.csv").write_text("\n".join([header, *lines[i::3]]) + "\n")
    return {name: {"adapter": "table", "path": str(folder / name)} for name in tables}


def write_config(folder, encoder, num_buckets):
    """Of sources of a few files each."""
    train = {"epochs": 1, "batch_size": 32}
    tree = config_tree(
        folder / "out", ingest=write_sources(folder), features={"zero_shot_model": encoder},
        tables={"num_buckets": num_buckets, "bucket_bytes": 2000}, enrich={"min_clients": 1},
        train_teacher={"base_model": encoder, "max_tokens": 32, "train": train}, sample={"num_pairs": 300, "depth": 20},
        distill={"base_model": encoder, "dim": 8, "train": train, "feature_train": train},
    )  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


def program(name, *args):
    """Its last line."""
    path = Path(__file__).with_name(name)
    paths = os.pathsep.join([str(path.parents[2]), str(path.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, path, *map(str, args)], capture_output=True, text=True, timeout=900,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().rpartition("\n")[2]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, tiny_encoder):
    """(store, [(task, path of a file that it has read)]) of a run with many buckets."""
    folder = tmp_path_factory.mktemp("recorded")
    config = write_config(folder, tiny_encoder, NUM_BUCKETS)
    (folder / "notes").mkdir()
    program("recorded_reads.py", config, folder / "notes", *STAGES, *LATER, "embed")
    reads = [line.split() for notes in (folder / "notes").iterdir() for line in notes.read_text().splitlines()]
    return Storage(load_config(config).output), [(task, path) for task, path in reads]


def test_no_process_holds_a_table(recorded):
    """A loop over all rows in one process, on the driver above all, would work in every other test and end at 25 million pins."""
    store, reads = recorded
    bucketed = {
        path: (table, number)
        for stage, tables in BY_PIN.items()
        for table in tables
        for number, bucket in enumerate(read_manifest(store, stage).output(table).buckets)
        for path in bucket.files
    }
    assert len(bucketed) == 8 * NUM_BUCKETS
    read_by = defaultdict(set)
    for task, path in reads:
        if path in bucketed:
            read_by[task, bucketed[path][0]].add(bucketed[path][1])
    assert {table for _, table in read_by} >= {"pins", "boards", "search_log", "pin_texts"}, "the reads are noted"
    driver = {table: len(numbers) for (task, table), numbers in read_by.items() if task == "driver"}
    assert max(driver.values(), default=0) <= 2, (
        "one bucket is done here: of the pins of few labels, of texts to measure truncation"
    )
    # Ray's shuffle hashes the buckets' numbers again, so one of its tasks may get some of them, one after the other.
    too_many = {key: len(numbers) for key, numbers in read_by.items() if len(numbers) > 6}
    assert not too_many


def test_rows_of_all_buckets_are_there(recorded):
    store, _ = recorded
    for stage, tables in BY_PIN.items():
        for table in tables:
            output = read_manifest(store, stage).output(table)
            assert output.num_buckets == NUM_BUCKETS
            assert read_output(store, output).num_rows == output.rows == sum(bucket.rows for bucket in output.buckets)
    assert read_manifest(store, "zero_shot").output("zero_shot_pins").rows == NUM_PINS
    made = {name: read_manifest(store, name).counts for name in ("sample", "label", "distill", "embed")}
    assert 200 < made["sample"]["rows_out"] == made["label"]["rows_out"] <= 300
    assert (made["label"]["errors"], made["embed"]["rows_out"]) == (0, NUM_PINS)
    assert made["distill"]["rows_out"] >= made["label"]["rows_out"]


def test_duckdb_and_polars_read_a_table_with_one_line(recorded):
    store, _ = recorded
    output = read_manifest(store, "enrich").output("pin_texts")
    folder = store.full_path(output.path)
    by_bucket = {number: bucket.rows for number, bucket in enumerate(output.buckets) if bucket.rows}
    found = duckdb.sql(
        f"select bucket, count(*) from read_parquet('{folder}/**/*.parquet', hive_partitioning=true) group by 1"
    ).fetchall()
    assert {int(bucket): rows for bucket, rows in found} == by_bucket
    frame = polars.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True).collect()
    assert {int(bucket): rows for bucket, rows in frame.group_by("bucket").len().iter_rows()} == by_bucket
    assert sorted(frame["pin_id"].to_list()) == sorted(f"p{i}" for i in range(NUM_PINS))


@pytest.fixture(scope="module")
def on_one_node(tmp_path_factory, tiny_encoder):
    config = write_config(tmp_path_factory.mktemp("one"), tiny_encoder, 4)
    return config, json.loads(program("stages_on_nodes.py", config, 1, *STAGES, *LATER))


@pytest.mark.parametrize(
    ("num_nodes", "kill"),
    [(2, None), (3, "tmp/ingest"), (2, "tables/pin_texts"), (2, "tmp/missing")],
    ids=["two nodes", "one of three dies in ingest", "one of two dies in enrich", "one of two dies in zero_shot"],
)
def test_the_number_of_nodes_and_the_death_of_one_change_no_byte(tmp_path, tiny_encoder, on_one_node, num_nodes, kill):
    """Rows come in another order then, and tasks are run again. The object stores are small, 256 MB each."""
    config = write_config(tmp_path, tiny_encoder, 4)
    killing = ["--kill", kill] if kill else []
    found = json.loads(program("stages_on_nodes.py", config, num_nodes, *STAGES, *killing))
    assert found == {name: on_one_node[1][name] for name in STAGES}


@pytest.mark.parametrize(
    "kill", ["tmp/sample", "tmp/examples"], ids=["a node dies in sample", "a node dies in distill"]
)
def test_the_death_of_a_node_changes_no_pair_no_label_and_no_example(tmp_path, on_one_node, kill):
    """Of the run before, with what is made again deleted."""
    config, expected = on_one_node
    tree = yaml.safe_load(config.read_text())
    shutil.copytree(tree["output"], tmp_path / "out")
    for name in ("sample", "label", "distill"):
        (tmp_path / f"out/manifests/{name}.json").unlink()
    for made in (
        "tables/pairs",
        "tables/queries",
        "tables/soft_labels",
        "models/student",
        "models/feature_only_student",
    ):
        shutil.rmtree(tmp_path / "out" / made)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree | {"output": str(tmp_path / "out")}))
    found = json.loads(program("stages_on_nodes.py", tmp_path / "config.yaml", 2, *LATER, "--kill", kill))
    assert found == {name: expected[name] for name in LATER}
