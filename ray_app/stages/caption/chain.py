"""Chain of the caption stage on Ray Data: decode images, caption them, clean the answers."""

import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import CaptionConfig
from ray_app.base.storage import Storage
from ray_app.cluster.executor import start_plan
from ray_app.cluster.failures import explain_failure
from ray_app.cluster.resources import Plan, Pool
from ray_app.cluster.vllm_engine import require_vllm, vllm_processor
from ray_app.models.devices import actor_threads
from ray_app.models.model_sources import pinned_revision, resolve
from ray_app.models.text_encoder import stage_dtype
from ray_app.stages.caption.batches import CaptionUDF, load_pictures, tidy_answer, vllm_answer, vllm_request
from ray_app.stages.caption.engine import load_processor, render_prompt

logger = logging.getLogger(__name__)


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
