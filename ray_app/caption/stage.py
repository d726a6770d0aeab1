"""Caption all pictures on Ray Data, through the ledger: each distinct picture once, whatever pins show it."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.caption.batches import CaptionUDF, load_pictures, tidy_answer, vllm_answer, vllm_request
from ray_app.caption.clean import STEPS
from ray_app.caption.engine import caption_recipe, load_processor, render_prompt
from ray_app.caption.pictures import Pictures, find_pictures, forget_hashes, stat_fingerprint
from ray_app.caption.results import Done, clean_answers, join_captions
from ray_app.cluster import Plan, Pool
from ray_app.config import CaptionConfig, Config
from ray_app.errors import UserError
from ray_app.ledger.ledger import Ledger
from ray_app.ledger.stage import check_error_rate, explain_failure, start_plan
from ray_app.manifest import Manifest, Output, StageRun, read_output, require_output
from ray_app.models.sources import pinned_revision, resolve
from ray_app.models.text_encoder import actor_threads, stage_dtype
from ray_app.quote import Held, Quote, cost_of, make_quote, timing
from ray_app.schemas import CAPTION_RESULTS, CAPTIONS
from ray_app.storage import Storage
from ray_app.vllm_engine import require_vllm, vllm_processor

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


def stream_answers(
    cfg: CaptionConfig,
    store: Storage,
    missing: pa.Table,
    load: Callable[..., Iterator[pa.Table]] = load_pictures,
    captioner: type[CaptionUDF] = CaptionUDF,
    **captioner_kwargs: Any,
) -> Iterator[pa.Table]:
    """Read, decode and caption pictures: CPU tasks that run ahead of the engines, as far as the object store allows.

    Args:
        cfg: Engine and resources.
        store: Of the pins table.
        missing: Of schema SOURCES.
        load: Reads and decodes; another one only for measuring.
        captioner: Of the engine `transformers`; another one, with its own arguments, only for measuring.

    Yields:
        Tables of schema ANSWERS, one row per row of `missing`, in any order.

    Raises:
        UserError: the cluster is too small, or an engine failed or died too often; one line with its message.
    """
    import ray
    import ray.data

    if cfg.model is not None:  # all engines read and compute what the recipe says, whatever their machine would choose
        chosen = {"dtype": stage_dtype(cfg), "revision": pinned_revision(cfg.model, cfg.revision)}
        cfg = cfg.model_copy(update=chosen)
    jobs = cut_jobs(missing, cfg.batch_size, cfg.num_decoders)
    plan = start_plan(_pool(cfg), len(jobs))
    logger.info("captions: plan: %s", plan)
    dataset = ray.data.from_arrow(jobs).map_batches(
        load,
        fn_kwargs={"store": store, "limits": cfg.limits, "batch_size": cfg.batch_size},
        batch_format="pyarrow",
        batch_size=None,  # a job is a block
        compute=ray.data.TaskPoolStrategy(size=min(cfg.num_decoders, len(jobs))),
        num_cpus=plan.task_cpus,
    )
    with warnings.catch_warnings():
        # Ray 2.60 announces the end of `**ray_remote_args`, but has no other way yet to bound restarts.
        warnings.filterwarnings("ignore", message=".*ray_remote_args", category=DeprecationWarning)
        if cfg.engine == "vllm":
            dataset = _with_vllm(dataset, cfg, plan)
        else:
            dataset = _with_transformers(dataset, cfg, plan, captioner, captioner_kwargs)
    dataset.set_name("captions")
    try:
        # Without read-ahead: what an engine has finished is to be committed now.
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except ray.exceptions.RayError as error:
        raise explain_failure("captions", error, cfg.max_restarts) from error


def cut_jobs(missing: pa.Table, batch_size: int, num_decoders: int) -> list[pa.Table]:
    """Rows that one task reads and decodes: some batches of files, or a share of one file of the pins table."""
    jobs = []
    files = missing.filter(pc.is_valid(missing["location"]))
    # One batch, so that the first is ready soon; more in a large table, where each job costs the driver a millisecond.
    per_job = batch_size * max(1, files.num_rows // (1000 * batch_size))
    jobs += [files.slice(start, per_job) for start in range(0, files.num_rows, per_job)]
    embedded = missing.filter(pc.is_null(missing["location"]))
    for part in embedded["part"].unique().to_pylist():
        rows = embedded.filter(pc.equal(embedded["part"], part))
        # Each job reads the whole file.
        share = max(batch_size, -(-rows.num_rows // num_decoders))
        jobs += [rows.slice(start, share) for start in range(0, rows.num_rows, share)]
    return [job.combine_chunks() for job in jobs]


def _with_transformers(
    dataset: Any, cfg: CaptionConfig, plan: Plan, captioner: type[CaptionUDF], captioner_kwargs: dict[str, Any]
) -> Any:
    import ray.data

    return dataset.map_batches(
        captioner,
        fn_constructor_args=(cfg, actor_threads(cfg.num_actors, cfg.num_cpus)),
        fn_constructor_kwargs=captioner_kwargs,
        batch_format="pyarrow",
        batch_size=cfg.batch_size,
        compute=ray.data.ActorPoolStrategy(size=plan.num_actors, max_tasks_in_flight_per_actor=2),
        **plan.actor_options,
    )


def _with_vllm(dataset: Any, cfg: CaptionConfig, plan: Plan) -> Any:
    """The engine of ray.data.llm, fed with rendered prompts and decoded pictures."""
    require_vllm("caption")
    assert cfg.model is not None
    engine = {"limit_mm_per_prompt": {"image": 1}, "tensor_parallel_size": plan.pool.num_processes}
    prompt = render_prompt(load_processor(cfg), cfg.prompt)
    processor = vllm_processor(
        model_source=resolve(cfg.model),
        task_type="generate",
        dtype=cfg.dtype,
        engine_args=engine | ({"revision": cfg.revision} if cfg.revision else {}) | cfg.engine_args,
        plan=plan,
        batch_size=cfg.batch_size,
        preprocess=partial(vllm_request, prompt=prompt, max_new_tokens=cfg.max_new_tokens),
        postprocess=vllm_answer,
    )
    return processor(dataset).map(tidy_answer, num_cpus=plan.task_cpus)


def _pool(cfg: CaptionConfig) -> Pool:
    return Pool(
        section="caption",
        num_actors=cfg.num_actors,
        num_cpus=cfg.num_cpus,
        num_gpus=cfg.num_gpus,
        num_processes=max(1, int(cfg.num_gpus)) if cfg.engine == "vllm" else 1,
        accelerator_type=cfg.accelerator_type,
        max_restarts=cfg.max_restarts,
        feeders=True,
    )


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
