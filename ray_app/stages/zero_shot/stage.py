"""zero_shot: pin texts and queries -> embeddings of a pretrained bi-encoder that is not fine-tuned."""

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.columns import matrix_column
from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.base.text import TEXT_VERSION, normalize_query
from ray_app.cluster.encoders import CachedEncoder, title_and_text, zero_shot_tower
from ray_app.models.truncation import zero_shot_truncation
from ray_app.tables.manifest import Manifest, Output, read_output, require_output
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 2


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `zero_shot_pins` (pin_id, title_embedding, text_embedding) and `zero_shot_queries` (query, embedding)."""
    pin_texts = require_output(store, "enrich", "pin_texts")
    log = require_output(store, "ingest", "search_log")
    labels = require_output(store, "ingest", "human_labels")
    pin_tower, query_tower = zero_shot_tower(cfg, store, "pin"), zero_shot_tower(cfg, store, "query")
    stage = Stage(
        name="zero_shot",
        version=VERSION,
        inputs=[pin_texts, log, labels],
        recipe=[cfg.features, cfg.pin_text, pin_tower.recipe, query_tower.recipe, TEXT_VERSION],
        compute=partial(_embed, pin_texts=pin_texts, asked=[log, labels], pin_tower=pin_tower, query_tower=query_tower),
    )
    return run_stage(stage, cfg, store)


def _embed(
    run: StageRun, pin_texts: Output, asked: list[Output], pin_tower: CachedEncoder, query_tower: CachedEncoder
) -> StageResult:
    cfg, store = run.cfg, run.store
    pins = read_output(store, pin_texts)
    titles, texts = title_and_text(cfg, pins)
    known = pc.unique(pa.concat_tables([read_output(store, t, ["query"]) for t in asked])["query"])
    queries = sorted({normalize_query(query) for query in known.to_pylist()} - {""})
    pin_vectors, pin_counts = pin_tower.encode_counted([*titles, *texts])
    query_vectors, query_counts = query_tower.encode_counted(queries)
    title_vectors, text_vectors = np.split(pin_vectors, [len(titles)])
    run.write_table(
        "zero_shot_pins",
        pa.table(
            {
                "pin_id": pins["pin_id"],
                "title_embedding": matrix_column(title_vectors),
                "text_embedding": matrix_column(text_vectors),
            }
        ),
    )
    run.write_table(
        "zero_shot_queries",
        pa.table({"query": pa.array(queries, pa.string()), "embedding": matrix_column(query_vectors)}),
    )
    rows = len(pin_vectors) + len(query_vectors)
    return StageResult(
        counts={
            "rows_in": rows,
            "rows_out": rows,
            "computed": pin_counts.computed + query_counts.computed,
            "errors": pin_counts.errors + query_counts.errors,
        },
        info={
            "recipe": pin_tower.recipe,
            "query_recipe": query_tower.recipe,
            "truncation": zero_shot_truncation(cfg, pins),
        },
        device_sec=pin_counts.device_sec + query_counts.device_sec,
    )
