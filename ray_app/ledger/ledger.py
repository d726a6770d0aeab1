"""Immutable, content-addressed results: what is left to do is an anti-join of wanted keys with keys present.

A ledger is a folder of Parquet files per recipe, `ledger/<table>/<recipe>/<hash of its keys>.parquet`. A file is one
committed block: written whole, never changed. Rows are keyed by content, so a row can never be stale, two jobs that
compute the same row write the same thing, and the only maintenance is dropping keys that nothing refers to.
"""

import hashlib
import logging
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.schemas import cast_to
from ray_app.storage import CorruptFileError, Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ledger:
    """Results of one recipe. Picklable: Ray workers commit blocks themselves.

    Args:
        store: Where the ledger lives.
        table: Name of the ledger, such as `soft_labels`.
        recipe: Recipe id, 16 hex digits.
        schema: Must have `content_key` (string) and `error` (nullable string).
    """

    store: Storage
    table: str
    recipe: str
    schema: pa.Schema

    @property
    def folder(self) -> str:
        """Folder of this recipe's files under the storage root."""
        return f"ledger/{self.table}/{self.recipe}"

    def commit(self, block: pa.Table) -> str:
        """Write one block and return its path. Committing the same keys again replaces the file by an equal one.

        Raises:
            ValueError: the block repeats a key or has a null one, which would make "no row twice" a lie.
        """
        block = cast_to(block, self.schema, f"ledger {self.table}")
        keys = block["content_key"].to_pylist()
        if None in keys or len(set(keys)) != len(keys):
            raise ValueError(f"ledger {self.table}: a block must have unique, non-null content keys")
        name = hashlib.blake2b("".join(sorted(keys)).encode(), digest_size=16).hexdigest()
        return self.store.write_table(f"{self.folder}/{name}.parquet", block).path

    def present_keys(self) -> pa.ChunkedArray:
        """All content keys that have a result, errors included. A torn file counts as absent."""
        return self._read(["content_key"])["content_key"]

    def missing(self, wanted: pa.Table) -> pa.Table:
        """Rows of `wanted` (needs `content_key`) that have no result yet, one per key, in the order given."""
        todo = wanted.filter(pc.invert(pc.is_in(wanted["content_key"], value_set=self.present_keys())))
        first = pa.table({"content_key": todo["content_key"], "row": pa.array(range(todo.num_rows), pa.int64())})
        rows = first.group_by("content_key").aggregate([("row", "min")])["row_min"].sort()
        return todo.take(rows)

    def lookup(self, keys: pa.Array | pa.ChunkedArray) -> pa.Table:
        """Results for `keys`, row i for key i.

        Raises:
            KeyError: a key has no result.
        """
        found = self._read(self.schema.names)
        index = pc.index_in(keys, value_set=found["content_key"])
        if index.null_count:
            raise KeyError(f"ledger {self.table}/{self.recipe}: {index.null_count} of {len(keys)} keys have no result")
        return found.take(index)

    def collect_garbage(self, referenced: pa.Array | pa.ChunkedArray) -> int:
        """Drop rows whose key is not `referenced`, and torn files; returns the number of rows dropped.

        Kept rows are committed anew before their old file goes, so a crash in between loses nothing.
        """
        dropped = 0
        for path in self.store.list_files(self.folder, ".parquet"):
            block = self._read_file(path, self.schema.names)
            if block is None:
                self.store.delete(path)
                continue
            keep = block.filter(pc.is_in(block["content_key"], value_set=pa.array(referenced.to_pylist(), pa.string())))
            if keep.num_rows == block.num_rows:
                continue
            dropped += block.num_rows - keep.num_rows
            if keep.num_rows:
                self.commit(keep)
            self.store.delete(path)
        return dropped

    def _read(self, columns: list[str]) -> pa.Table:
        blocks = [self._read_file(path, columns) for path in self.store.list_files(self.folder, ".parquet")]
        empty = self.schema.empty_table().select(columns)
        return pa.concat_tables([empty, *(block for block in blocks if block is not None)])

    def _read_file(self, path: str, columns: list[str]) -> pa.Table | None:
        try:
            table = self.store.read_table(path)  # all columns: a checksum is only checked on pages that are read
        except CorruptFileError as error:
            logger.warning("ignoring a torn ledger file, its rows will be computed again: %s", error)
            return None
        return cast_to(table, self.schema, f"ledger {self.table}").select(columns)
