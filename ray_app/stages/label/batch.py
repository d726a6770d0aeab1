"""The teacher over pairs: the batch function and its Ray callable."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from ray_app.base.columns import matrix_of
from ray_app.base.schemas import NUM_GRADES, PROBS, SOFT_LABEL_RESULTS, cast_to
from ray_app.cluster.blocks import COMPUTED_TOKENS, TOKENS
from ray_app.stages.label.pair_scorer import PairScorer, reject_unscorable


def label_batch(table: pa.Table, scorer: PairScorer) -> pa.Table:
    """Grade pairs; an empty, endless or otherwise ungradable pair becomes an error row and costs no other.

    Args:
        table: Columns content_key, query, pin_text, features (list of num_features float32).
        scorer: The teacher.

    Returns:
        Columns of SOFT_LABEL_RESULTS, and tokens and computed_tokens (int64) to be summed up; one row per input row,
        in order.
    """
    queries, pin_texts = table["query"].to_pylist(), table["pin_text"].to_pylist()
    errors = reject_unscorable(queries, pin_texts)
    good = np.flatnonzero([error is None for error in errors])
    probs = np.full((len(errors), NUM_GRADES), np.nan, np.float32)
    tokens = np.zeros(len(errors), np.int64)
    computed = np.zeros(len(errors), np.int64)
    if len(good):
        judged = scorer.score(
            [queries[i] for i in good], [pin_texts[i] for i in good], matrix_of(table["features"])[good]
        )
        probs[good], tokens[good] = judged.probs, judged.tokens
        computed[good[0]] = judged.computed_tokens
        for i, error in zip(good, judged.errors, strict=True):
            errors[i] = error
    return with_tokens(soft_label_results(table["content_key"], probs, errors), tokens, computed)


def soft_label_results(keys: pa.ChunkedArray, probs: np.ndarray, errors: list[str | None]) -> pa.Table:
    """Table of schema SOFT_LABEL_RESULTS; probabilities that are not finite, without an error to say why, get one."""
    finite = np.isfinite(probs).all(1)
    errors = [
        error or (None if ok else "not_finite: the teacher returned NaN")
        for error, ok in zip(errors, finite, strict=True)
    ]
    rows = [None if error else row.tolist() for row, error in zip(probs, errors, strict=True)]
    result = pa.table({"content_key": keys, "probs": pa.array(rows, PROBS), "error": pa.array(errors, pa.string())})
    return cast_to(result, SOFT_LABEL_RESULTS, "label")


def with_tokens(results: pa.Table, tokens: np.ndarray, computed: np.ndarray) -> pa.Table:
    """`results` and the columns from which progress counts tokens, (n,) int64 each."""
    return results.append_column(TOKENS, pa.array(tokens, pa.int64())).append_column(
        COMPUTED_TOKENS, pa.array(computed, pa.int64())
    )


class LabelUDF:
    """Loads the teacher once per Ray actor.

    Args:
        build: Makes the judge; picklable.
    """

    def __init__(self, build: Callable[[], PairScorer]) -> None:
        self.scorer = build()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Grade one block."""
        return label_batch(table, self.scorer)
