"""Config sections of training: teacher, student, workers and retraining."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ray_app.base.config.section import Fraction, PositiveInt, Section

EncoderPooling = Literal["cls", "mean", "last"]


class TrainConfig(Section):
    """The training loop shared by train_teacher and distill."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each worker holds the complete model. fsdp: parameters, gradients and optimiser states are sharded."""
    epochs: PositiveInt = 3
    batch_size: PositiveInt = 32
    """Pairs per optimiser step over all workers, so that results do not depend on the number of workers."""
    micro_batch_tokens: PositiveInt | None = None
    """Maximum tokens per micro-batch, padding included: less memory and less padding, same gradients. Gradients are
    accumulated; None disables it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: slower, far less memory."""
    loss: Literal["soft", "hard", "ordinal", "kl"] = "soft"
    """Cross-entropy against the distribution or its likeliest grade, cumulative cross-entropy, or KL with temperature
    (docs/training.md compares them)."""
    loss_temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature of loss kl."""
    margin_mse_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of margin-MSE between the pins of one query, added to the loss; batches then hold complete queries."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    head_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate factor per layer from the top down; 1: the same for all."""
    train_top_layers: Annotated[int, Field(ge=0)] | None = None
    """Train only that many top transformer layers (0: only the head); None: all of them."""
    train_embeddings: bool = False
    """Train the token embeddings too; needed for a randomly initialised base model."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Data type of matrix products; parameters and gradients are float32. auto: bfloat16 on GPUs (`use_gpu`), else as label.dtype."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of frozen parameters; bfloat16 halves the memory of a large model under adapters."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    lr_schedule: Literal["linear", "cosine"] = "linear"
    """Decay of the learning rate to 0 after the warm-up."""
    warmup_ratio: Fraction = 0.1
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    early_stopping_patience: PositiveInt = 2
    """Epochs without a better validation loss before training stops; the best epoch is kept."""
    checkpoint_interval_sec: Annotated[float, Field(ge=0)] = 15.0
    """Minimum seconds of training between two checkpoints, which are taken between steps."""
    shuffle_window_rows: PositiveInt = 65_536
    """Rows per shuffle window. Larger training sets are streamed by Ray Data and shuffled within windows of this size."""
    report_to: list[Literal["tensorboard", "mlflow"]] = []
    """Trackers besides the log and history.json: `<output>/tracking`, and the server at MLFLOW_TRACKING_URI."""
    logging_steps: PositiveInt = 20
    """Steps between two logged points."""
    seed: int | None = None
    """Seed of new weights, example order and dropout; None: the run's. Splits and samples are always the run's."""


NOT_IN_RECIPE = frozenset({"checkpoint_interval_sec", "logging_steps", "report_to"})
"""Settings of `TrainConfig` that decide no model."""


def _without_logs(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree without the keys `NOT_IN_RECIPE`, at any depth."""
    left = {
        key: value
        for key, value in tree.items()
        if key not in {"checkpoint_interval_sec", "logging_steps", "report_to"}
    }
    return {key: _without_logs(value) if isinstance(value, dict) else value for key, value in left.items()}


class WorkersConfig(Section):
    """The training workers of a stage. Results do not depend on their number."""

    num_workers: PositiveInt = 1
    min_workers: PositiveInt | None = None
    """Minimum workers of elastic training, which follows the size of the cluster; None: always num_workers."""
    use_gpu: bool | Literal["auto"] = "auto"
    """auto: if the cluster has as many GPUs as there are workers."""
    accelerator_type: str | None = None
    """Such as H100, as Ray calls it; None: any."""
    num_checkpoints_to_keep: PositiveInt = 2
    """Checkpoints kept during training; a finished training keeps only its model."""
    max_failures: int = 2
    """Maximum worker failures, after which training resumes from the last checkpoint."""

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings that decide the model: not the workers, checkpoints and logs."""
        return _without_logs(self.model_dump(mode="json", exclude=set(WorkersConfig.model_fields)))

    @model_validator(mode="after")
    def _least_is_less_than_most(self) -> "WorkersConfig":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers ({self.min_workers}) must not be above num_workers ({self.num_workers})")
        return self


class RetrainConfig(Section):
    """Retraining policy when the catalogue changes but the settings do not."""

    max_changed_fraction: Fraction = 0.02
    """Fraction of new or changed pins up to which teacher, sample, soft labels and student remain valid; captions and
    embeddings follow every change. 0: any change retrains them."""


class PretrainConfig(Section):
    """Pretraining on pseudo-labels from the catalogue, for a teacher with few human labels (ray_app/stages/train_teacher/pretrain.py)."""

    train: TrainConfig
    min_pins: PositiveInt = 3
    """Minimum pins that share a product type's phrase."""
    positives: PositiveInt = 10
    """Positives per phrase; `negatives` are drawn from BM25 and from the zero-shot embeddings each."""
    negatives: PositiveInt = 8
    masked_fraction: Fraction = 0.5
    """Fraction of the positives whose title loses the phrase."""
    max_product_type_cosine: float = 0.7
    """Product types with a higher phrase cosine are no negatives of each other."""


