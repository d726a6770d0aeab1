"""Config sections of the query-pin features and of `embed`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ray_app.base.config.section import Fraction, PositiveInt, Section, TextField
from ray_app.base.config.training import EncoderPooling


class EmbedConfig(Section):
    """Batch inference of the student's pin tower."""

    truncate_dim: PositiveInt | None = None
    """Truncate the embeddings to N dimensions, one of distill.matryoshka_dims: a smaller index; None: distill.dim."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    batch_size: PositiveInt = 64
    rows_per_block: PositiveInt = 2048
    num_actors: PositiveInt = 1
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    accelerator_type: str | None = None
    """Such as H100, as Ray calls it; None: any."""
    cpu_threads: PositiveInt | None = None
    """Threads of an actor without a GPU; None: its share of the machine. Next to serving leave a core free, or requests stall."""
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    """Niceness of the processes, 0 to 19: lower priority than serving replicas on the same cores."""
    max_error_rate: Fraction = 0.01
    num_releases_to_keep: PositiveInt = 2


class FeatureConfig(Section):
    """Query-pin features other than the language models'."""

    bm25_fields: list[TextField] = ["title", "description", "link_text"]
    max_terms: PositiveInt = 4_194_304
    """Words of each text that are counted one by one, the most frequent; rarer ones are taken to be equally rare."""
    zero_shot_model: str
    """Bi-encoder whose cosine is the `embedding_cosine` baseline, a retrieval source for `sample`, and a feature."""
    zero_shot_revision: str | None = None
    zero_shot_pooling: EncoderPooling | None = None
    """See distill.pooling; None: as in the model's own files."""
    zero_shot_query_prompt: str | None = None
    """See distill.query_prompt."""
    zero_shot_pin_prompt: str | None = None
    """Prompt before a pin's title, and before its text."""
    zero_shot_max_tokens: PositiveInt = 64
    """Maximum tokens per text, the prompt's included."""
    zero_shot_fields: list[TextField] = ["title", "description"]
    """Not engaged_queries: queries under evaluation are removed from texts, but cannot be removed from embeddings."""
    external_embeddings: dict[str, PositiveInt] = {}
    """Embedding columns of `pins` -> dimension; missing embeddings are masked, never silently zero."""

    @field_validator("zero_shot_fields")
    @classmethod
    def _vectors_hold_no_queries(cls, value: list[TextField]) -> list[TextField]:
        if "engaged_queries" in value:
            raise ValueError(
                "zero_shot_fields cannot have engaged_queries: vectors are made once, so a query under evaluation, or that is "
                "labelled, could not be left out of them; leave it out here and use pin_text.fields or bm25_fields"
            )
        return value
