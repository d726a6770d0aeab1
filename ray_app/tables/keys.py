"""Content keys as numbers: 16 bytes each, sorted, so that what a ledger holds and lacks is known in little memory."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
"""Keys as numbers of 128 bits. Shape (num_keys, 2): high, low."""

_DIGITS = 32
_CHUNK = 65_536  # keys that are Python objects at a time
_VALUE = np.full(256, 255, np.uint8)
_VALUE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def key_numbers(keys: pa.Array | pa.ChunkedArray) -> Numbers:
    """The number that 32 hex digits are, or a hash of any other key; none may be null."""
    parts = [_numbers(keys.slice(start, _CHUNK)) for start in range(0, len(keys), _CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.uint64)


def first_rows(numbers: Numbers) -> NDArray[np.int64]:
    """Row of the first occurrence of each key, ascending. Shape (num_distinct,), int64."""
    order, new = _sorted(numbers)
    return np.sort(order[new])


def split_by_presence(numbers: Numbers, present: "KeySet") -> tuple[NDArray[np.int64], int]:
    """Rows of the first occurrence of each key that is not present, ascending, and how many distinct keys there are."""
    order, new = _sorted(numbers)
    firsts = order[new]
    found = present.contains(numbers[firsts])  # in order: a search through memory from its start to its end
    return np.sort(firsts[~found]), len(firsts)


class KeySet:
    """A set of keys."""

    def __init__(self, numbers: Numbers) -> None:
        order, new = _sorted(numbers)
        self._high, self._low = numbers[order[new]].T.copy()

    @classmethod
    def of(cls, columns: Iterable[pa.Array | pa.ChunkedArray]) -> "KeySet":
        """The keys of all columns, one of which is in memory at a time as text."""
        numbers = [key_numbers(column) for column in columns]
        return cls(np.concatenate(numbers) if numbers else np.zeros((0, 2), np.uint64))

    def __len__(self) -> int:
        return len(self._high)

    def contains(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return a mask of the keys that are in the set. Shape (num_keys,), bool."""
        high, low = numbers.T
        place, end = np.searchsorted(self._high, high, "left"), np.searchsorted(self._high, high, "right")
        found = np.zeros(len(high), bool)
        while (rows := np.flatnonzero((place < end) & ~found)).size:  # twice only if two keys share 64 bits
            found[rows] = self._low[place[rows]] == low[rows]
            place[rows] += 1
        return found


def _numbers(keys: pa.Array | pa.ChunkedArray) -> Numbers:
    texts = keys.cast(pa.binary()).to_numpy(zero_copy_only=False)
    joined = b"".join(texts)
    if len(joined) == _DIGITS * len(texts) and all(len(text) == _DIGITS for text in texts):
        values = _VALUE[np.frombuffer(joined, np.uint8)].reshape(-1, _DIGITS)
        if (values < 16).all():
            digits = values[:, 0::2] << 4 | values[:, 1::2]
            return digits.view(">u8").astype(np.uint64)
    return np.array([_number(text) for text in texts], np.uint64).reshape(-1, 2)


def _number(key: bytes) -> tuple[int, int]:
    """One key's: the same, whatever keys are beside it."""
    digits = key if len(key) == _DIGITS and set(key) <= set(b"0123456789abcdef") else None
    data = bytes.fromhex(digits.decode()) if digits else hashlib.blake2b(key, digest_size=16).digest()
    return int.from_bytes(data[:8], "big"), int.from_bytes(data[8:], "big")


def _sorted(numbers: Numbers) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The order of the keys, equal ones in the order given, and whether each, in that order, is the first of its kind."""
    order = np.argsort(numbers[:, 0])  # several times as fast as a stable sort, which only equal keys need
    high, low = numbers[order].T
    if (high[1:] == high[:-1]).any():
        order = np.lexsort((numbers[:, 1], numbers[:, 0]))
        high, low = numbers[order].T
    same = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    return order, np.concatenate([np.ones(min(1, len(order)), bool), ~same])
