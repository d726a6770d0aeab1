"""The teacher over pairs: the batch function and its Ray callable."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from ray_app.schemas import PROBS, SOFT_LABEL_RESULTS, cast_to
from ray_app.training.examples import matrix_of


class Judge(Protocol):
    """Anything that grades pairs, such as `Teacher`."""

    def judge(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> np.ndarray:
        """Probabilities of grades 1..5, (num_pairs, 5) float32, row i for pair i."""


def label_batch(table: pa.Table, judge: Judge) -> pa.Table:
    """Grade pairs; a row whose probabilities are not finite becomes an error row.

    Args:
        table: Columns content_key, query, pin_text (may be empty), features (list of num_features float32).
        judge: The teacher.

    Returns:
        Table of schema SOFT_LABEL_RESULTS, one row per input row, in order.
    """
    probs = judge.judge(
        table["query"].to_pylist(), [text or "" for text in table["pin_text"].to_pylist()], matrix_of(table["features"])
    )
    good = np.isfinite(probs).all(1)
    result = pa.table(
        {
            "content_key": table["content_key"],
            "probs": pa.array([row.tolist() if ok else None for row, ok in zip(probs, good, strict=True)], PROBS),
            "error": pa.array([None if ok else "not_finite: the teacher returned NaN" for ok in good], pa.string()),
        }
    )
    return cast_to(result, SOFT_LABEL_RESULTS, "label")


class LabelUDF:
    """Loads the teacher once per Ray actor.

    Args:
        build: Makes the judge; picklable.
    """

    def __init__(self, build: Callable[[], Judge]) -> None:
        self.judge = build()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Grade one block."""
        return label_batch(table, self.judge)
