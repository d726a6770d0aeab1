"""Tables cut into partitions and files."""

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.base.hashing import text_keys
from ray_app.base.storage import Storage, StoredFile

_SALT = "exchange"
Parts = list[pa.Table]


def num_partitions(num_bytes: int, partition_bytes: int) -> int:
    """Parts of about this size; at least one."""
    return max(1, -(-num_bytes // partition_bytes))


def partition_of(keys: Sequence[str], num_parts: int) -> NDArray[np.int64]:
    """Part of each key, 0 .. num_parts - 1. Shape (num_keys,), int64."""
    if num_parts == 1:
        return np.zeros(len(keys), np.int64)
    return (text_keys(keys, _SALT) % np.uint64(num_parts)).astype(np.int64)


def partition_rows(table: pa.Table, parts: NDArray[np.int64], num_parts: int) -> Parts:
    """The rows of each part, in the order given; a copy, so that a part does not hold the memory of all."""
    if num_parts == 1:
        return [table]
    order = np.argsort(parts, kind="stable")
    bounds = np.searchsorted(parts[order], np.arange(num_parts + 1))
    return [table.take(pa.array(order[a:b])) for a, b in itertools.pairwise(bounds)]


def rows_in_files(rows: pa.Table, rows_per_file: int) -> list[pa.Table]:
    """Slices of at most `rows_per_file` rows; one empty slice of an empty table."""
    return [rows.slice(start, rows_per_file) for start in range(0, max(rows.num_rows, 1), rows_per_file)]


def write_part(store: Storage, folder: str, number: int | None, rows: pa.Table, rows_per_file: int) -> list[StoredFile]:
    """Files of one part of a table output whose parts are written apart, or of its only one (None); for `add_output`."""
    prefix = "part-" if number is None else f"part-{number:05d}-"
    slices = enumerate(rows_in_files(rows, rows_per_file))
    return [store.write_table(f"{folder}/{prefix}{i:05d}.parquet", some) for i, some in slices]
