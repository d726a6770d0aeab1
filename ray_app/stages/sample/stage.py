"""Choose the pairs that the teacher labels. One process: 26,000 pairs take seconds, millions minutes."""

from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.columns import matrix_column, matrix_or_zero
from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.locales import UNKNOWN
from ray_app.base.schemas import SEARCH_LOG
from ray_app.base.storage import Storage
from ray_app.base.text import TEXT_VERSION, normalize_query, render_pin_texts, stem_tokens
from ray_app.cluster.catalogue import CatalogueTables, WholeMatch
from ray_app.cluster.encoders import zero_shot_tower
from ray_app.cluster.retrain import RetrainPolicy
from ray_app.features.bm25 import Bm25Index
from ray_app.features.neighbors import top_neighbors
from ray_app.features.product_types import find_product_types
from ray_app.features.query_table import QueryTable
from ray_app.sources.held_out import HeldOut
from ray_app.stages.sample.draw import sample_pairs
from ray_app.stages.sample.effective_size import describe_weights
from ray_app.stages.sample.pair_sources import SOURCES, NearestPins
from ray_app.stages.sample.pilot import Deviations, pilot_outputs, read_deviations
from ray_app.stages.sample.population import ENGAGED_ACTIONS
from ray_app.stages.sample.public_queries import public_queries
from ray_app.stages.sample.trending import Trending, find_trending
from ray_app.stages.sample.window import Window
from ray_app.tables.manifest import Manifest, Output, read_manifest, read_output, require_output
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 3
_MOST_TRENDING = 20  # listed in the manifest


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `pairs`, and `public_queries`, those of the log that others may be shown. The manifest's info has the strata, the counts by source, and notes on what could not be as asked.

    With a window only its events are sampled. Queries of `evaluate.human_labels` are left out like those of the test split. An earlier run's labels are inputs, that run's place is not a setting.
    """
    needed = {
        "search_log": "ingest", "human_labels": "ingest", "pin_texts": "enrich", "splits": "train_teacher",
        "zero_shot_pins": "zero_shot", "zero_shot_queries": "zero_shot",
    }  # fmt: skip
    inputs = {name: require_output(store, stage, name) for name, stage in needed.items()}
    pilot = Storage(cfg.sample.pilot) if cfg.sample.pilot else None
    pilot_tables = pilot_outputs(pilot, store) if pilot else []
    judged = HeldOut.of(cfg)
    stage = Stage(
        name="sample",
        version=VERSION,
        inputs=[*inputs.values(), *pilot_tables, *judged.inputs],
        recipe=[
            cfg.sample.model_copy(update={"pilot": None}), cfg.pin_text, cfg.seed, TEXT_VERSION,
            cfg.enrich.min_clients, cfg.enrich.count_events_without_client,
        ],
        compute=partial(_sample, inputs=inputs, judged=judged, pilot=pilot, pilot_tables=pilot_tables),
        retrain_policy=RetrainPolicy.of(cfg, inputs["pin_texts"], "pin_texts", "zero_shot_pins"),
    )  # fmt: skip
    return run_stage(stage, cfg, store)


def _sample(
    run: StageRun, inputs: dict[str, Output], judged: HeldOut, pilot: Storage | None, pilot_tables: list[Output]
) -> StageResult:
    cfg, store = run.cfg, run.store
    log_table = read_output(store, inputs["search_log"], SEARCH_LOG.names)
    pins = read_output(store, inputs["pin_texts"])
    labels = read_output(store, inputs["human_labels"], ["query", "locale"])
    public = public_queries(judged.past(log_table), cfg.enrich)  # from the complete past log: one day has few clients
    shown = set(public["query"].to_pylist())
    log_table, trending, seed, info = _daily(cfg, log_table, _present(store), shown)
    deviations = read_deviations(pilot, pilot_tables) if pilot else None
    info |= _describe_allocation(cfg, deviations)
    pin_ids = pins["pin_id"].to_pylist()
    held_out, labelled = split_roles(read_output(store, inputs["splits"]), labels)
    # What the catalogue calls its things is what people search for: the log of a young shop has few such queries.
    min_pins = cfg.sample.product_type_min_pins
    kinds = product_type_queries(pins, min_pins) if min_pins else set()
    boosts = dict.fromkeys(kinds, cfg.sample.product_type_boost) | dict.fromkeys(
        labelled, cfg.sample.labelled_query_boost
    )
    query_embeddings = _query_vectors(cfg, store, read_output(store, inputs["zero_shot_queries"]), kinds)
    neighbors = zero_shot_neighbors(read_output(store, inputs["zero_shot_pins"]), query_embeddings)
    pairs, strata = sample_pairs(
        log_table,
        pin_ids,
        # Stems: this is for finding pins, not the BM25 baseline.
        Bm25Index.build(render_pin_texts(pins, cfg.pin_text), tokenizer=stem_tokens),
        neighbors,
        cfg.sample,
        seed,
        excluded_queries=held_out | judged.queries,
        extra_queries=boosts,
        trending={(found.query, found.locale) for found in trending},
        deviations=deviations,
    )
    run.write_table("pairs", pairs)
    queries = pairs["query"].unique().sort().to_pylist()
    rows = pc.index_in(pa.array(queries, pa.string()), value_set=query_embeddings["query"])
    match = WholeMatch(CatalogueTables.of(cfg, store))(queries)
    run.write_table(
        "queries", QueryTable.of(queries, matrix_or_zero(query_embeddings["embedding"].take(rows)), match).table
    )
    run.write_table("public_queries", public)
    by_source = {source: pc.sum(pc.equal(pairs["source"], source)).as_py() or 0 for source in SOURCES}
    info |= {
        "strata": strata,
        "num_product_types": len(kinds),
        "num_by_source": by_source,
        "num_queries": len(set(pairs["query"].to_pylist())),
        **describe_weights(1.0 / pairs["inclusion_prob"].to_numpy()),
    }
    if note := source_note(log_table, pin_ids):
        info["source_note"] = note
    # Sampling makes rows, it maps none: what comes in is what was drawn.
    counts = {"rows_in": pairs.num_rows, "rows_out": pairs.num_rows, "rows_quarantined": 0}
    counts |= {"log_rows": log_table.num_rows, "public_queries": public.num_rows}
    return StageResult(counts=counts, info=info)


def _present(store: Storage) -> datetime:
    """Time at which the log was read, as recorded by ingest.

    Raises:
        UserError: an older version, which did not note it, read the log.
    """
    ingest = read_manifest(store, "ingest")
    assert ingest is not None, "its outputs are inputs"
    if "present" not in ingest.info:
        raise UserError(
            "sample: ingest of an older version did not note when it read the search log; run "
            "`python pipelines/ingest.py --config ...` again"
        )
    return datetime.fromisoformat(ingest.info["present"])


def _daily(
    cfg: Config, log: pa.Table, now: datetime, public: Collection[str]
) -> tuple[pa.Table, list[Trending], int, dict[str, Any]]:
    """The part of the log that is sampled, its trending queries, the seed, and what the manifest says about them.

    It names the `public` ones only: the report shows them to its readers.
    """
    window = Window.of(cfg.sample, log, now)
    if window is None:
        return log, [], cfg.seed, {}
    inside, before = window.split(log)
    trending = find_trending(inside, before)
    info: dict[str, Any] = {
        "window": {"since": _iso(window.since), "until": _iso(window.until), "num_before": before.num_rows},
        "num_trending": len(trending),
        "trending": [asdict(found) for found in trending if found.query in public][:_MOST_TRENDING],
    }
    if not before.num_rows:
        info["window_note"] = "the log has no event before the window, so no query can be called trending"
    return inside, trending, window.seed(cfg.seed), info


def _describe_allocation(cfg: Config, deviations: Deviations | None) -> dict[str, Any]:
    info: dict[str, Any] = {"allocation": cfg.sample.allocation}
    if deviations is not None:
        info["deviations"] = asdict(deviations)
    elif cfg.sample.allocation == "neyman":
        reason = "the pilot has no labels of the log that differ" if cfg.sample.pilot else "sample.pilot names no run"
        info["allocation_note"] = f"{reason}: the strata's deviations were taken as equal, so rates are proportional"
    return info


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def product_type_queries(pin_texts: pa.Table, min_pins: int) -> set[tuple[str, str]]:
    """(phrase, locale) of each kind of thing that at least `min_pins` titles name."""
    locales = pin_texts["locale"].to_pylist()
    return {
        (pin.phrase, locales[pin.row] or UNKNOWN)
        for pin in find_product_types(pin_texts["title"].to_pylist(), min_pins)
    }


def _query_vectors(cfg: Config, store: Storage, known: pa.Table, kinds: set[tuple[str, str]]) -> pa.Table:
    """`known` (query, embedding) and the kinds' phrases."""
    phrases = sorted({phrase for phrase, _ in kinds} - set(known["query"].to_pylist()))
    if not phrases:
        return known
    vectors = zero_shot_tower(cfg, store, "query").encode(phrases)
    return pa.concat_tables(
        [known, pa.table({"query": phrases, "embedding": matrix_column(vectors)}, schema=known.schema)]
    )


