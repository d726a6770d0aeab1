"""zero_shot: pin texts and queries -> embeddings of a pretrained bi-encoder that is not fine-tuned."""

from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.columns import matrix_column, matrix_or_zero
from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.base.text import TEXT_VERSION, normalize_query
from ray_app.cluster.buckets import map_buckets
from ray_app.cluster.embedding import NO_TEXT
from ray_app.cluster.encoders import CachedEncoder, title_and_text_configs, zero_shot_tower
from ray_app.cluster.pin_texts import PinTexts
from ray_app.models.truncation import zero_shot_truncation
from ray_app.tables.buckets import bucketed_output, read_bucket, write_bucket
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Bucket, Manifest, Output, require_output
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 3


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
    texts = pin_tower.pin_texts(pin_texts, title_and_text_configs(cfg))
    pin_counts = pin_tower.work().compute(texts.wanted)
    folder = run.table_folder("zero_shot_pins")
    write = partial(_write_bucket, store, folder, texts, pin_tower.ledger, cfg.tables.rows_per_file)
    written = map_buckets(write, range(pin_texts.num_buckets))
    run.add_table(bucketed_output("zero_shot_pins", folder, (bucket for bucket, _ in written)))
    num_empty = sum(empty for _, empty in written)
    queries = sorted({query for table in asked for query in _queries(store, table)} - {""})
    query_vectors, query_counts = query_tower.encode_counted(queries)
    run.write_table(
        "zero_shot_queries",
        pa.table({"query": pa.array(queries, pa.string()), "embedding": matrix_column(query_vectors)}),
    )
    rows = pin_counts.wanted + len(query_vectors)
    return StageResult(
        counts={
            "rows_in": rows,
            "rows_out": rows,
            "computed": pin_counts.computed + query_counts.computed,
            "errors": pin_counts.errors - num_empty + query_counts.errors,
            "empty_texts": num_empty,
        },
        info={
            "recipe": pin_tower.recipe,
            "query_recipe": query_tower.recipe,
            "truncation": zero_shot_truncation(cfg, read_bucket(store, pin_texts, 0)),  # of many, a random sample
        },
        device_sec=pin_counts.device_sec + query_counts.device_sec,
    )


def _write_bucket(
    store: Storage, folder: str, texts: PinTexts, ledger: Ledger, rows_per_file: int, number: int
) -> tuple[Bucket, int]:
    """Write vectors of one bucket's pins, and count the empty texts; an empty text and one that failed have zeros."""
    keyed = texts.keyed(number)
    results = replace(ledger, num_buckets=texts.output.num_buckets).lookup(keyed["content_key"], number)
    # Distinct, as results are counted: title and text of a pin without either are one.
    empty = results["content_key"].filter(pc.fill_null(pc.equal(results["error"], NO_TEXT), False))
    found, num_empty = results["embedding"], len(empty.unique())
    half = keyed.num_rows // 2
    vectors = pa.table(
        {
            "pin_id": keyed["pin_id"][:half],
            "title_embedding": matrix_column(matrix_or_zero(found[:half])),
            "text_embedding": matrix_column(matrix_or_zero(found[half:])),
        }
    )
    return write_bucket(store, folder, number, vectors, rows_per_file), num_empty


def _queries(store: Storage, table: Output) -> set[str]:
    """Distinct normalised queries of a table."""

    def distinct(number: int) -> set[str]:
        raw = read_bucket(store, table, number, ["query"])["query"].unique()
        return {normalize_query(query) for query in raw.to_pylist()}

    return set().union(*map_buckets(distinct, range(table.num_buckets)))
