"""The systems that are compared: anything whose score of a pin is linear in what is asked by.

A score is a dot product of a query's row with the pin's. Asking by several pins is asking by the mean of their rows,
for vectors (the mean of their vectors) as for BM25 (the mean of their scores).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse

from ray_app.analysis.transfer.tasks import Task
from ray_app.features.bm25 import Bm25Index, QueryTerms


@dataclass(frozen=True, kw_only=True, eq=False)
class System:
    """One way to rank pins."""

    name: str  # for people
    pins: Any  # (num_pins, width) array or sparse matrix: what is found. A row of zeros is never found
    titles: Any  # (num_held_out, width): titles of the held-out boards as queries
    asking: Any = None  # (num_pins, width): the same pins as queries; None: `pins`

    def scores(self, task: Task, start: int, stop: int) -> np.ndarray:
        """Scores of some of a task's queries with all pins, float32 (stop - start, num_pins), higher is better.

        -inf where a pin is set aside, or there is nothing to compare: a query of zeros finds nothing.
        """
        sources = {"titles": self.titles, "pins": self.pins if self.asking is None else self.asking}
        query = task.asks[start:stop] @ sources[task.asks_by]
        found = query @ self.pins.T
        scores = np.array(found.toarray() if issparse(found) else found, np.float32)
        scores[~_any(query), :] = -np.inf
        scores[:, ~_any(self.pins)] = -np.inf
        rows, columns = task.aside[start:stop].nonzero()
        scores[rows, columns] = -np.inf
        return scores


def vectors(name: str, pins: np.ndarray, titles: np.ndarray) -> System:
    """Cosine of unit vectors; rows of zeros stand for what has none.

    Raises:
        ValueError: lengths differ, or a vector is neither of unit length nor zero: its scores would favour long ones.
    """
    if pins.shape[1] != titles.shape[1]:
        raise ValueError(f"{name}: pins have vectors of {pins.shape[1]} numbers, titles of {titles.shape[1]}")
    for rows in (pins, titles):
        length = np.linalg.norm(rows.astype(np.float64), axis=1)
        if (np.minimum(np.abs(length - 1.0), length) > 1e-2).any():
            raise ValueError(f"{name}: a vector has length {length[np.abs(length - 1.0).argmax()]:.3f}, not 1")
    return System(name=name, pins=pins, titles=titles)


def bm25(name: str, texts: Sequence[str], titles: Sequence[str]) -> System:
    """BM25 with a title, or all of a pin's text, as the query."""
    index = Bm25Index.build(texts)
    weights = csr_array(
        (index.weight[index.postings.data], index.postings.indices, index.postings.indptr), shape=index.postings.shape
    )
    width = weights.shape[1]
    return System(
        name=name, pins=weights, asking=_counts(index.query_terms(texts), width),
        titles=_counts(index.query_terms(titles), width),
    )  # fmt: skip


def popularity(name: str, num_saves: np.ndarray, num_titles: int) -> System:
    """The same order for every query: pins by their saves, (num_pins,); those without any come last.

    It tells what a task rewards besides fit.
    """
    pins = (num_saves + 1.0)[:, None].astype(np.float32)  # none is a row of zeros, which would never be found
    ones = np.ones((num_titles, 1), np.float32)
    return System(name=name, pins=pins, asking=np.ones_like(pins), titles=ones)


def random_vectors(name: str, num_pins: int, num_titles: int, seed: int) -> System:
    """The floor: unit vectors of chance."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num_pins + num_titles, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors(name, rows[:num_pins], rows[num_pins:])


def _counts(terms: QueryTerms, width: int) -> csr_array:
    """Count how often each text says each known term, (num_texts, width)."""
    text = np.repeat(np.arange(len(terms.start) - 1), np.diff(terms.start))
    known = terms.term >= 0
    shape = (len(terms.start) - 1, width)
    return csr_array((terms.count[known], (text[known], terms.term[known])), shape=shape)


def _any(rows: Any) -> np.ndarray:
    """(n,) bool, rows with a number other than zero."""
    if issparse(rows):
        return np.asarray(abs(rows).sum(axis=1)).ravel() > 0
    return (np.asarray(rows) != 0).any(axis=1)
