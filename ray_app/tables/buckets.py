"""Tables in buckets: the only code that knows them.

A table keyed by pin is written as `<table>/<fingerprint>/bucket=0007/part-00000.parquet`: Hive-style, so that DuckDB, Polars and
Spark read the folder as it is. The bucket of a row is the leading bits of a hash of its pin_id, and all tables of a run that are
keyed by pin have the same number of buckets, a power of two. So rows of one pin are in the buckets of one number, joining tables
is local to a bucket, and a bucket is cut in two without looking at another.

Within a bucket rows are in the order of their keys. A table of one bucket is the whole table, in order.
"""

import itertools
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.base.config import section_hash
from ray_app.base.errors import UserError
from ray_app.base.hashing import bucket_of
from ray_app.base.storage import CorruptFileError, Storage
from ray_app.tables.manifest import Bucket, Output, hash_files, read_manifest
from ray_app.tables.stage_run import StageRun

BUCKET = "bucket"  # the column that readers of Hive-style folders see


def choose_num_buckets(num_bytes: int, bucket_bytes: int, before: int | None = None) -> int:
    """Number of buckets of at most `bucket_bytes` each: a power of two.

    Args:
        num_bytes: Size of the largest table, in bytes or, as the next one, in rows.
        bucket_bytes: What one process is to hold at a time.
        before: Of the last run, which is kept while its buckets have a quarter to twice that size: another number
            would change every bucket, and all that follows would be computed again.
    """
    if before is not None and bucket_bytes <= 4 * num_bytes / before <= 8 * bucket_bytes:
        return before
    wanted = max(1, -(-num_bytes // bucket_bytes))
    return 1 << (wanted - 1).bit_length()


def split_rows(table: pa.Table, parts: NDArray[np.int64], num_parts: int) -> list[pa.Table]:
    """The rows of each part, in the order given; a copy, so that a part does not hold the memory of all."""
    if num_parts == 1:
        return [table]
    order = np.argsort(parts, kind="stable")
    bounds = np.searchsorted(parts[order], np.arange(num_parts + 1))
    return [table.take(pa.array(order[a:b])) for a, b in itertools.pairwise(bounds)]


def write_bucket(store: Storage, folder: str, number: int, rows: pa.Table, rows_per_file: int) -> Bucket:
    """Write one bucket of a table into the table's folder; a bucket without rows is one file without rows."""
    slices = [rows.slice(start, rows_per_file) for start in range(0, max(rows.num_rows, 1), rows_per_file)]
    paths = [f"{folder}/{BUCKET}={number:04d}/part-{i:05d}.parquet" for i in range(len(slices))]
    files = [store.write_table(path, some) for path, some in zip(paths, slices, strict=True)]
    return Bucket(
        files=paths,
        rows=rows.num_rows,
        num_bytes=sum(file.size_bytes for file in files),
        content_hash=hash_files(folder, {file.path: file.sha256 for file in files}),
    )


def write_by_pin(run: StageRun, name: str, table: pa.Table, num_buckets: int) -> Output:
    """Write a table by pin that is in this process, in buckets; rows stay in the order given."""
    folder = run.table_folder(name)
    parts = split_rows(table, bucket_of(table["pin_id"].to_pylist(), num_buckets), num_buckets)
    rows_per_file = run.cfg.tables.rows_per_file
    buckets = [write_bucket(run.store, folder, number, part, rows_per_file) for number, part in enumerate(parts)]
    return run.add_table(bucketed_output(name, folder, buckets))


def bucketed_output(name: str, folder: str, buckets: Iterable[Bucket]) -> Output:
    """The output that buckets written into `folder` make together."""
    buckets = list(buckets)
    return Output(
        name=name,
        path=folder,
        files=[path for bucket in buckets for path in bucket.files],
        rows=sum(bucket.rows for bucket in buckets),
        content_hash=section_hash(*(bucket.content_hash for bucket in buckets)),
        buckets=buckets,
    )


def bucket_files(output: Output, number: int) -> list[str]:
    """Paths of a bucket's files, in the order of the table. Of a table without buckets, bucket 0 is all of it."""
    return output.buckets[number].files if output.buckets else output.files


def read_bucket(store: Storage, output: Output, number: int, columns: list[str] | None = None) -> pa.Table:
    """One bucket of a table, in the order written. Of a table without buckets, bucket 0 is all of it.

    Raises:
        CorruptFileError: a file is not what the stage wrote.
        UserError: a file or a column is not there.
    """
    tables, hashes = [], {}
    for path in bucket_files(output, number):
        table, hashes[path] = store.read_table_and_hash(path, columns)
        tables.append(table)
    if hash_files(output.path, hashes) != output.bucket_hashes[number]:
        where = f"{store.shown}/{output.path}"
        raise CorruptFileError(f"{where} was changed after it was written; delete that folder and run its stage again")
    return pa.concat_tables(tables)


def num_buckets_of_run(store: Storage) -> int:
    """Number of buckets of the run's tables by pin; 1 before there are any."""
    made = read_manifest(store, "ingest")
    return made.outputs["pins"].num_buckets if made is not None and "pins" in made.outputs else 1


def common_num_buckets(outputs: Iterable[Output]) -> int:
    """The number of buckets that tables keyed by pin share.

    Raises:
        UserError: they differ: some were written before the number changed.
    """
    numbers = {output.num_buckets: output.name for output in outputs}
    if len(numbers) > 1:
        (a, b), *_ = itertools.combinations(sorted(numbers.items()), 2)
        raise UserError(
            f"{a[1]} has {a[0]} buckets and {b[1]} has {b[0]}, so they are of different runs of ingest; run "
            "`python pipelines/run_all.py --config ...`"
        )
    return next(iter(numbers), 1)
