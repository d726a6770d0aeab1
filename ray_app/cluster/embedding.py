"""Texts -> vectors as a stage: the batch function, its Ray callable, and what the ledger keys them by."""

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.content_key import content_keys, pin_keys
from ray_app.base.schemas import cast_to, embedding_results

NO_TEXT = "no_text: there is nothing to embed"


class Encoder(Protocol):
    """Anything that turns texts into vectors, such as `TextEncoder` or the student's pin tower."""

    dim: int

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """(num_texts, dim) float32, row i for text i."""


def embed_batch(table: pa.Table, encoder: Encoder, batch_size: int) -> pa.Table:
    """Embed the column `text`; an empty text or a vector that is not finite becomes an error row.

    Args:
        table: Columns `content_key` and `text` (nullable).
        encoder: Model.
        batch_size: Texts per forward pass.

    Returns:
        Table of schema `embedding_results(encoder.dim)`, one row per input row, in order.
    """
    texts = [text or "" for text in table["text"].to_pylist()]
    filled = [i for i, text in enumerate(texts) if text]
    vectors: list[np.ndarray | None] = [None] * len(texts)
    errors: list[str | None] = [None if text else NO_TEXT for text in texts]
    if filled:
        for i, vector in zip(filled, encoder.encode([texts[i] for i in filled], batch_size), strict=True):
            if np.isfinite(vector).all():
                vectors[i] = vector
            else:
                errors[i] = "not_finite: the model returned NaN or infinity for this text"
    schema = embedding_results(encoder.dim)
    result = pa.table(
        {
            "content_key": table["content_key"],
            "embedding": pa.array([None if v is None else v.tolist() for v in vectors], schema.field("embedding").type),
            "error": pa.array(errors, pa.string()),
        }
    )
    return cast_to(result, schema, "embed")


class EmbedUDF:
    """Loads the encoder once per Ray actor.

    Args:
        build: Makes the encoder; picklable.
        batch_size: Texts per forward pass.
        nice: Steps that the process goes back in the operating system's order, 0..19.
    """

    def __init__(self, build: Callable[[], Encoder], batch_size: int, nice: int = 0) -> None:
        os.nice(nice)  # before the model's threads start, which inherit it
        self.encoder = build()
        self.batch_size = batch_size

    def __call__(self, table: pa.Table) -> pa.Table:
        """Embed one block."""
        return embed_batch(table, self.encoder, self.batch_size)


def wanted_texts(recipe: str, texts: Sequence[str], pin_ids: Sequence[str] | None = None) -> pa.Table:
    """The table of `texts` keyed for the ledger: content_key, text; one row per input, repeats kept.

    Args:
        recipe: Of the vectors.
        texts: To be embedded.
        pin_ids: Whose they are; None: nobody's, such as queries.
    """
    keys = content_keys(recipe, list(texts))
    keys = keys if pin_ids is None else pin_keys(keys, pin_ids)
    return pa.table({"content_key": keys, "text": pa.array(list(texts), pa.string())})


def longest_first(keyed: pa.Table) -> pa.Array:
    """Row numbers of a table (content_key, length): neighbours in length share a batch, which then holds little padding.

    The order is the same in each run.
    """
    return pc.sort_indices(keyed, sort_keys=[("length", "descending"), ("content_key", "ascending")])