def split_roles(splits: pa.Table, labels: pa.Table) -> tuple[set[str], set[tuple[str, str]]]:
    """Queries held out for evaluation, and the (query, locale) of the training queries, from `train_teacher`'s splits."""
    split_of = {
        normalize_query(query): split
        for query, split in zip(splits["query"].to_pylist(), splits["split"].to_pylist(), strict=True)
    }
    held_out = {query for query, split in split_of.items() if split == "test"}
    labelled = zip(labels["query"].to_pylist(), labels["locale"].to_pylist(), strict=True)
    wanted = {(normalize_query(q), locale) for q, locale in labelled if split_of.get(normalize_query(q)) == "train"}
    return held_out, wanted


def zero_shot_neighbors(pins: pa.Table, queries: pa.Table) -> NearestPins:
    """Nearest pins by the zero-shot vectors of `zero_shot_pins` and `zero_shot_queries`.

    A query without a vector has no neighbours (row -1).
    """
    pin_vectors, query_vectors = matrix_or_zero(pins["text_embedding"]), matrix_or_zero(queries["embedding"])
    row_of = {query: row for row, query in enumerate(queries["query"].to_pylist())}

    def nearest(texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array([row_of.get(text, -1) for text in texts], np.int64)
        # Queries and pins whose vector is zero are near nothing.
        usable = (rows >= 0) & np.any(query_vectors, axis=1)[rows] if len(query_vectors) else rows >= 0
        indices, cosines = np.full((len(texts), k), -1, np.int64), np.zeros((len(texts), k), np.float32)
        found, scores = top_neighbors(query_vectors[rows[usable]], pin_vectors, k)
        has_text = np.any(pin_vectors, axis=1)
        indices[usable, : found.shape[1]] = np.where(has_text[found], found, -1)
        cosines[usable, : found.shape[1]] = scores
        return indices, cosines

    return nearest


def source_note(log: pa.Table, pin_ids: Collection[str]) -> str | None:
    """Note on the log for readers of the manifest; None: it was used as intended."""
    known = pc.is_in(log["pin_id"], value_set=pa.array(pin_ids, pa.string()))
    shown = log.filter(pc.and_(known, pc.is_valid(log["pin_id"])))
    if not log.num_rows:
        return "there is no search log: all pairs are from BM25 and embedding retrieval of the labelled queries, and random"
    if not shown.num_rows:
        return "no row of the search log names a pin of the catalogue: its queries were used, with pairs from BM25 and embedding retrieval, and random"
    if not pc.any(pc.is_in(shown["action"], value_set=pa.array(ENGAGED_ACTIONS))).as_py():
        return "the search log has no engagement (click, long_click, save): its pairs are stratified by position only"
    return None
