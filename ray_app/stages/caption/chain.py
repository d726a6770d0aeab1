"""The chain of the caption stage: decode (CPU tasks) -> VLM (actors) -> clean and commit (CPU tasks).

Decoding runs ahead of the engines as far as the object store allows; a task that commits gathers `rows_per_block` answers,
so that the ledger's files are no smaller than that.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import CaptionConfig
from ray_app.base.storage import Storage
from ray_app.cluster.blocks import Chain, actors, decode_block, tasks
from ray_app.cluster.resources import PoolAllocation, PoolRequest
from ray_app.cluster.vllm_engine import require_vllm, vllm_processor
from ray_app.models.devices import actor_threads
from ray_app.models.model_sources import pinned_revision, resolve
from ray_app.models.text_encoder import stage_dtype
from ray_app.stages.caption.batches import CaptionUDF, load_images, tidy_answer, vllm_answer, vllm_request
from ray_app.stages.caption.engine import load_processor, render_prompt
from ray_app.stages.caption.results import commit_answers
from ray_app.tables.ledger import Ledger


def caption_chain(
    cfg: CaptionConfig, store: Storage, load: Any = load_images, captioner: type = CaptionUDF, **captioner_kwargs: Any
) -> Chain:
    """SOURCES -> captions in the ledger.

    Args:
        cfg: Engine and resources.
        store: Of the pins table.
        load: Reads and decodes; another one only for measuring.
        captioner: Of the engine `transformers`; another one, with its own arguments, only for measuring.
    """
    if cfg.model is not None:  # all engines read and compute what the recipe says, whatever their machine would choose
        chosen = {"dtype": stage_dtype(cfg), "revision": pinned_revision(cfg.model, cfg.revision)}
        cfg = cfg.model_copy(update=chosen)

    def chain(blocks: Any, ledger: Ledger, allocation: PoolAllocation) -> Any:
        where = {"load": load, "store": store, "limits": cfg.limits, "batch_size": cfg.batch_size}
        decoded = tasks(
            blocks, _load_block, allocation, batch_size=1, size=allocation.pool.upstream_tasks, fn_kwargs=where
        )
        if cfg.backend == "vllm":
            answers = _vllm(cfg, allocation)(decoded).map(tidy_answer, num_cpus=allocation.task_cpus)
        else:
            threads = actor_threads(cfg.num_actors, cfg.num_cpus)
            kwargs = {"cfg": cfg, "cpu_threads": threads, **captioner_kwargs}
            answers = actors(decoded, captioner, allocation, cfg.batch_size, kwargs)
        commit = {"cfg": cfg, "ledger": ledger}
        return tasks(answers, commit_answers, allocation, batch_size=cfg.rows_per_block, fn_kwargs=commit)

    return chain


def _load_block(block: pa.Table, load: Any, **where: Any) -> Iterator[pa.Table]:
    """A Ray Data task: one encoded block of SOURCES -> what `load` makes of it."""
    yield from load(decode_block(block), **where)


def _vllm(cfg: CaptionConfig, allocation: PoolAllocation) -> Any:
    """The engine of ray.data.llm, fed with rendered prompts and decoded pictures."""
    require_vllm("caption")
    assert cfg.model is not None
    engine = {"limit_mm_per_prompt": {"image": 1}, "tensor_parallel_size": allocation.pool.num_processes}
    prompt = render_prompt(load_processor(cfg), cfg.prompt)
    return vllm_processor(
        model_source=resolve(cfg.model),
        task_type="generate",
        dtype=cfg.dtype,
        engine_args=engine | ({"revision": cfg.revision} if cfg.revision else {}) | cfg.engine_args,
        allocation=allocation,
        batch_size=cfg.batch_size,
        preprocess=partial(vllm_request, prompt=prompt, max_new_tokens=cfg.max_new_tokens),
        postprocess=vllm_answer,
    )


def caption_pool(cfg: CaptionConfig) -> PoolRequest:
    """Resources that the caption workers request."""
    return PoolRequest(
        section="caption",
        num_actors=cfg.num_actors,
        num_cpus=cfg.num_cpus,
        num_gpus=cfg.num_gpus,
        num_processes=max(1, int(cfg.num_gpus)) if cfg.backend == "vllm" else 1,
        accelerator_type=cfg.accelerator_type,
        max_restarts=cfg.max_restarts,
        upstream_tasks=cfg.num_decode_tasks,
    )


def cut_jobs(missing: pa.Table, batch_size: int, num_decode_tasks: int) -> list[pa.Table]:
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
        share = max(batch_size, -(-rows.num_rows // num_decode_tasks))
        jobs += [rows.slice(start, share) for start in range(0, rows.num_rows, share)]
    return jobs
