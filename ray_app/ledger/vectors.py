"""Vectors of a release while it is put together: on local disk, so that memory does not grow with their number."""

import errno
import os
import tempfile
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import UserError
from ray_app.ledger.ledger import Ledger

_ABSENT, _FAILED, _GOOD = 0, 1, 2
_ROWS = 65_536  # whose keys are Python objects at a time


class GatheredVectors:
    """Results of a ledger in the order of `keys`, read from a temporary file as they are needed.

    Of each pin some 50 bytes are in memory: its key, where that is in order, and whether it has a vector.

    Args:
        ledger: Of embeddings. Read once, block by block.
        keys: Content keys, repeats allowed, none null.
        dim: Numbers per embedding.

    Raises:
        KeyError: a key has no result.
        UserError: an embedding is not finite, or the temporary folder is full.
    """

    def __init__(self, ledger: Ledger, keys: pa.ChunkedArray, dim: int) -> None:
        self.dim = dim
        self._file = tempfile.TemporaryFile(buffering=0)
        try:
            self._state = self._gather(ledger, _as_bytes(keys))
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
        """Whether each row has a vector. Shape (num_keys,), bool."""
        return self._state == _GOOD

    def batches(self, rows_per_batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row numbers (n,) of good rows, ascending, and their vectors (n, dim) float32; n is `rows_per_batch` but last."""
        rows = np.flatnonzero(self._state == _GOOD)
        for start in range(0, len(rows), rows_per_batch):
            some = rows[start : start + rows_per_batch]
            runs = np.split(some, np.flatnonzero(np.diff(some) != 1) + 1)  # between them are rows without a vector
            parts = [self._read(int(run[0]), len(run)) for run in runs]
            yield some, np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _read(self, row: int, num_rows: int) -> np.ndarray:
        width = self.dim * 4
        data = os.pread(self._file.fileno(), num_rows * width, row * width)
        return np.frombuffer(data, np.float32).reshape(num_rows, self.dim)

    def _gather(self, ledger: Ledger, keys: np.ndarray) -> np.ndarray:
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        state = np.full(len(keys), _ABSENT, np.uint8)
        os.ftruncate(self._file.fileno(), len(keys) * self.dim * 4)
        for block in ledger.blocks():
            good = pc.and_(pc.is_null(block["error"]), pc.is_valid(block["embedding"])).to_numpy()
            found = _as_bytes(block["content_key"])
            lows, highs = np.searchsorted(keys, found, "left"), np.searchsorted(keys, found, "right")
            # The first result of a key counts, as in `Ledger.scan`.
            rows = np.flatnonzero(highs > lows)
            rows = rows[state[order[lows[rows]]] == _ABSENT]
            places = {row: order[lows[row] : highs[row]] for row in rows}
            for row in rows:
                state[places[row]] = _GOOD if good[row] else _FAILED
            if len(chosen := rows[good[rows]]):
                self._write(block["embedding"].take(chosen), [places[row] for row in chosen])
        return state

    def _write(self, column: pa.ChunkedArray, places: list[np.ndarray]) -> None:
        vectors = np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float32)
        if not np.isfinite(vectors).all():
            raise UserError("some embeddings hold NaN or infinity, which no search can rank; embed those pins again")
        vectors = vectors.reshape(-1, self.dim)
        try:
            for vector, rows in zip(vectors, places, strict=True):
                for row in rows:
                    if os.pwrite(self._file.fileno(), vector.data, int(row) * self.dim * 4) != vector.nbytes:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()}: {error.strerror}; a release is put together there and needs 4 bytes for each "
                "number of its vectors: set TMPDIR to a folder with more room"
            ) from None


def _as_bytes(keys: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Content keys as fixed-width bytes: a third of the memory of Python's strings, and they can be sorted."""
    slices = (keys.slice(start, _ROWS).cast(pa.binary()) for start in range(0, len(keys), _ROWS))
    parts = [some.to_numpy(zero_copy_only=False).astype("S") for some in slices]
    return np.concatenate(parts) if parts else np.zeros(0, "S1")
