"""A store in which everything before the stages engagement and graph has run, without Ray and models.

Texts and queries become one-hot vectors: the first letter decides.
"""

import numpy as np
import pyarrow as pa

from ray_app.base.columns import matrix_column
from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.stages.corpus_statistics.stage import run as count_corpus
from ray_app.stages.enrich.stage import run as enrich
from ray_app.stages.ingest.stage import run as ingest
from ray_app.tables.manifest import read_manifest, read_output, require_output
from ray_app.tables.stage_run import StageRun

PINS = {"p1": "apple", "p2": "banana", "p3": "cherry", "p4": "date"}
LOG = [("apple", "p1", "click"), ("apple", "p1", "save"), ("banana", "p2", "impression"), ("banana", "p2", "click")]
BOARDS = [("b1", "p1", "Fruit"), ("b1", "p2", "Fruit"), ("b2", "p2", "Sweet")]


def vector(text):
    """One-hot (8,) of the first letter."""
    return np.eye(8, dtype=np.float32)[(ord(text[0].lower()) - ord("a")) % 8]


def build(folder, pins=PINS, log=LOG, boards=BOARDS, labelled=("zebra",), rows_per_file=100_000, images=(), **sections):
    """(config, store)."""
    texts = {
        "pins": "pin_id,title,image\n"
        + "".join(f"{pin},{title},{dict(images).get(pin, '')}\n" for pin, title in pins.items()),
        "boards": "board_id,pin_id,board_title\n" + "".join(",".join(row) + "\n" for row in boards),
        "search_log": "event_id,timestamp,query,locale,pin_id,action,client_id\n"
        + "".join(f"e{i},2024-01-01,{query},en-US,{pin},{action},c{i}\n" for i, (query, pin, action) in enumerate(log)),
        "human_labels": "query,locale,pin_id,rater_id,grade\n"
        + "".join(f"{query},en-US,p1,r1,1\n" for query in labelled),
    }
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    sources = {name: {"adapter": "table", "path": str(folder / f"{name}.csv")} for name in texts}
    models = {
        "train_teacher": {"base_model": "m"},
        "distill": {"base_model": "m"},
        "features": {"zero_shot_model": "m"},
    }
    cfg = Config.model_validate(
        {
            "output": str(folder / "out"),
            "ingest": sources,
            "tables": {"rows_per_file": rows_per_file},
            **models,
            **sections,
        }
    )
    store = Storage(cfg.output)
    ingest(cfg, store)
    enrich(cfg, store)
    zero_shot(cfg, store, {query for query, _, _ in log} | set(labelled))
    count_corpus(cfg, store)
    return cfg, store


def zero_shot(cfg, store, queries):
    """What the stage zero_shot leaves."""
    pin_texts = require_output(store, "enrich", "pin_texts")
    rows, queries = read_output(store, pin_texts), sorted(query.lower() for query in queries)
    texts = matrix_column(np.stack([vector(title) for title in rows["title"].to_pylist()]))
    run = StageRun("zero_shot", cfg, store, 1, settings=[], inputs=[pin_texts])
    run.write_table(
        "zero_shot_pins", pa.table({"pin_id": rows["pin_id"], "title_embedding": texts, "text_embedding": texts})
    )
    vectors = matrix_column(np.stack([vector(query) for query in queries]))
    run.write_table("zero_shot_queries", pa.table({"query": pa.array(queries, pa.string()), "embedding": vectors}))
    run.finish({"rows_out": rows.num_rows})


def ingested_by_an_older_version(cfg, store, *columns):
    """The tables of ingest without some columns, and without what its manifest says of the present."""
    outputs = read_manifest(store, "ingest").outputs.values()
    run = StageRun("ingest", cfg, store, 1, settings=[], inputs=[])
    for output in outputs:
        table = read_output(store, output)
        run.write_table(output.name, table.drop_columns([name for name in columns if name in table.column_names]))
    run.finish({"rows_out": 1})


def without_ray(monkeypatch, stage):
    """Let a stage call its training instead of sending it to Ray."""
    monkeypatch.setattr(stage, "run_task", lambda function, *args, torch_threads: function(*args))
