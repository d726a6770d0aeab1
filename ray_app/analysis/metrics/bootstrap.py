"""Cluster bootstrap over queries: pairs of one query rise and fall together, so queries are what is resampled.

Every system is measured on the same resamples, so that differences between systems are paired: what makes a set of
queries easy for all cancels out.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_MAX_CELLS = 4_000_000  # of one (resamples, pairs) block of float64: 32 MB, a few of which are alive at a time


class Interval(NamedTuple):
    """A figure and its percentile interval; None: undefined, for the reason in the evaluation's notes."""

    value: float | None
    lo: float | None
    hi: float | None


def ratio(top: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`top / below`, float64 of their shape; NaN where `below` is not above 0."""
    return np.divide(top, below, out=np.full(np.shape(top), np.nan), where=below > 0)


def resample_queries(num_queries: int, samples: int, seed: int, row_cells: int) -> Iterator[np.ndarray]:
    """Yield how often each query occurs in each resample, in blocks that fit in memory.

    Args:
        seed: Equal seeds give equal resamples, whatever the block size.
        row_cells: Numbers that the caller makes per resample, usually the pairs.

    Yields:
        float64 (block, num_queries); each row sums to num_queries.
    """
    rng = np.random.default_rng(seed)
    share = np.full(num_queries, 1.0 / num_queries)
    block = max(1, _MAX_CELLS // max(row_cells, num_queries))
    for start in range(0, samples, block):
        yield rng.multinomial(num_queries, share, size=min(block, samples - start)).astype(np.float64)


def weighted_auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chance that a positive scores above a negative, ties counting half, under many weightings at once.

    Args:
        scores: (n,) float64, higher is more relevant; -inf is allowed and ties with itself, NaN is not.
        positive: (n,) bool.
        weights: (samples, n) float64, at least 0; one row per weighting.

    Returns:
        float64 (samples,); NaN where a weighting leaves no positive or no negative.

    Raises:
        ValueError: a score is NaN, whose place in the order would be arbitrary.
    """
    if np.isnan(scores).any():
        raise ValueError("weighted_auroc: a score is NaN; rank missing scores last with -inf instead")
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    tie_starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    positive = positive[order]
    weights = weights[:, order]
    pos = np.add.reduceat(weights * positive, tie_starts, axis=1)
    neg = np.add.reduceat(weights * ~positive, tie_starts, axis=1)
    neg_below = np.cumsum(neg, axis=1) - neg
    wins = (pos * (neg_below + 0.5 * neg)).sum(axis=1)
    total = pos.sum(axis=1) * neg.sum(axis=1)
    return ratio(wins, total)


class QueryAuroc:
    """`weighted_auroc` under many weightings of whole queries: the same numbers, from one table of queries by queries."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray, query_index: np.ndarray, num_queries: int) -> None:
        """Arguments as of `weighted_auroc`; `query_index` (n,) int, ascending."""
        if np.isnan(scores).any():
            raise ValueError("QueryAuroc: a score is NaN; rank missing scores last with -inf instead")
        self._rows = scores, positive, query_index
        self._positives = np.bincount(query_index[positive], minlength=num_queries).astype(np.float64)
        self._negatives = np.bincount(query_index[~positive], minlength=num_queries).astype(np.float64)
        # A matrix product is some 50 times as fast per number as sums over sorted rows; beyond that the table costs more.
        self._wins = self._table(num_queries) if num_queries**2 <= 50 * len(scores) else None

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Args: (samples, num_queries) float64, whole numbers. Returns: (samples,), NaN where a class is absent."""
        if self._wins is None:
            scores, positive, query_index = self._rows
            return weighted_auroc(scores, positive, counts[:, query_index])
        wins = np.einsum("sq,sq->s", counts @ self._wins, counts)
        return ratio(wins, (counts @ self._positives) * (counts @ self._negatives))

    def _table(self, num_queries: int) -> np.ndarray:
        """[a, b]: how often a positive of query a scores above a negative of query b, ties counting half."""
        scores, positive, query_index = self._rows
        winners, winner_query = scores[positive], query_index[positive]
        table = np.zeros((num_queries, num_queries))
        for query in np.flatnonzero(self._negatives):
            losers = np.sort(scores[~positive & (query_index == query)])
            above = np.searchsorted(losers, winners, "left") + np.searchsorted(losers, winners, "right")
            table[:, query] = np.bincount(winner_query, weights=above / 2.0, minlength=num_queries)
        return table


def percentile_interval(
    value: float, samples: np.ndarray, confidence_level: float, num_queries: int | None = None
) -> Interval:
    """The figure with its percentile interval over the resamples in which it is defined.

    Args:
        samples: (samples,) float64, NaN where undefined.
        num_queries: With one, every resample is the same query: no width is not certainty, so there are no bounds.
    """
    if not np.isfinite(value):
        return Interval(None, None, None)
    defined = samples[np.isfinite(samples)]
    if defined.size == 0 or num_queries == 1:
        return Interval(float(value), None, None)
    tail = (1.0 - confidence_level) / 2.0
    lo, hi = np.quantile(defined, [tail, 1.0 - tail])
    return Interval(float(value), float(lo), float(hi))
