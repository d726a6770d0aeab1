"""caption: the pictures of pins -> `captions`, each distinct picture once, whatever pins show it."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.config import CaptionConfig, Config
from ray_app.base.errors import UserError
from ray_app.base.schemas import CAPTION_RESULTS, CAPTIONS
from ray_app.base.storage import Storage
from ray_app.cluster.buckets import map_buckets, shuffle
from ray_app.cluster.cost_estimate import CostEstimate
from ray_app.cluster.executor import LedgerCounts, ModelWork, check_error_rate
from ray_app.stages.caption.chain import caption_chain, caption_pool, cut_jobs
from ray_app.stages.caption.clean import STEPS
from ray_app.stages.caption.engine import caption_recipe
from ray_app.stages.caption.image_files import stat_fingerprint
from ray_app.stages.caption.image_index import find_images
from ray_app.stages.caption.results import CAPTIONED, captions_of_pins, with_captions
from ray_app.tables.buckets import bucketed_output, read_bucket, write_bucket
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Bucket, Manifest, Output, require_output
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 1


def run(cfg: Config, store: Storage) -> Manifest:
    """Caption what is new and write the table `captions`."""
    pins, caption = require_output(store, "ingest", "pins"), cfg.caption
    if caption.model is None:
        stage = Stage(
            name="caption", version=VERSION, inputs=[pins], recipe=[None], compute=partial(_without_model, pins=pins)
        )
        return run_stage(stage, cfg, store)
    files = map_buckets(partial(stat_fingerprint, store, pins, caption.limits, Path.cwd()), range(pins.num_buckets))
    stage = Stage(
        name="caption",
        version=VERSION,
        inputs=[pins],
        recipe=[caption_recipe(caption), caption.limits, *files],
        compute=partial(_caption, pins=pins),
        # A server that was down may be up again, and tells nothing by itself.
        still_valid=lambda finished: not finished.counts["unreadable_urls"],
    )
    return run_stage(stage, cfg, store)


def caption_work(caption: CaptionConfig, store: Storage) -> ModelWork:
    """Model work of captioning: ledger, workers, blocks."""
    return ModelWork(
        noun="pictures",
        ledger=Ledger(store, "captions", caption_recipe(caption), CAPTION_RESULTS),
        pool=caption_pool(caption),
        chain=partial(caption_chain, caption, store),
        rows_per_block=caption.rows_per_block,
        cut=partial(cut_jobs, batch_size=caption.batch_size, num_decode_tasks=caption.num_decode_tasks),
        max_error_rate=caption.max_error_rate,
    )


def estimate_cost(cfg: Config, store: Storage) -> CostEstimate:
    """Caption a small random sample, and quote the rest. The sample's captions are kept, so nothing is wasted.

    Pictures that were never hashed are read for it: without that nobody knows how many distinct ones there are.

    Raises:
        UserError: no model is set.
    """
    if cfg.caption.model is None:
        raise UserError("caption.model is not set: there is nothing to plan")
    work, pins = caption_work(cfg.caption, store), require_output(store, "ingest", "pins")

    def decoding(counts: LedgerCounts) -> tuple[str, float]:
        per_picture = counts.counters["decode_sec"] / max(counts.timing.rows, 1)
        return "decoding", cfg.caption.num_decode_tasks / per_picture if per_picture else float("inf")

    with find_images(cfg.caption, store, pins, work.ledger.recipe) as images:
        wanted = images.wanted(by_key=True)
        estimate, counts = work.estimate_cost(wanted, cfg.caption.cost_sample_rows, cfg.prices, decoding)
        images.forget_changed_urls(counts.transient)
    return estimate


def retry_errors(cfg: Config, store: Storage) -> int:
    """Forget the captions that failed, so that the next run tries them again; returns how many."""
    return caption_work(cfg.caption, store).ledger.drop_errors()


def _caption(run: StageRun, pins: Output) -> StageResult:
    cfg, store, work = run.cfg, run.store, caption_work(run.cfg.caption, run.store)
    folder, num_buckets = run.table_folder("captions"), pins.num_buckets
    ledger = replace(work.ledger, num_buckets=num_buckets)
    with find_images(cfg.caption, store, pins, work.ledger.recipe) as images:
        counts = work.compute(images.wanted())
        images.forget_changed_urls(counts.transient)
        unique, num_failed = counts.unique + images.num_unreadable, counts.errors + images.num_unreadable
        first_error = images.first_error or counts.first_error
        check_error_rate(num_failed, unique, first_error, cfg.caption.max_error_rate, "captions")

        def captioned(number: int) -> tuple[pa.Table, NDArray[np.int64]]:
            rows = with_captions(images.rows(number), ledger, number, counts.transient)
            return rows, rows["bucket"].to_numpy().astype(np.int64)

        def write(number: int, rows: pa.Table) -> Bucket:
            captions = captions_of_pins(rows, read_bucket(store, pins, number, ["pin_id"])["pin_id"])
            return write_bucket(store, folder, number, captions, cfg.tables.rows_per_file)

        buckets = shuffle(range(num_buckets), captioned, write, num_buckets, CAPTIONED)
    rows_out = run.add_table(bucketed_output("captions", folder, buckets)).rows
    return StageResult(
        counts={
            "rows_in": pins.rows,
            "rows_out": rows_out,
            "pins_without_image": pins.rows - rows_out,
            "unique_images": unique,
            "read": images.num_read,
            "computed": counts.computed,
            "errors": num_failed,
            "unreadable_urls": images.num_unreadable_urls,
        }
        | {f"cleaned_{step}": int(counts.counters.get(step, 0)) for step in STEPS},
        info=work.describe(counts, cfg.prices) | {"backend": cfg.caption.backend},
        device_sec=counts.device_sec,
    )


def _without_model(run: StageRun, pins: Output) -> StageResult:
    """The same table with nothing in it, so that later stages need not know."""
    store, folder, rows_per_file = run.store, run.table_folder("captions"), run.cfg.tables.rows_per_file

    def write(number: int) -> Bucket:
        table = read_bucket(store, pins, number, ["pin_id", "image", "image_bytes"])
        ids = table.filter(pc.or_(pc.is_valid(table["image"]), pc.is_valid(table["image_bytes"])))["pin_id"]
        nothing = pa.nulls(len(ids), pa.string())
        return write_bucket(
            store, folder, number, pa.table([ids, nothing, nothing, nothing], schema=CAPTIONS), rows_per_file
        )

    buckets = map_buckets(write, range(pins.num_buckets))
    rows = run.add_table(bucketed_output("captions", folder, buckets)).rows
    counts = {
        "rows_in": pins.rows,
        "rows_out": rows,
        "pins_without_image": pins.rows - rows,
        "computed": 0,
        "errors": 0,
    }
    return StageResult(counts=counts, info={"backend": None})
