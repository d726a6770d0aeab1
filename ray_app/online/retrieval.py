"""Candidates for a query: pins that share its words (BM25) and pins near its vector, merged by rank."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_app.base.cache_folder import found_or_made
from ray_app.base.errors import UserError, one_line
from ray_app.features.neighbors import best_k
from ray_app.online.index_files import IndexKey, OpenIndexes, open_indexes, write_indexes

logger = logging.getLogger(__name__)

# Below: exact search, which needs no build and misses nothing. Measured on one core, float16 of 384 numbers: 2 ms of
# 19,406 pins, 5 ms of 50,000; numpy's product in float32 takes 8 and 19.
EXACT_BELOW = 50_000
_RRF_K = 60  # published: Cormack et al. 2009

BM25, DENSE = "bm25", "dense"  # names of the sources


class Ranked(NamedTuple):
    """Pins that one search has found, best first, ties by row."""

    rows: NDArray[np.int64]  # (n,)
    scores: NDArray[np.float32]  # (n,)

    @classmethod
    def nothing(cls) -> "Ranked":
        """No pin."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.float32))

    @classmethod
    def merged(cls, parts: Sequence["Ranked"], k: int) -> "Ranked":
        """The `k` best of several retrievers; row r of retriever i of n becomes row r * n + i."""
        rows = np.concatenate([part.rows * len(parts) + i for i, part in enumerate(parts)])
        scores = np.concatenate([part.scores for part in parts])
        best = np.lexsort((rows, -scores))[:k]
        return cls(rows[best], scores[best])


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Pins to rank, best first."""

    rows: NDArray[np.int64]  # (n,) int64 as `Ranked.merged` numbers them, no row twice
    sources: list[list[str]]  # who found each: BM25, DENSE or both, in this order


class Retriever:
    """Finds pins by words and by vectors. Rows are those of the texts and vectors it was built from.

    Any number of threads may ask. The same pins and threads give the same answers; with one thread, also the same files.
    """

    def __init__(self, indexes: OpenIndexes) -> None:
        """Use `open`, `build` or `open_or_build`."""
        self.num_pins, self.dim = indexes.key.num_pins, indexes.key.dim
        self._dtype = np.dtype(indexes.key.dtype)
        self._bm25, self._rows, self._vectors = indexes.bm25, indexes.rows, indexes.vectors
        self._alone = threading.Lock()  # searches in a usearch index share its scratch memory

    # --- files ---

    @classmethod
    def open_or_build(
        cls, folder: Path, texts: Sequence[str], vectors: NDArray[Any], *,
        exact_below: int = EXACT_BELOW, threads: int = 1,
    ) -> "Retriever":  # fmt: skip
        """Map the indexes of these pins, after making them if they are not there, damaged, or of other pins.

        Arguments and errors: see `build`.
        """
        key = IndexKey.of(texts, vectors, exact_below)
        try:
            find, make = partial(cls._opened, folder, key), partial(write_indexes, folder, key, texts, vectors, threads)
            found = found_or_made(folder, find, make)
        except OSError as error:
            raise UserError(
                f"cannot keep the indexes of the pins in {folder} ({one_line(error)}); "
                "set serve.local_cache_dir to a folder of this machine with room for them"
            ) from None
        return found if found is not None else cls.open(folder, key)

    @classmethod
    def build(
        cls, folder: Path, texts: Sequence[str], vectors: NDArray[Any], *,
        exact_below: int = EXACT_BELOW, threads: int = 1,
    ) -> "Retriever":  # fmt: skip
        """Make the indexes, replacing those in the folder once the new ones are whole.

        Args:
            texts: One per pin; an empty one is never found by words.
            vectors: (num_pins, dim) float16, float32 or int8, of any length; may be memory-mapped. A row of zeros, or
                one that is not finite, is no vector.
            exact_below: With fewer vectors, search is exact; else it is HNSW, and may miss some.
            threads: Of the HNSW build. More are faster, but then equal pins give slightly different answers.

        Raises:
            ValueError: texts and vectors do not fit together.
            OSError: the folder cannot be written.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        key = IndexKey.of(texts, vectors, exact_below)
        write_indexes(folder, key, texts, vectors, threads)
        return cls.open(folder, key)

    @classmethod
    def open(cls, folder: Path, key: IndexKey | None = None, verify: bool = False) -> "Retriever":
        """Map a folder.

        Args:
            verify: Also compare the files' hashes: seconds per GB. Otherwise sizes are checked, which finds files that
                are cut short, but not flipped bits.

        Raises:
            ValueError: it is not there, not whole, or of something else; the message says which.
        """
        return cls(open_indexes(folder, key, verify))

    @classmethod
    def _opened(cls, folder: Path, key: IndexKey) -> "Retriever | None":
        """The folder's, or None if it must be made."""
        if not folder.exists():
            return None
        try:
            return cls.open(folder, key)
        except ValueError as error:
            logger.warning("%s; it is rebuilt", error)
            return None

    # --- search ---

    def by_words(self, stems: Sequence[str], k: int) -> Ranked:
        """The `k` best pins by BM25 that have one of the stems.

        Lucene's BM25: its idf is positive however common a word is, so whoever shares a word with the query has a score.
        (Robertson's idf is 0 or less for words that half of the pins have, and a catalogue of shoes says shoe.)
        """
        known = (self._bm25.vocab_dict.get(stem) for stem in set(stems))
        terms = sorted(term for term in known if term is not None)  # summed in one order, whatever the query's
        if not terms or k <= 0:
            return Ranked.nothing()
        scores = self._bm25.get_scores_from_ids(terms)
        rows = np.flatnonzero(scores)
        return Ranked(*best_k(rows, scores[rows], k))

    def nearest(self, query: NDArray[Any] | int, k: int) -> Ranked:
        """The `k` pins nearest to a vector, or to a pin (then itself among them); scores are cosines.

        Returns:
            None for a vector of zeros, or of a pin that has none.

        Raises:
            ValueError: a vector of another dimension.
            IndexError: no such row.
        """
        vector = self._vector_of(query) if isinstance(query, int | np.integer) else np.asarray(query, np.float32)
        if vector.shape != (self.dim,):
            raise ValueError(f"a query has {self.dim} numbers, not shape {vector.shape}")
        k = min(k, len(self._rows))
        peak = float(np.abs(vector).max(initial=0.0))
        if k <= 0 or not np.isfinite(peak) or peak == 0:
            return Ranked.nothing()
        vector = vector / peak  # its length does not matter
        asked = np.rint(vector * 127).astype(np.int8) if self._dtype == np.int8 else vector.astype(self._dtype)
        if isinstance(self._vectors, np.ndarray):
            from usearch.index import MetricKind, search

            found = search(self._vectors, asked, k, metric=MetricKind.Cos, exact=True, threads=1)
            rows = self._rows[found.keys.astype(np.int64)]
        else:
            with self._alone:
                found = self._vectors.search(asked, k, threads=1)
            rows = found.keys.astype(np.int64)
        cosines = (1 - found.distances).astype(np.float32)
        order = np.lexsort((rows, -cosines))
        return Ranked(rows[order], cosines[order])

    def _vector_of(self, row: int) -> NDArray[np.float32]:
        if not 0 <= row < self.num_pins:
            raise IndexError(f"rows are 0..{self.num_pins - 1}, not {row}")
        place = int(np.searchsorted(self._rows, row))
        if place == len(self._rows) or self._rows[place] != row:
            return np.zeros(self.dim, np.float32)
        vector = self._vectors[place] if isinstance(self._vectors, np.ndarray) else self._vectors.get(row)
        return np.asarray(vector, np.float32)


def fuse(found: dict[str, NDArray[np.int64]], limit: int) -> Candidates:
    """Merge lists of rows, best first, by reciprocal rank fusion: a row's score is the sum of 1 / (60 + rank); ties by row.

    Source: Cormack, Clarke, Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning
    methods", SIGIR 2009.
    """
    scores: dict[int, float] = {}
    sources: dict[int, list[str]] = {}
    for source, rows in found.items():
        for rank, row in enumerate(rows.tolist(), 1):
            scores[row] = scores.get(row, 0.0) + 1 / (_RRF_K + rank)
            sources.setdefault(row, []).append(source)
    best = sorted(scores, key=lambda row: (-scores[row], row))[:limit]
    return Candidates(rows=np.array(best, np.int64), sources=[sources[row] for row in best])
