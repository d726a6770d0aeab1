"""Cosine features of (query, pin), made comparable across queries.

A cosine of 0.4 is high for a vague query and low for a specific one. So each cosine is also given as a z-score against
what the query would get with a random pin (not the pin with a random query). For unit vectors it follows from a mean
vector and a covariance matrix, which are measured once and then frozen: a new pin changes no other pin's features.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class CosineBackground:
    """First two moments of a set of unit vectors.

    Args:
        mean: (dim,) float64.
        covariance: (dim, dim) float64.
    """

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> "CosineBackground":
        """Measure `vectors`, shape (N, dim); an empty set has mean 0 and covariance 0."""
        dim = vectors.shape[1]
        if len(vectors) == 0:
            return cls(mean=np.zeros(dim), covariance=np.zeros((dim, dim)))
        mean = vectors.mean(0, dtype=np.float64)
        centred = vectors - mean.astype(np.float32)
        return cls(mean=mean, covariance=(centred.T @ centred).astype(np.float64) / len(vectors))

    def z_score(self, probes: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """How unusual `cosines[i]` of probe i with some vector is, among probe i's cosines with all of the set.

        Args:
            probes: (N, dim).
            cosines: (N,).

        Returns:
            (N,) float32; 0 where the set has no spread.
        """
        expected = probes @ self.mean
        variance = np.einsum("nd,nd->n", probes @ self.covariance, probes)
        spread = np.sqrt(np.maximum(variance, 0.0))
        z = np.divide(cosines - expected, spread, out=np.zeros(len(cosines)), where=spread > 1e-6)
        return z.astype(np.float32)


def top_neighbours(
    queries: np.ndarray, pins: np.ndarray, k: int, chunk: int = 256, block: int = 32_768
) -> tuple[np.ndarray, np.ndarray]:
    """Exact nearest pins by cosine, for unit vectors; ties go to the lower index, except for the last place.

    Args:
        queries: (num_queries, dim) float32.
        pins: (num_pins, dim) float32.
        k: Neighbours per query, cut to num_pins.
        chunk: Queries that are compared at a time,
        block: with so many pins: beside the pins, memory depends on these two alone.

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


def _top(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and scores of the `k` highest of each row, in the order of the columns."""
    if k >= scores.shape[1]:
        return np.tile(np.arange(scores.shape[1]), (len(scores), 1)), scores
    best = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    return best, np.take_along_axis(scores, best, 1)
