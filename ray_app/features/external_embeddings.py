"""Embeddings of pins that come from other systems, as student features."""

import numpy as np
import pyarrow as pa

from ray_app.base.errors import UserError
from ray_app.features.lexical import Floats


def external_embedding_block(table: pa.Table, external_embeddings: dict[str, int]) -> tuple[Floats, Floats]:
    """The pins' vectors from other systems side by side, and which of them each pin has.

    Args:
        table: Has a fixed-size list column per name; null where a pin has none.
        external_embeddings: Column name -> dimension, in the order wanted.

    Returns:
        values (num_pins, sum of dims) float32, 0 where absent, and mask (num_pins, num_named) float32, 1 where present.

    Raises:
        UserError: a column is missing or has another dimension.
    """
    values = [np.zeros((table.num_rows, 0), np.float32)]
    masks = [np.zeros((table.num_rows, 0), np.float32)]
    for name, dim in external_embeddings.items():
        if name not in table.column_names:
            raise UserError(
                f"features.external_embeddings: the pins table has no column {name!r}; remove it or add the column"
            )
        rows = table.column(name).to_pylist()
        block, mask = np.zeros((table.num_rows, dim), np.float32), np.zeros((table.num_rows, 1), np.float32)
        for i, row in enumerate(rows):
            if row is None:
                continue
            if len(row) != dim:
                raise UserError(f"features.external_embeddings.{name}: {dim} numbers expected, a pin has {len(row)}")
            vector = np.array(row, np.float32)  # a null in the list becomes NaN
            if np.isfinite(vector).all():  # a broken vector is an absent one
                block[i], mask[i] = vector, 1.0
        values.append(block)
        masks.append(mask)
    return np.concatenate(values, axis=1), np.concatenate(masks, axis=1)
