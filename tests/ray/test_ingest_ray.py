"""Files read by Ray tasks must give what one process gives: same tables, same order, same errors."""

import json

import pyarrow as pa
import pytest
import ray
from tiny_config import tiny_config

from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.cluster.shuffle import shuffle
from ray_app.stages.ingest import stage
from ray_app.tables.manifest import read_output

FILES = {
    "a.csv": "pin_id,title\np3,from a\np1,from a\n",
    "b.csv": "pin_id,title\np1,from b\np2,from b\n,no id\n",
    "c.csv": "pin_id,title\np4,from c\n",
}


def config(folder, output, log=None, **ingest):
    pins = {"adapter": "table", "path": str(folder)}
    if log:
        ingest["search_log"] = {"adapter": "table", "path": str(log)}
    return tiny_config(output, ingest={"pins": pins, "limits": {"max_error_rate": 0.5}, **ingest})


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


def test_files_on_ray_give_the_tables_of_one_process(ray_cluster, sources, tmp_path, monkeypatch):
    on_ray, _ = run(sources, tmp_path / "ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    here, _ = run(sources, tmp_path / "here")
    hashes = [{name: out.content_hash for name, out in m.outputs.items()} for m in (on_ray, here)]
    assert hashes[0] == hashes[1]


def test_parts_hold_the_rows_of_the_whole_and_find_what_is_compared_across_files(ray_cluster, sources, tmp_path):
    """Duplicates of other files, unknown pins, broken rows: as in one part, row by row."""
    (tmp_path / "log.csv").write_text(
        "event_id,timestamp,query,locale,pin_id,position,action\n"
        + "".join(f"e{i % 40},2026-01-01,q,en-US,p{i % 5},1,click\n" for i in range(50))
        + ",,,,,,\nonly,two\n"
    )
    found = {}
    for name, size in (("one", 10**9), ("many", 10)):
        manifest, store = run(sources, tmp_path / name, log=tmp_path / "log.csv", partition_bytes=size)
        tables = {table: read_output(store, manifest.output(table)) for table in ("pins", "search_log", "quarantine")}
        keys = {"pins": "pin_id", "search_log": "event_id"}
        found[name] = manifest.counts, {t: rows.sort_by(keys[t]) if t in keys else rows for t, rows in tables.items()}
        assert (manifest.info["parts"]["search_log"] > 10) == (name == "many")
    assert found["many"][0] == found["one"][0]
    assert found["one"][0]["search_log_quarantined"] == 20  # 10 repeated, 8 of the unknown p0, 2 broken
    for table, rows in found["one"][1].items():
        assert sorted(map(str, found["many"][1][table].to_pylist())) == sorted(map(str, rows.to_pylist()))


def test_a_duplicate_in_another_file_is_found(ray_cluster, sources, tmp_path):
    counts = run(sources, tmp_path / "out")[0].counts
    assert (counts["pins_out"], counts["pins_quarantined"]) == (4, 2)


def test_a_file_is_read_and_a_part_joined_in_a_ray_task(ray_cluster):
    """Else the tests above compare one process with itself."""

    def task(*_):
        return ray.get_runtime_context().get_task_id()

    def split(item):
        return [pa.table({"task": [task()]})] * 2

    def join(number, tables, shared):
        return {task(), *(t["task"][0].as_py() for t in tables)}

    tasks = shuffle(["a", "b"], split, join, 2)
    assert len(tasks[0] | tasks[1]) == 4 and None not in tasks[0]


def test_a_corrupt_file_is_a_one_line_user_error(ray_cluster, sources, tmp_path):
    (sources / "d.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"^ingest.pins.path: .*d.parquet is corrupt[^\n]*$"):
        run(sources, tmp_path / "out")


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
    for name, size in (("one", 10**9), ("many", 500)):
        ubi = {"adapter": "ubi", "path": str(folder), "actions": {"click": "click"}}
        manifest, store = run(sources, tmp_path / name, partition_bytes=size, search_log=ubi)
        log = read_output(store, manifest.output("search_log")).sort_by("event_id").to_pylist()
        found.append((manifest.counts, log))
    assert found[0] == found[1]
    clicks = [row for row in found[0][1] if row["action"] == "click"]
    assert len(clicks) == 20 and all(row["query"].startswith("mug") and row["position"] == 2 for row in clicks)
