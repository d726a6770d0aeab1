"""Caption all pictures on Ray Data, through the ledger: each distinct picture once, whatever pins show it."""

import logging
import time
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import CaptionConfig, Config
from ray_app.base.errors import UserError
from ray_app.base.schemas import CAPTION_RESULTS, CAPTIONS
from ray_app.base.storage import Storage
from ray_app.cluster.cost_estimate import Held, Quote, cost_of, make_quote, timing
from ray_app.cluster.executor import check_error_rate
from ray_app.stages.caption.chain import stream_answers
from ray_app.stages.caption.clean import STEPS
from ray_app.stages.caption.engine import caption_recipe
from ray_app.stages.caption.image_index import Pictures, find_pictures, forget_hashes, stat_fingerprint
from ray_app.stages.caption.results import Done, clean_answers, join_captions
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Manifest, Output, read_output, require_output
from ray_app.tables.stage_run import StageRun

logger = logging.getLogger(__name__)

VERSION = 1


def run(cfg: Config, store: Storage) -> Manifest:
    """Caption what is new and write the table `captions`."""
    pins = require_output(store, "ingest", "pins")
    if cfg.caption.model is None:
        return _run_without_model(cfg, store, pins)
    recipe = caption_recipe(cfg.caption)
    images = read_output(store, pins, ["image"])["image"].unique().to_pylist()
    run = StageRun(
        "caption", cfg, store, VERSION,
        settings=[recipe, cfg.caption.limits, stat_fingerprint(images, cfg.caption.limits)], inputs=[pins],
    )  # fmt: skip
    if (finished := run.finished) is not None and not finished.counts["unreadable_urls"]:
        return finished  # a server that was down may be up again, and tells nothing by itself
    pictures = find_pictures(cfg.caption, store, pins, recipe)
    ledger = Ledger(store, "captions", recipe, CAPTION_RESULTS)
    missing = _missing(pictures, ledger)
    done = caption_missing(cfg, store, ledger, missing)
    _forget_changed_urls(pictures, done)
    captions, counts = join_captions(pictures, ledger.scan().table, done)
    check_error_rate(counts, cfg.caption.max_error_rate, "captions")
    run.write_table("captions", captions)
    return run.finish(
        counts={
            "rows_in": pins.rows,
            "rows_out": captions.num_rows,
            "pins_without_image": pictures.num_without,
            "unique_images": counts.unique,
            "read": pictures.num_read,
            "computed": done.computed,
            "errors": counts.errors,
            "unreadable_urls": pictures.num_unreadable_urls,
        }
        | {f"cleaned_{step}": done.cleaned[step] for step in STEPS},
        info=_info(cfg, recipe, done),
        device_sec=done.timing.engine_sec * cfg.caption.num_actors,
    )


def plan(cfg: Config, store: Storage) -> Quote:
    """Caption a small random sample, and quote the rest. The sample's captions are kept, so nothing is wasted.

    Pictures that were never hashed are read for it: without that nobody knows how many distinct ones there are.

    Raises:
        UserError: no model is set.
    """
    if cfg.caption.model is None:
        raise UserError("caption.model is not set: there is nothing to plan")
    recipe = caption_recipe(cfg.caption)
    pictures = find_pictures(cfg.caption, store, require_output(store, "ingest", "pins"), recipe)
    ledger = Ledger(store, "captions", recipe, CAPTION_RESULTS)
    missing = _missing(pictures, ledger)
    # Keys are hashes: the first ones in their order are a random sample.
    sample = missing.take(pc.sort_indices(missing["content_key"])[: cfg.caption.plan_rows])
    done = caption_missing(cfg, store, ledger, sample)
    _forget_changed_urls(pictures, done)
    remaining = missing.num_rows - sample.num_rows
    decoding = cfg.caption.num_decoders / done.decode_sec if done.decode_sec else float("inf")
    return make_quote(
        "pictures", done.timing, done.failed + len(done.transient), remaining, _held(cfg.caption), cfg.prices,
        feeder=("decoding", decoding),
    )  # fmt: skip


