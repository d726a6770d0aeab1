"""Tables in buckets, written by tasks of Ray Data, must hold what one process writes: same rows, same errors."""

import json
import os
import signal

import numpy as np
import pyarrow as pa
import pytest
import ray
from tiny_config import tiny_config

from ray_app.base.errors import UserError
from ray_app.base.hashing import bucket_of
from ray_app.base.storage import Storage
from ray_app.cluster.buckets import map_buckets, shuffle
from ray_app.stages.ingest import stage
from ray_app.tables.buckets import read_bucket
from ray_app.tables.manifest import read_output

FILES = {
    "a.csv": "pin_id,title\np3,from a\np1,from a\n",
    "b.csv": "pin_id,title\np1,from b\np2,from b\n,no id\n",
    "c.csv": "pin_id,title\np4,from c\n",
}


ONE = {"num_buckets": 1, "bucket_bytes": 10**9}
MANY = {"num_buckets": 4, "bucket_bytes": 100}


def config(folder, output, log=None, tables=ONE, **ingest):
    pins = {"adapter": "table", "path": str(folder)}
    if log:
        ingest["search_log"] = {"adapter": "table", "path": str(log)}
    ingest = {"pins": pins, "limits": {"max_error_rate": 0.5}, **ingest}
    return tiny_config(output, ingest=ingest, tables=tables)


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "pins"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def run(sources, output, **ingest):
    """Manifest and store."""
    store = Storage(str(output))
    return stage.run(config(sources, output, **ingest), store), store


def test_buckets_hold_the_rows_of_the_whole_and_find_what_is_compared_across_files(ray_cluster, sources, tmp_path):
    """Duplicates of other files, unknown pins, broken rows: as in one part, row by row."""
    (tmp_path / "log.csv").write_text(
        "event_id,timestamp,query,locale,pin_id,position,action\n"
        + "".join(f"e{i % 40},2026-01-01,q,en-US,p{i % 5},1,click\n" for i in range(50))
        + ",,,,,,\nonly,two\n"
    )
    found = {}
    for name, tables in (("one", ONE), ("many", MANY)):
        manifest, store = run(sources, tmp_path / name, log=tmp_path / "log.csv", tables=tables)
        read = {table: read_output(store, manifest.output(table)) for table in ("pins", "search_log", "quarantine")}
        keys = {"pins": "pin_id", "search_log": "event_id"}
        found[name] = manifest.counts, {t: rows.sort_by(keys[t]) if t in keys else rows for t, rows in read.items()}
        assert [manifest.output(table).num_buckets for table in keys] == [tables["num_buckets"]] * 2
        assert not store.list_files("tmp")
    assert found["many"][0] == found["one"][0]
    assert found["one"][0]["search_log_quarantined"] == 20  # 10 repeated, 8 of the unknown p0, 2 broken
    for table, rows in found["one"][1].items():
        assert sorted(map(str, found["many"][1][table].to_pylist())) == sorted(map(str, rows.to_pylist()))


def test_rows_are_in_the_bucket_of_their_pin_in_order(ray_cluster, sources, tmp_path):
    manifest, store = run(sources, tmp_path / "out", tables=MANY)
    pins = manifest.output("pins")
    found = [read_bucket(store, pins, number)["pin_id"].to_pylist() for number in range(4)]
    assert sorted(id_ for ids in found for id_ in ids) == ["p1", "p2", "p3", "p4"]
    for number, ids in enumerate(found):
        assert bucket_of(ids, 4).tolist() == [number] * len(ids) and ids == sorted(ids)
    folders = {path.split("/")[-2] for path in pins.files}
    assert folders == {f"bucket={number:04d}" for number in range(4)}


def test_a_duplicate_in_another_file_is_found(ray_cluster, sources, tmp_path):
    counts = run(sources, tmp_path / "out", tables=MANY)[0].counts
    assert (counts["pins_out"], counts["pins_quarantined"]) == (4, 2)


def test_parts_are_computed_in_ray_tasks_and_those_without_rows_too(ray_cluster):
    """Else the tests above compare one process with itself."""
    schema = pa.schema([("worker", pa.string())])

    def split(item):
        worker = ray.get_runtime_context().get_worker_id()
        return pa.table({"worker": [worker, worker]}, schema), np.array([0, 2])

    def reduce(number, rows):
        return number, ray.get_runtime_context().get_worker_id(), rows["worker"].to_pylist()

    here = ray.get_runtime_context().get_worker_id()
    found = shuffle(["a", "b"], split, reduce, 4, schema)
    assert [number for number, _, _ in found] == [0, 1, 2, 3]
    assert [len(workers) for _, _, workers in found] == [2, 0, 2, 0]
    assert here not in {found[0][1], found[2][1], *found[0][2]}
    assert here not in map_buckets(lambda _: ray.get_runtime_context().get_worker_id(), [3, 5])


def test_the_error_of_a_task_is_one_line_and_a_dead_task_is_repeated(ray_cluster, tmp_path):
    def fail(number):
        raise UserError(f"bucket {number} is damaged; run ingest again")

    with pytest.raises(UserError, match=r"^bucket [12] is damaged; run ingest again$"):
        map_buckets(fail, [1, 2])

    def die_once(number):
        mark = tmp_path / str(number)
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert map_buckets(die_once, [1, 2]) == [1, 2]


@pytest.mark.parametrize("tables", [ONE, MANY], ids=["one", "many"])
def test_a_corrupt_file_is_a_one_line_user_error(ray_cluster, sources, tmp_path, tables):
    (sources / "d.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"^ingest.pins.path: .*d.parquet is corrupt[^\n]*$"):
        run(sources, tmp_path / "out", tables=tables)


def test_queries_and_events_of_different_files_meet_in_a_part(ray_cluster, sources, tmp_path):
    folder = tmp_path / "ubi"
    folder.mkdir()
    queries = [
        {"query_id": f"q{i}", "user_query": f"mug {i}", "timestamp": "2026-01-01T00:00:00Z",
         "query_response_object_ids": ["p1", "p2"]}
        for i in range(20)
    ]  # fmt: skip
    events = [
        {"action_name": "click", "query_id": f"q{i % 20}", "client_id": "c", "timestamp": "2026-01-01T00:00:01Z",
         "event_attributes": {"object": {"object_id": "p2"}}}
        for i in range(30)
    ]  # fmt: skip
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in queries))
    (folder / "b.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in events))
    found = []
    for name, tables in (("one", ONE), ("many", MANY)):
        ubi = {"adapter": "ubi", "path": str(folder), "actions": {"click": "click"}}
        manifest, store = run(sources, tmp_path / name, tables=tables, search_log=ubi)
        log = read_output(store, manifest.output("search_log")).sort_by("event_id").to_pylist()
        found.append((manifest.counts, log))
    assert found[0] == found[1]
    clicks = [row for row in found[0][1] if row["action"] == "click"]
    assert len(clicks) == 20 and all(row["query"].startswith("mug") and row["position"] == 2 for row in clicks)
