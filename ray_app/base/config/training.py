"""Sections about models: training, sampling, labels, student, embeddings."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ray_app.base.config.section import Fraction, PositiveInt, Section

EncoderPooling = Literal["cls", "mean", "last"]


class TrainConfig(Section):
    """The training loop shared by train_teacher and distill."""

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
    margin_mse_weight: Annotated[float, Field(ge=0)] = 0.0
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
    lr_schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls to 0 after the warm-up."""
    warmup_ratio: Fraction = 0.1
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    early_stopping_patience: PositiveInt = 2
    """Epochs without a better validation loss before training stops; the best epoch is kept."""
    checkpoint_interval_sec: Annotated[float, Field(ge=0)] = 15.0
    """Seconds of training between two checkpoints, at least; they are taken between two steps."""
    shuffle_window_rows: PositiveInt = 65_536
    """More examples than that are streamed to the workers by Ray Data and shuffled within windows of that many."""
    report_to: list[Literal["tensorboard", "mlflow"]] = []
    """Where training curves go besides the log and history.json: `<output>/tracking`, and the server at MLFLOW_TRACKING_URI."""
    logging_steps: PositiveInt = 20
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
    num_checkpoints_to_keep: PositiveInt = 2
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

    max_changed_fraction: Fraction = 0.02
    """Teacher, sample, soft labels and student stand while at most that share of the pins is new or says something
    else since they were made; captions and embeddings follow every change. 0: any change makes them again."""


class PretrainConfig(Section):
    """Pairs that the catalogue grades itself, for a teacher with few human labels (ray_app/stages/train_teacher/pretrain.py)."""

    train: TrainConfig
    min_pins: PositiveInt = 3
    """Pins that must share a kind's phrase."""
    positives: PositiveInt = 10
    """Per phrase; and `negatives` from BM25 and from the zero-shot vectors each."""
    negatives: PositiveInt = 8
    masked_fraction: Fraction = 0.5
    """Share of the positives whose title loses the phrase."""
    max_product_type_cosine: float = 0.7
    """Kinds with nearer phrases are no negatives of each other."""


class TeacherConfig(WorkersConfig):
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
    projection_dim: PositiveInt = 64
    """Width that pooled states are projected to before the MLP."""
    hidden_dim: PositiveInt = 128
    feature_hidden_dim: PositiveInt = 32
    dropout: Fraction = 0.1
    use_features: bool = True
    """Give the MLP the pair features (BM25, text match, zero-shot cosine) beside the LM's hidden state."""
    label_smoothing: Fraction = 0.05
    """Share of each target that is spread evenly over the grades: raters err too."""
    lora_rank: PositiveInt | None = None
    """Train low-rank adapters instead of all weights; None: full fine-tuning."""
    quantize: Literal["4bit"] | None = None
    """Hold the base model in 4 bits under the adapters (QLoRA); needs GPUs and the package bitsandbytes."""
    class_weight_exponent: Fraction = 0.0
    """Weight of a pair by its grade: (share of the grade) ** -class_weight_exponent; 0: pairs count alike, 1: grades do."""
    test_fraction: Fraction = 0.2
    validation_fraction: Fraction = 0.1
    query_weight_exponent: Fraction = 0.5
    """Weight of a pair: (pairs of its query) ** -query_weight_exponent; 0: pairs count alike, 1: queries do."""
    pretrain: PretrainConfig | None = None
    """None: the human labels are enough."""
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _adapters_over_4_bits(self) -> "TeacherConfig":
        if self.quantize is not None and self.lora_rank is None:
            raise ValueError("quantize needs lora_rank: weights of 4 bits cannot be trained themselves")
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
    matryoshka_dims: list[PositiveInt] = []
    """Shorter lengths, all below `dim`, that a vector works at when it is cut (Matryoshka); see embed.truncate_dim."""
    projection_dim: PositiveInt = 48
    """Width that vectors are projected to before they are compared element by element."""
    hidden_dim: PositiveInt = 128
    feature_hidden_dim: PositiveInt = 64
    dropout: Fraction = 0.1
    interaction_dropout: Fraction = 0.5
    """Of the compared vectors: a student that has seen few queries otherwise learns them by heart."""
    human_label_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the human-labelled training pairs beside the teacher's; 0: soft labels only."""
    soft_label_ratio: Annotated[float, Field(ge=0)] | None = None
    """Learn from only so many times the human-labelled pairs of soft labels, in up to 8 times as many epochs, to see what
    more labels are worth; 0: human labels alone, whatever their weight; None: all."""
    feature_only_student: bool = True
    """Train the feature-only student too, which serving falls back on; False: for an experiment with the student alone."""
    validation_fraction: Fraction = 0.05
    train: TrainConfig = TrainConfig()
    feature_train: TrainConfig = TrainConfig(
        epochs=10, batch_size=256, head_learning_rate=2e-3, early_stopping_patience=3
    )
    """For the feature-only student, the baseline without language model."""

    @model_validator(mode="after")
    def _matryoshka_dims_are_shorter(self) -> "DistillConfig":
        if any(dim >= self.dim for dim in self.matryoshka_dims):
            raise ValueError(f"matryoshka_dims must be below dim ({self.dim}), not {self.matryoshka_dims}")
        return self
