"""Immutable, content-addressed results: what is left to do is an anti-join of wanted keys with keys present.

A ledger is a folder of Parquet files per recipe, `ledger/<table>/<recipe>/bucket=07-of-16/<hash of the file's bytes>.parquet`. A
file is one committed block: written whole, never changed. Rows are keyed by content, so a row can never be stale, two jobs
that compute the same row write the same thing, and the only maintenance is dropping keys that nothing refers to.

A key's bucket is its leading bits. Keys of what belongs to a pin begin with the bits of the pin (`pin_keys`), so that a bucket of
a table and the results for it are in buckets of one number. A ledger may hold folders of several numbers of buckets: that
number may change from run to run, and a reader of a bucket opens each folder that can hold keys of it.

Commits append. `compact` merges small files, so that a year of daily runs leaves no more files than a month: readers find a key
in the old files or in the merged one, which is written first.

The file's name is the check that it is whole: a torn or damaged file does not match its name, counts as absent, and is
overwritten when its block is computed again, since equal results give equal bytes.
"""

import hashlib
import logging
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.errors import UserError, one_line
from ray_app.base.hashing import buckets_of_hashes
from ray_app.base.schemas import cast_to
from ray_app.base.storage import CorruptFileError, Storage, decode_table, encode_table
from ray_app.tables.keys import KeySet, first_rows, key_numbers, split_by_presence

logger = logging.getLogger(__name__)

_PRESENT, _BEGUN = "present", "begun"  # internal: names of claims
_COMMITTED = pa.field("committed", pa.date32())  # day (UTC) of a row's commit: garbage collection keeps young rows
_BUCKET_FOLDER = re.compile(r"bucket=(\d+)-of-(\d+)")
_MAX_SMALL_FILES = 16  # of a bucket, before they are merged
_MERGED_BYTES = 64_000_000  # a file of that size is not merged any more


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerScan:
    """Content of a ledger at the time of reading."""

    table: pa.Table  # one row per content key
    corrupt_files: list[str]  # paths of files that are ignored


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerKeys:
    """Keys of a ledger at the time of reading."""

    keys: KeySet  # keys with a result, errors included
    errors: pa.Table  # content_key, error: of those whose result is an error
    corrupt_files: list[str]  # paths of files that are ignored


