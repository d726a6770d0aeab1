"""caption: the pictures of pins -> `captions`, each distinct picture once, whatever pins show it."""

from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import CaptionConfig, Config
from ray_app.base.errors import UserError
from ray_app.base.hashing import bucket_of
from ray_app.base.schemas import CAPTION_RESULTS, CAPTIONS
from ray_app.base.storage import Storage
from ray_app.cluster.buckets import map_buckets
from ray_app.cluster.cost_estimate import CostEstimate
from ray_app.cluster.executor import LedgerCounts, ModelWork, check_error_rate
from ray_app.stages.caption.chain import caption_chain, caption_pool, cut_jobs
from ray_app.stages.caption.clean import STEPS
from ray_app.stages.caption.engine import caption_recipe
from ray_app.stages.caption.image_index import ImageIndex, find_images, forget_hashes, stat_fingerprint
from ray_app.stages.caption.results import join_captions
from ray_app.tables.buckets import bucketed_output, read_bucket, split_rows, write_bucket
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Bucket, Manifest, Output, read_output, require_output
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
    images = read_output(store, pins, ["image"])["image"].unique().to_pylist()
    stage = Stage(
        name="caption",
        version=VERSION,
        inputs=[pins],
        recipe=[caption_recipe(caption), caption.limits, stat_fingerprint(images, caption.limits)],
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
    work = caption_work(cfg.caption, store)
    pictures = find_images(cfg.caption, store, require_output(store, "ingest", "pins"), work.ledger.recipe)

    def decoding(counts: LedgerCounts) -> tuple[str, float]:
        per_picture = counts.counters["decode_sec"] / max(counts.timing.rows, 1)
        return "decoding", cfg.caption.num_decode_tasks / per_picture if per_picture else float("inf")

    # Keys are hashes: the first ones in their order are a random sample.
    by_key = pictures.sources.take(pc.sort_indices(pictures.sources["content_key"]))
    estimate, counts = work.estimate_cost(by_key, cfg.caption.cost_sample_rows, cfg.prices, decoding)
    _forget_changed_urls(pictures, counts)
    return estimate


def retry_errors(cfg: Config, store: Storage) -> int:
    """Forget the captions that failed, so that the next run tries them again; returns how many."""
    return caption_work(cfg.caption, store).ledger.drop_errors()


def _caption(run: StageRun, pins: Output) -> StageResult:
    cfg, store, work = run.cfg, run.store, caption_work(run.cfg.caption, run.store)
    pictures = find_images(cfg.caption, store, pins, work.ledger.recipe)
    counts = work.compute(pictures.sources)
    _forget_changed_urls(pictures, counts)
    captions, num_failed, first_error = join_captions(pictures, work.ledger.scan().table, counts)
    unique = pictures.sources.num_rows + pictures.num_unreadable
    check_error_rate(num_failed, unique, first_error, cfg.caption.max_error_rate, "captions")
    folder, num_buckets = run.table_folder("captions"), pins.num_buckets
    parts = split_rows(captions, bucket_of(captions["pin_id"].to_pylist(), num_buckets), num_buckets)
    buckets = [write_bucket(store, folder, i, part, cfg.tables.rows_per_file) for i, part in enumerate(parts)]
    run.add_table(bucketed_output("captions", folder, buckets))
    return StageResult(
        counts={
            "rows_in": pins.rows,
            "rows_out": captions.num_rows,
            "pins_without_image": pictures.num_without,
            "unique_images": unique,
            "read": pictures.num_read,
            "computed": counts.computed,
            "errors": num_failed,
            "unreadable_urls": pictures.num_unreadable_urls,
        }
        | {f"cleaned_{step}": int(counts.counters.get(step, 0)) for step in STEPS},
        info=work.describe(counts, cfg.prices) | {"backend": cfg.caption.backend},
        device_sec=counts.device_sec,
    )


def _forget_changed_urls(pictures: ImageIndex, counts: LedgerCounts) -> None:
    changed = [pictures.hash_keys[key] for key in counts.transient if key in pictures.hash_keys]
    if changed:
        forget_hashes(pictures.hashes, changed)


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
