"""Random numbers that belong to content: the same pair gets the same number whatever else is in the log.

A pair is drawn if its number is below its probability (Poisson sampling). So one more event, or another order of the
log, changes the draw only of pairs whose probability crosses their number.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_keys(texts: Sequence[str], salt: str) -> Keys:
    """64-bit hash of each text. Shape (num_texts,), uint64."""
    prefix = salt.encode() + b"\0"
    digests = [hashlib.blake2b(prefix + t.encode("utf-8", "surrogatepass"), digest_size=8).digest() for t in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def uniform(*keys: Keys | int) -> NDArray[np.float64]:
    """Number in [0, 1) of each combination of keys, arrays row by row; the order of the arguments matters."""
    state = np.zeros(1, np.uint64)
    for key in keys:
        state = _mix(state ^ np.asarray(key, np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: Keys) -> Keys:
    """The splitmix64 step: every bit of the input changes half of the output's."""
    with np.errstate(over="ignore"):  # wrapping is the point
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))


def hash_pin_ids(pin_ids: Sequence[str | None]) -> Keys:
    """64-bit hash of each id, the same on every machine; of None that of "". Shape (num_ids,), uint64."""
    return text_keys([pin_id or "" for pin_id in pin_ids], "pin_id")


def shards_of(pin_ids: Sequence[str], num_shards: int) -> NDArray[np.int64]:
    """Shard index of each pin. Shape (num_ids,)."""
    if num_shards < 1:
        raise ValueError(f"pins are spread over at least one shard, not {num_shards}")
    return (hash_pin_ids(pin_ids) % np.uint64(num_shards)).astype(np.int64)


def bucket_of(pin_ids: Sequence[str | None], num_buckets: int) -> NDArray[np.int64]:
    """Bucket of each pin, 0 .. num_buckets - 1; a row without a pin is in that of "". Shape (num_ids,), int64."""
    if num_buckets == 1:
        return np.zeros(len(pin_ids), np.int64)
    return buckets_of_hashes(hash_pin_ids(pin_ids), num_buckets)


def buckets_of_hashes(hashes: NDArray[np.uint64], num_buckets: int) -> NDArray[np.int64]:
    """Bucket of each hash: its leading bits. Shape (num_hashes,), int64.

    Raises:
        ValueError: the number of buckets is no power of two.
    """
    if num_buckets < 1 or num_buckets & (num_buckets - 1):
        raise ValueError(f"the number of buckets is a power of two, not {num_buckets}")
    if num_buckets == 1:
        return np.zeros(len(hashes), np.int64)
    return (hashes >> np.uint64(64 - (num_buckets.bit_length() - 1))).astype(np.int64)
