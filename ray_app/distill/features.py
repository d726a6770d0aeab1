"""What the student sees beside its towers' vectors."""

import numpy as np
import pyarrow as pa

from ray_app.features import named_vector_block
from ray_app.teach.catalogue import Catalogue


def student_features(
    catalogue: Catalogue, pins: pa.Table, queries: list[str], query_index: np.ndarray, pin_index: np.ndarray
) -> np.ndarray:
    """The student's features of pairs: lexical ones, then the pins' named vectors and which of them are there.

    Returns:
        (num_pairs, num_features) float32.
    """
    lexical = catalogue.pairs.compute(queries, query_index, pin_index)
    named = catalogue.cfg.features.named_vectors
    if not named:
        return lexical
    values, present = named_vector_block(pins, named)
    return np.concatenate([lexical, values[pin_index], present[pin_index]], 1)