@dataclass(frozen=True)
class Ledger:
    """Results of one recipe. Picklable: Ray workers commit blocks themselves.

    What is wanted of a ledger is looked for block by block: in memory are 16 bytes for each key that it holds, and the
    rows that were asked for. `collect_garbage` and `drop_errors` must not run beside a job on the same recipe.
    """

    store: Storage  # storage of the ledger
    table: str  # name of the ledger, such as `soft_labels`
    recipe: str  # recipe id, 16 hex digits
    schema: pa.Schema  # must have `content_key` (string) and `error` (nullable string)
    num_buckets: int = 1  # into which commits are cut, and of which one can be read alone

    @property
    def folder(self) -> str:
        """Folder of this recipe's files under the storage root."""
        return f"ledger/{self.table}/{self.recipe}"

    @property
    def _claims(self) -> str:
        return f"claims/{self.table}/{self.recipe}"

    def commit(self, block: pa.Table) -> list[str]:
        """Write one block, a file per bucket, and return the paths. Committing the same rows again is a no-op in effect.

        Raises:
            ValueError: the block repeats a key or has a null one, which would make "no row twice" a lie.
            UserError: the storage is full, read-only or unreachable.
        """
        keys = block["content_key"].to_pylist()
        if None in keys or len(set(keys)) != len(keys):
            raise ValueError(f"ledger {self.table}: a block must have unique, non-null content keys")
        block = cast_to(block, self.schema, f"ledger {self.table}")
        block = block.append_column(_COMMITTED, pa.array([today()] * block.num_rows, _COMMITTED.type))
        return [self._write(bucket, rows) for bucket, rows in self.by_bucket(block)]

    def by_bucket(self, block: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        """The rows of each bucket that has some, in the order given."""
        if self.num_buckets == 1:
            yield 0, block
            return
        buckets = self.buckets_of(block["content_key"])
        for bucket in np.unique(buckets).tolist():
            yield bucket, block.filter(pa.array(buckets == bucket))

    def buckets_of(self, keys: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """Bucket of each key. Shape (num_keys,)."""
        return buckets_of_hashes(key_numbers(keys)[:, 0], self.num_buckets)

    def _write(self, bucket: int, rows: pa.Table) -> str:
        data = encode_table(rows)
        return self.store.write_bytes(f"{self._bucket_folder(bucket)}/{_file_name(data)}", data).path

    def _bucket_folder(self, bucket: int) -> str:
        digits = len(str(self.num_buckets))
        return f"{self.folder}/bucket={bucket:0{digits}d}-of-{self.num_buckets}"

    def files(self, bucket: int | None = None) -> list[str]:
        """Paths of all files that can hold keys of a bucket; None: of the ledger."""
        if bucket is None or self.num_buckets == 1:
            return self.store.list_files(self.folder, ".parquet")
        folders = [name for name in self.store.list_folders(self.folder) if self._may_hold(name, bucket)]
        return [path for name in folders for path in self.store.list_files(f"{self.folder}/{name}", ".parquet")]

    def _may_hold(self, folder: str, bucket: int) -> bool:
        found = _BUCKET_FOLDER.fullmatch(folder)
        if not found:
            return False
        number, of = int(found[1]), int(found[2])
        coarse = min(of, self.num_buckets)
        return number * coarse // of == bucket * coarse // self.num_buckets

    def _files_begun_in(self, bucket: int) -> list[str]:
        """Paths of the files whose folder's first key is in a bucket: each file is of one bucket, though it may hold keys of others."""
        if self.num_buckets == 1:
            return self.files()
        folders = [(name, _BUCKET_FOLDER.fullmatch(name)) for name in self.store.list_folders(self.folder)]
        begun = [
            name for name, found in folders if found and int(found[1]) * self.num_buckets // int(found[2]) == bucket
        ]
        return [path for name in begun for path in self.store.list_files(f"{self.folder}/{name}", ".parquet")]

    def begin_attempts(self, rows_present: int) -> None:
        """Begin to count what is begun; goes on with the count of a run that did not come to its end."""
        if not self.store.list_files(self._claims):
            self.store.write_bytes(f"{self._claims}/{_PRESENT}-{rows_present}", b"")

    def claim(self, num_rows: int) -> None:
        """Note that work on rows is begun, so that what a kill undid can be counted (`count_recomputed`)."""
        self.store.write_bytes(f"{self._claims}/{_BEGUN}-{num_rows}-{uuid.uuid4().hex[:12]}", b"")

    def count_recomputed(self, rows_present: int) -> int:
        """Rows that were begun without a result since `begin_attempts`, given what the ledger holds now; forgets them."""
        names = [path.rpartition("/")[2].split("-") for path in self.store.list_files(self._claims)]
        self.store.delete(self._claims)
        totals = {kind: sum(int(name[1]) for name in names if name[0] == kind) for kind in (_PRESENT, _BEGUN)}
        return max(0, totals[_BEGUN] - (rows_present - totals[_PRESENT]))

    def scan(self, columns: list[str] | None = None) -> LedgerScan:
        """All results, errors included, one row per key. Corrupt files are skipped, listed, and warned about."""
        columns = columns or self.schema.names
        corrupt: list[str] = []
        table = pa.concat_tables([self.schema.empty_table().select(columns), *self.blocks(columns, corrupt)])
        self._warn_of(corrupt)
        return LedgerScan(table=table.take(first_rows(key_numbers(table["content_key"]))), corrupt_files=corrupt)

    def blocks(
        self, columns: list[str] | None = None, corrupt: list[str] | None = None, bucket: int | None = None
    ) -> Iterator[pa.Table]:
        """Committed results, block by block in the order of file names, one at a time in memory.

        Of a key with several results the first one counts. If files are merged meanwhile, rows may come twice.

        Args:
            columns: Of the schema; None: all.
            corrupt: Paths of torn files, which are left out, are added to it.
            bucket: Only this one, with whatever keys of others its files hold; None: all.
        """
        waiting, seen = self.files(bucket), set[str]()
        while waiting:
            path = waiting.pop(0)
            seen.add(path)
            try:
                block = self._read_file(path, columns or self.schema.names)
            except UserError:
                if self.store.exists(path):
                    raise
                waiting = [other for other in self.files(bucket) if other not in seen]  # merged into another one
                continue
            if block is not None:
                yield block
            elif corrupt is not None:
                corrupt.append(path)

    def keys(self, bucket: int | None = None) -> LedgerKeys:
        """Keys that have a result. Corrupt files are skipped, listed, and warned about.

        Args:
            bucket: Only this one, with whatever keys of others its files hold; None: all.
        """
        corrupt: list[str] = []
        numbers, errors, rows, num_rows = [], [], [], 0
        for block in self.blocks(["content_key", "error"], corrupt, bucket):
            numbers.append(key_numbers(block["content_key"]))
            failed = np.flatnonzero(pc.is_valid(block["error"]).to_numpy())
            errors.append(block.take(failed))
            rows.append(failed + num_rows)
            num_rows += block.num_rows
        self._warn_of(corrupt)
        together = np.concatenate(numbers) if numbers else np.zeros((0, 2), np.uint64)
        error_table = pa.concat_tables([self.schema.empty_table().select(["content_key", "error"]), *errors])
        if error_table.num_rows:  # of a key with several results the first one counts
            counts = np.isin(np.concatenate(rows), first_rows(together), assume_unique=True)
            error_table = error_table.filter(pa.array(counts))
        return LedgerKeys(keys=KeySet(together), errors=error_table, corrupt_files=corrupt)

    def present_keys(self) -> pa.ChunkedArray:
        """All content keys that have a result, errors included. A corrupt file counts as absent."""
        return self.scan(["content_key"]).table["content_key"]

    def missing(self, wanted: pa.Table) -> pa.Table:
        """Rows of `wanted` (needs `content_key`) that have no result yet, one per key, in the order given."""
        return missing_rows(wanted, self.keys().keys)[0]

    def lookup(self, keys: pa.Array | pa.ChunkedArray, bucket: int | None = None) -> pa.Table:
        """Results for `keys`, row i for key i.

        Args:
            keys: Content keys.
            bucket: In which all of them are; None: anywhere.

        Raises:
            KeyError: a key has no result.
        """
        asked, corrupt = KeySet(key_numbers(keys)), list[str]()
        blocks = self.blocks(corrupt=corrupt, bucket=bucket)
        kept = [block.filter(pa.array(asked.contains(key_numbers(block["content_key"])))) for block in blocks]
        self._warn_of(corrupt)
        found = pa.concat_tables([self.schema.empty_table(), *kept])
        index = pc.index_in(keys, value_set=found["content_key"])
        if index.null_count:
            raise KeyError(f"ledger {self.table}/{self.recipe}: {index.null_count} of {len(keys)} keys have no result")
        return found.take(index)

    @classmethod
    def found(cls, store: Storage, table: str, recipe: str) -> "Ledger | None":
        """A ledger as its files say what it is; None without one whole file."""
        for path in store.list_files(f"ledger/{table}/{recipe}", ".parquet"):
            data = store.read_bytes(path)
            if _file_name(data) == path.rpartition("/")[2]:
                schema = _with_day(decode_table(data, path)).schema
                return cls(store, table, recipe, schema.remove(schema.get_field_index(_COMMITTED.name)))
        return None

    def collect_garbage(self, referenced: KeySet, since: date | None = None) -> int:
        """Drop rows whose key is not `referenced`, and torn files; returns the number of rows dropped.

        Args:
            referenced: Keys that stay.
            since: Rows committed on that day (UTC) or later stay too; None: none for that reason.
        """

        def wanted(block: pa.Table) -> pa.Array | pa.ChunkedArray:
            named = pa.array(referenced.contains(key_numbers(block["content_key"])))
            return named if since is None else pc.or_(named, pc.greater_equal(block[_COMMITTED.name], pa.scalar(since)))

        dropped = self._keep(wanted)
        for path in self.files():
            if self._read_file(path, ["content_key"]) is None:
                self.store.delete(path)
        return dropped

    def compact(self, bucket: int) -> int:
        """Merge the small files of a bucket while there are many; returns how many were merged. Torn ones are deleted.

        The merged file is written before the others are deleted: a kill in between, or a reader who has listed the old files,
        loses nothing. Two may merge at the same time: equal rows give equal files.
        """
        num_merged = 0
        while (merged := self._merge_some(bucket)) > 1:
            num_merged += merged
        return num_merged

    def _merge_some(self, bucket: int) -> int:
        """Merge small files of a bucket into one of `_MERGED_BYTES` or a little more; returns how many, 0: they are few."""
        small = self.store.list_files(self._bucket_folder(bucket), ".parquet", max_bytes=_MERGED_BYTES)
        if len(small) < _MAX_SMALL_FILES:
            return 0
        blocks, merged, num_bytes = [], [], 0
        for path in small:
            data = self.store.read_bytes(path)
            if _file_name(data) != path.rpartition("/")[2]:
                self.store.delete(path)  # torn: its rows count as absent
                continue
            blocks.append(_with_day(decode_table(data, path)))
            merged.append(path)
            num_bytes += len(data)
            if num_bytes > _MERGED_BYTES:
                break
        if not blocks:
            return 0
        rows = pa.concat_tables(blocks)
        rows = rows.take(first_rows(key_numbers(rows["content_key"]))).sort_by("content_key")
        written = self._write(bucket, rows)
        for path in merged:
            if path != written:
                self.store.delete(path)
        return len(merged)

    def drop_errors(self, bucket: int | None = None) -> int:
        """Forget failed rows, so that the next run tries them again; returns how many.

        Args:
            bucket: In its files only; tasks may do so for all buckets at the same time. None: in all files, here.
        """
        return self._keep(lambda block: pc.is_null(block["error"]), bucket)

    def drop(self, keys: KeySet, bucket: int | None = None) -> int:
        """Forget the results of some keys, so that they are computed again; returns how many.

        Args:
            keys: Present or not.
            bucket: As for `drop_errors`.
        """
        return self._keep(lambda block: pa.array(~keys.contains(key_numbers(block["content_key"]))), bucket)

    def _warn_of(self, corrupt: list[str]) -> None:
        if corrupt:
            logger.warning(
                "%s: ignoring %d corrupt files (%s), their rows are recomputed",
                self.folder, len(corrupt), ", ".join(path.rpartition("/")[2] for path in corrupt[:3]),
            )  # fmt: skip

    def _keep(self, wanted_rows: Callable[[pa.Table], pa.Array | pa.ChunkedArray], bucket: int | None = None) -> int:
        """Rewrite the files that hold other rows too; returns the number of rows dropped.

        Kept rows are committed anew before their old file goes, so a crash in between loses nothing.
        """
        dropped = 0
        for path in self.files() if bucket is None else self._files_begun_in(bucket):
            block = self._read_file(path, [*self.schema.names, _COMMITTED.name])
            if block is None:
                continue
            keep = block.filter(wanted_rows(block))
            if keep.num_rows == block.num_rows:
                continue
            dropped += block.num_rows - keep.num_rows
            if keep.num_rows:
                data = encode_table(keep)
                self.store.write_bytes(f"{path.rpartition('/')[0]}/{_file_name(data)}", data)
            self.store.delete(path)
        return dropped

    def _read_file(self, path: str, columns: list[str]) -> pa.Table | None:
        """A block, or None if the file is torn. An unreachable storage raises: that is no reason to compute again."""
        data = self.store.read_bytes(path)
        if _file_name(data) != path.rpartition("/")[2]:
            return None
        try:
            # A whole file may still be of another schema, written by other code under the same recipe.
            fields = self.schema.append(_COMMITTED)
            schema = pa.schema([fields.field(name) for name in columns])
            own = [name for name in columns if name != _COMMITTED.name]
            table = _with_day(decode_table(data, path)) if len(own) < len(columns) else decode_table(data, path, own)
            return cast_to(table, schema, path)
        except CorruptFileError:
            return None
        except (UserError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(
                f"{self.store.shown}/{self.folder} holds results of another schema ({one_line(error)}); delete that folder"
            ) from None


def _with_day(rows: pa.Table) -> pa.Table:
    """The rows with the day of their commit; those of a version that did not note it are old."""
    if _COMMITTED.name in rows.column_names:
        return rows
    return rows.append_column(_COMMITTED, pa.array([date(1970, 1, 1)] * rows.num_rows, _COMMITTED.type))


def today() -> date:
    """The day, UTC."""
    return datetime.now(UTC).date()


def missing_rows(wanted: pa.Table, present: KeySet) -> tuple[pa.Table, int]:
    """Rows of `wanted` that are to be computed.

    Returns:
        Rows whose `content_key` is not present: the first of each key, in the order given; maybe no copy. And the number of
        distinct keys.
    """
    rows, num_distinct = split_by_presence(key_numbers(wanted["content_key"]), present)
    return wanted if len(rows) == wanted.num_rows else wanted.take(rows), num_distinct


def _file_name(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest() + ".parquet"
