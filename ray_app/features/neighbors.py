"""Exact nearest neighbours by cosine, and the best of some scores."""

import numpy as np


def top_neighbors(
    queries: np.ndarray, pins: np.ndarray, k: int, chunk: int = 256, block: int = 32_768
) -> tuple[np.ndarray, np.ndarray]:
    """Exact nearest pins by cosine, for unit vectors; ties go to the lower index, except for the last place.

    Args:
        queries, pins: (num_queries, dim) and (num_pins, dim) float32.
        chunk, block: Queries and pins that are compared at a time: beside the pins, memory depends on these two alone.

    Returns:
        (indices, cosines), each (num_queries, min(k, num_pins)), best first.
    """
    k = min(k, len(pins))
    indices = np.zeros((len(queries), k), np.int64)
    cosines = np.zeros((len(queries), k), np.float32)
    if k == 0:
        return indices, cosines
    for start in range(0, len(queries), chunk):
        some = queries[start : start + chunk]
        nearest, found = np.zeros((len(some), 0), np.int64), np.zeros((len(some), 0), np.float32)
        for first in range(0, len(pins), block):
            place, score = _top(some @ pins[first : first + block].T, k)
            nearest, found = np.hstack([nearest, place + first]), np.hstack([found, score])
            best, found = _top(found, k)
            nearest = np.take_along_axis(nearest, best, 1)
        order = np.argsort(-found, axis=1, kind="stable")
        indices[start : start + chunk] = np.take_along_axis(nearest, order, 1)
        cosines[start : start + chunk] = np.take_along_axis(found, order, 1)
    return indices, cosines


def best_k(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of some rows, which rise, and their scores, best first; ties go to the lower row."""
    if k <= 0:
        return rows[:0], scores[:0]
    if len(rows) > k:
        kth = np.partition(scores, -k)[-k]
        better, equal = np.flatnonzero(scores > kth), np.flatnonzero(scores == kth)
        kept = np.concatenate([better, equal[: k - len(better)]])
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))
    return rows[order], scores[order]


def _top(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and scores of the `k` highest of each row, in the order of the columns."""
    if k >= scores.shape[1]:
        return np.tile(np.arange(scores.shape[1]), (len(scores), 1)), scores
    best = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    return best, np.take_along_axis(scores, best, 1)