def caption_missing(cfg: Config, store: Storage, ledger: Ledger, missing: pa.Table) -> Done:
    """Caption and commit pictures (of schema SOURCES). Ray is not touched when there are none.

    The driver commits `rows_per_block` at a time as they come in, whatever ends the job: a kill costs what was not
    committed, an exception nothing that was answered.
    """
    done = Done()
    if not missing.num_rows:
        return done
    began = time.time()
    waiting: list[pa.Table] = []
    spans: list[tuple[float, float]] = []
    decode_sec: list[float] = []
    try:
        for answers in stream_answers(cfg.caption, store, missing):
            decode_sec += answers["decode_sec"].drop_null().to_pylist()
            answered = answers.filter(pc.is_valid(answers["started"]))
            spans += zip(answered["started"].to_pylist(), answered["finished"].to_pylist(), strict=True)
            waiting.append(clean_answers(answers, cfg.caption, done))
            if sum(block.num_rows for block in waiting) >= cfg.caption.rows_per_block:
                _commit(ledger, waiting)
    finally:
        _commit(ledger, waiting)
    done.timing = timing(len(spans), spans, began, time.time())
    done.decode_sec = sum(decode_sec) / len(decode_sec) if decode_sec else 0.0
    logger.info("captioned %d pictures, %.1f/s", done.computed, done.timing.rows_per_sec)
    return done


def _held(cfg: CaptionConfig) -> Held:
    return Held(gpus=cfg.num_actors * cfg.num_gpus, cpus=cfg.num_actors * cfg.num_cpus + cfg.num_decoders)


def _missing(pictures: Pictures, ledger: Ledger) -> pa.Table:
    missing = ledger.missing(pictures.sources)
    logger.info("captions: %d distinct pictures, %d to caption", pictures.sources.num_rows, missing.num_rows)
    return missing


def _commit(ledger: Ledger, waiting: list[pa.Table]) -> None:
    block = pa.concat_tables(waiting) if waiting else CAPTION_RESULTS.empty_table()
    waiting.clear()
    if block.num_rows:
        ledger.commit(block)


def _forget_changed_urls(pictures: Pictures, done: Done) -> None:
    changed = [pictures.hash_keys[key] for key in done.transient if key in pictures.hash_keys]
    if changed:
        forget_hashes(pictures.hashes, changed)


def _info(cfg: Config, recipe: str, done: Done) -> dict[str, object]:
    cost = cost_of(done.timing.wall_sec, _held(cfg.caption), cfg.prices)
    return {
        "recipe": recipe,
        "engine": cfg.caption.engine,
        "images_per_sec": round(done.timing.rows_per_sec, 2),
        "timing": {name: round(value, 4) for name, value in asdict(done.timing).items()},
        "cost": {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(cost).items()},
    }


def _run_without_model(cfg: Config, store: Storage, pins: Output) -> Manifest:
    """No model: the same table with nothing in it, so that later stages need not know."""
    run = StageRun("caption", cfg, store, VERSION, settings=[None], inputs=[pins])
    if (finished := run.finished) is not None:
        return finished
    parts = []
    for part in pins.files:
        table = store.read_table(part, ["pin_id", "image", "image_bytes"])
        ids = table.filter(pc.or_(pc.is_valid(table["image"]), pc.is_valid(table["image_bytes"])))["pin_id"]
        nothing = pa.nulls(len(ids), pa.string())
        parts.append(pa.table([ids, nothing, nothing, nothing], schema=CAPTIONS))
    captions = pa.concat_tables(parts)
    run.write_table("captions", captions)
    rows = captions.num_rows
    counts = {
        "rows_in": pins.rows,
        "rows_out": rows,
        "pins_without_image": pins.rows - rows,
        "computed": 0,
        "errors": 0,
    }
    return run.finish(counts=counts, info={"engine": None})
