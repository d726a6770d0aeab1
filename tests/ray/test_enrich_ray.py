"""Texts put together in parts must be those of one process: whatever file and part a pin's rows lie in."""

import pytest
from tiny_config import tiny_config

from ray_app.base.errors import UserError
from ray_app.base.storage import CorruptFileError, Storage
from ray_app.stages.enrich.stage import run as enrich
from ray_app.stages.ingest.stage import run as ingest
from ray_app.tables.manifest import read_output

NUM = 40


def write_sources(folder):
    saves = [f"b{i},p{i % NUM},{('Red Mugs', 'red mugs', 'RED mugs', 'Kitchen')[i % 7 % 4]}" for i in range(200)]
    events = [
        f"e{i},2026-01-{1 + i % 28:02d},query {i % 3} {i % NUM % 5},en-US,{f'p{i % NUM}' if i % 9 else ''},{'click' if i % 9 else 'impression'},c{i % 17}"
        for i in range(400)
    ]
    tables = {
        "pins": ["pin_id,title", *(f"p{i},thing {i}" for i in range(NUM))],
        "boards": ["board_id,pin_id,board_title", *saves],
        "search_log": ["event_id,timestamp,query,locale,pin_id,action,client_id", *events],
        "human_labels": ["query,locale,pin_id,rater_id,grade", "query 1 2,en-US,p3,r,4"],
    }
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return {name: {"adapter": "table", "path": str(folder / f"{name}.csv")} for name in tables}


def run(folder, name, num_buckets=1):
    tables = {"num_buckets": num_buckets, "bucket_bytes": 500 if num_buckets > 1 else 10**9}
    cfg = tiny_config(folder / name, ingest=write_sources(folder), enrich={"min_clients": 1}, tables=tables)
    store = Storage(cfg.output)
    ingest(cfg, store)
    return cfg, store, enrich(cfg, store)


def test_parts_say_of_each_pin_what_one_process_says(ray_cluster, tmp_path):
    _, store, whole = run(tmp_path, "one")
    _, other, parts = run(tmp_path, "many", num_buckets=4)
    tables = [read_output(s, m.output("pin_texts")).sort_by("pin_id") for s, m in ((store, whole), (other, parts))]
    assert tables[0].equals(tables[1])
    assert parts.counts == whole.counts
    assert parts.output("pin_texts").num_buckets == 4
    forms = {title for titles in tables[0]["board_titles"].to_pylist() for title in titles}
    assert len(forms & {"Red Mugs", "red mugs", "RED mugs"}) == 1, "the most frequent form over all pins is shown"


def test_a_file_that_another_took_the_place_of_is_noticed(ray_cluster, tmp_path):
    cfg, store, _ = run(tmp_path, "out", num_buckets=4)
    store.delete("manifests/enrich.json")
    path = next(path for path in store.list_files("tables/boards") if path.endswith("00000.parquet"))
    store.write_table(path, store.read_table(path).slice(1))
    with pytest.raises((CorruptFileError, UserError), match="was changed after it was written"):
        enrich(cfg, store)
