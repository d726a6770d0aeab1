"""Vectors of a release while it is put together: on local disk, so that memory does not grow with their number."""

import os
import tempfile
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.errors import UserError
from ray_app.tables.keys import KeyIndex, key_numbers
from ray_app.tables.ledger import Ledger

_ABSENT, _FAILED, _GOOD = 0, 1, 2


class GatheredVectors:
    """Results of a ledger in the order of `keys`, read from a temporary file as they are needed.

    Of each pin some 50 bytes are in memory: its key as a number, where that is in order, and whether it has a vector.

    Args:
        keys: Content keys, repeats allowed, none null.

    Raises:
        KeyError: a key has no result.
        UserError: an embedding is not finite, or the temporary folder is full.
    """

    def __init__(self, ledger: Ledger, keys: pa.ChunkedArray, dim: int) -> None:
        self.dim = dim
        self._file = tempfile.TemporaryFile(buffering=0)
        try:
            self._vectors = self._room(len(keys)) if len(keys) else np.zeros((0, dim), np.float32)
            self._state = self._gather(ledger, keys)
        except BaseException:
            self._file.close()
            raise
        if missing := int((self._state == _ABSENT).sum()):
            self._file.close()
            raise KeyError(f"ledger {ledger.table}/{ledger.recipe}: {missing} of {len(keys)} keys have no result")

    def __enter__(self) -> "GatheredVectors":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def good(self) -> np.ndarray:
        """Return a mask of the rows with an embedding. Shape (num_keys,), bool."""
        return self._state == _GOOD

    def batches(self, rows_per_batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row numbers (n,) of good rows, ascending, and their vectors (n, dim) float32; n is `rows_per_batch` but last."""
        rows = np.flatnonzero(self._state == _GOOD)
        for start in range(0, len(rows), rows_per_batch):
            some = rows[start : start + rows_per_batch]
            yield some, np.asarray(self._vectors[some])

    def _gather(self, ledger: Ledger, keys: pa.ChunkedArray) -> np.ndarray:
        state = np.full(len(keys), _ABSENT, np.uint8)
        rows_by_key = KeyIndex(key_numbers(keys))
        for block in ledger.blocks():
            good = pc.and_(pc.is_null(block["error"]), pc.is_valid(block["embedding"])).to_numpy()
            place, rows = rows_by_key.rows_of(key_numbers(block["content_key"]))
            new = state[rows] == _ABSENT  # the first result of a key counts, as in `Ledger.scan`
            place, rows = place[new], rows[new]
            state[rows] = np.where(good[place], _GOOD, _FAILED)
            place, rows = place[good[place]], rows[good[place]]
            if len(rows):
                self._vectors[rows] = self._checked(block["embedding"].take(place))
        return state

    def _room(self, num_rows: int) -> np.ndarray:
        """The file as an array (num_rows, dim), all of it reserved: a disk that fills up later would kill the process."""
        try:
            os.posix_fallocate(self._file.fileno(), 0, num_rows * self.dim * 4)
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()}: {error.strerror}; a release is put together there and needs 4 bytes for each "
                "number of its vectors: set TMPDIR to a folder with more room"
            ) from None
        return np.memmap(self._file, np.float32, "r+", shape=(num_rows, self.dim))

    def _checked(self, column: pa.ChunkedArray) -> np.ndarray:
        vectors = np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float32)
        if not np.isfinite(vectors).all():
            raise UserError("some embeddings hold NaN or infinity, which no search can rank; embed those pins again")
        return vectors.reshape(-1, self.dim)