class TeacherConfig(WorkersConfig):
    """The cross-encoder teacher."""

    base_model: str
    """Hub id, local directory, or `package:NAME/PATH`."""
    revision: str | None = None
    num_layers: PositiveInt | None = None
    """Number of lowest layers of the base model to keep, for lower cost; None: all."""
    pooling: Literal["cls", "mean", "last", "spans"] | None = None
    """`spans` compares the mean states of query and pin, so that a bi-encoder's weights are a useful start. None: `mean`
    of an encoder, `last` of a decoder, which takes nothing else."""
    max_tokens: PositiveInt = 128
    projection_dim: PositiveInt = 64
    """Dimension that pooled states are projected to before the MLP."""
    hidden_dim: PositiveInt = 128
    feature_hidden_dim: PositiveInt = 32
    dropout: Fraction = 0.1
    use_features: bool = True
    """Give the MLP the query-pin features (lexical, zero-shot cosine) in addition to the LM's hidden state."""
    label_smoothing: Fraction = 0.05
    """Fraction of each target spread evenly over the grades, as raters err too."""
    lora_rank: PositiveInt | None = None
    """Train low-rank adapters instead of all weights; None: full fine-tuning."""
    quantize: Literal["4bit"] | None = None
    """Quantise the base model to 4 bits under the adapters (QLoRA); needs GPUs and the package bitsandbytes."""
    class_weight_exponent: Fraction = 0.0
    """Weight of a pair by its grade: (share of the grade) ** -class_weight_exponent; 0: equal pairs, 1: equal grades."""
    test_fraction: Fraction = 0.2
    validation_fraction: Fraction = 0.1
    query_weight_exponent: Fraction = 0.5
    """Weight of a pair: (pairs of its query) ** -query_weight_exponent; 0: equal pairs, 1: equal queries."""
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
    """Pooling of token states: the first token's, their mean, the last token's. None: as in the base model's own files
    (docs/models.md), else `mean` of an encoder and `last` of a decoder."""
    query_prompt: str | None = None
    """Prompt before each query, such as `query: `; "": none; None: as in the base model's own files."""
    pin_prompt: str | None = None
    """The same for pins, such as `passage: `."""
    max_query_tokens: PositiveInt = 32
    """Maximum tokens per query, the prompt's included."""
    max_pin_tokens: PositiveInt = 96
    shared_towers: bool = True
    """One language model for queries and pins; False: one each, with equal initial weights."""
    dim: PositiveInt = 128
    matryoshka_dims: list[PositiveInt] = []
    """Matryoshka dimensions, all below `dim`, that embeddings can be truncated to; see embed.truncate_dim."""
    projection_dim: PositiveInt = 48
    """Dimension that embeddings are projected to before they are compared element by element."""
    hidden_dim: PositiveInt = 128
    feature_hidden_dim: PositiveInt = 64
    dropout: Fraction = 0.1
    interaction_dropout: Fraction = 0.5
    """Dropout of the compared embeddings, against overfitting to few queries."""
    human_label_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the human-labelled training pairs next to the teacher's; 0: soft labels only."""
    soft_label_ratio: Annotated[float, Field(ge=0)] | None = None
    """Ratio of soft labels to human-labelled pairs, trained in up to 8 times as many epochs, for label scaling curves;
    0: human labels alone, regardless of their weight; None: all soft labels."""
    feature_only_student: bool = True
    """Train the feature-only student too, serving's fallback ranker; False: for an experiment with the student alone."""
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
