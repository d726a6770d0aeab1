"""Files of a run, on any pyarrow filesystem: a local folder, `s3://`, `gs://`. No other code knows which.

A write is atomic: a reader sees the whole file or none. A read takes the whole file before it decodes anything, so that a
network that fails and a file that is torn are never taken for each other.
"""

import hashlib
import io
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ray_app.base.errors import UserError, one_line
from ray_app.base.filesystem import TEMP_PREFIX, explained, open_uri, write_atomically


class CorruptFileError(UserError):
    """A file is there but cannot be decoded: truncated, torn, or not what its name says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """One written file: its path under the root, and the sha256 of its bytes."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Storage:
    """Reads and writes files under one root; picklable, so that Ray workers can write too."""

    uri: str  # local path or pyarrow.fs URI. `s3://bucket/prefix?endpoint_override=http://host:port` reaches other S3s
    variant: str = ""
    """Name of a variant of the run, whose manifests lie apart while all else is shared (`ray_app.tables.manifest`);
    empty: the run itself."""

    @cached_property
    def _fs_and_root(self) -> tuple[pafs.FileSystem, str]:
        return open_uri(self.uri)

    @property
    def fs(self) -> pafs.FileSystem:
        """The filesystem, for libraries that take one."""
        return self._fs_and_root[0]

    @property
    def is_local(self) -> bool:
        """Return True if the root is a local folder."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def shown(self) -> str:
        """The root for messages and logs: without its query part, which is long and may hold what nobody should see."""
        return self.uri.partition("?")[0] if "://" in self.uri else self.uri

    def __getstate__(self) -> dict[str, str]:
        # Filesystem handles do not travel between processes, and a relative path means another folder in another one.
        return {"uri": self.full_path("") if "://" not in self.uri else self.uri, "variant": self.variant}

    def __setstate__(self, state: dict[str, str]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def full_path(self, path: str) -> str:
        """Path inside the filesystem, as `fs` wants it.

        Raises:
            UserError: it leads out of the root. Paths come from manifests and releases, which others may have written.
        """
        if path and not is_plain(path):
            raise UserError(f"{path!r} is no path of the storage {self.shown}: who wrote its name there?")
        return f"{self._fs_and_root[1]}/{path}" if path else self._fs_and_root[1]

    # --- bytes ---

    def write_bytes(self, path: str, data: bytes) -> StoredFile:
        """Write a file atomically and return its name and hash.

        Raises:
            UserError: the storage is full, read-only or unreachable; what stood at `path` is untouched.
        """
        with explained(f"cannot write {self.shown}/{path}"):
            write_atomically(self.fs, self.full_path(path), data)
        return StoredFile(path=path, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    def write_folder(self, path: str, local: Path) -> list[StoredFile]:
        """Write all files of a folder of this machine, in the order of their names."""
        files = sorted(file for file in local.rglob("*") if file.is_file())
        return [self.write_bytes(f"{path}/{file.relative_to(local).as_posix()}", file.read_bytes()) for file in files]

    def read_bytes(self, path: str) -> bytes:
        """Whole content of a file.

        Raises:
            UserError: there is no such file, or it cannot be read.
        """
        with explained(f"cannot read {self.shown}/{path}"), self.fs.open_input_file(self.full_path(path)) as file:
            return file.read()

    def exists(self, path: str) -> bool:
        """Return True if a file or folder of that name exists."""
        with explained(f"cannot look up {self.shown}/{path}"):
            return self.fs.get_file_info(self.full_path(path)).type != pafs.FileType.NotFound

    def list_files(self, path: str, suffix: str = "", max_bytes: int | None = None) -> list[str]:
        """Paths (under the root, sorted) of all files below a folder; none if there is no such folder.

        Args:
            path: Of the folder.
            suffix: Only files whose name ends so.
            max_bytes: Only files that are not larger; None: of any size.
        """
        infos = self._list(path, recursive=True)
        skip = len(self._fs_and_root[1]) + 1
        wanted = (info for info in infos if max_bytes is None or (info.size or 0) <= max_bytes)
        names = [info.path[skip:] for info in wanted if info.type == pafs.FileType.File]
        return sorted(n for n in names if n.endswith(suffix) and not n.rsplit("/", 1)[-1].startswith(TEMP_PREFIX))

    def list_folders(self, path: str) -> list[str]:
        """Names of the folders directly in a folder, sorted; none if there is no such folder."""
        return sorted(info.base_name for info in self._list(path) if info.type == pafs.FileType.Directory)

    def _list(self, path: str, recursive: bool = False) -> list[pafs.FileInfo]:
        with explained(f"cannot list {self.shown}/{path}"):
            selector = pafs.FileSelector(self.full_path(path), recursive=recursive, allow_not_found=True)
            found: list[pafs.FileInfo] = self.fs.get_file_info(selector)
            return found

    def delete(self, path: str) -> None:
        """Remove a file or folder; nothing happens if it is gone already."""
        with explained(f"cannot delete {self.shown}/{path}"):
            full = self.full_path(path)
            kind = self.fs.get_file_info(full).type
            if kind == pafs.FileType.File:
                self.fs.delete_file(full)
            elif kind == pafs.FileType.Directory:
                self.fs.delete_dir(full)

    def delete_temporary_files(self, older_than_sec: float = 3600.0) -> int:
        """Remove what killed writers left in a local folder; returns how many files.

        Args:
            older_than_sec: Younger ones stay, since another process may be writing them at this moment.
        """
        if not self.is_local:
            return 0
        limit = time.time() - older_than_sec
        left = [p for p in Path(self.full_path("")).rglob(f"{TEMP_PREFIX}*") if p.is_file()]
        old = [p for p in left if p.stat().st_mtime <= limit]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    # --- JSON and Parquet ---

    def write_json(self, path: str, value: Any) -> StoredFile:
        """Write a JSON document atomically."""
        return self.write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

    def read_json(self, path: str) -> Any:
        """Read a JSON document.

        Raises:
            CorruptFileError: the content is not JSON.
        """
        try:
            return json.loads(self.read_bytes(path))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise CorruptFileError(f"{self.shown}/{path} is not valid JSON; delete it and run again") from None

    def write_table(self, path: str, table: pa.Table) -> StoredFile:
        """Write a Parquet file atomically. Equal tables give equal bytes."""
        return self.write_bytes(path, encode_table(table))

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file; `columns` None: all of them.

        Raises:
            CorruptFileError: the file is torn, or a page fails its checksum.
            UserError: there is no such file or column, or the storage does not answer.
        """
        return decode_table(self.read_bytes(path), f"{self.shown}/{path}", columns)

    def read_table_and_hash(self, path: str, columns: list[str] | None = None) -> tuple[pa.Table, str]:
        """As `read_table`, with the file's SHA-256."""
        data = self.read_bytes(path)
        return decode_table(data, f"{self.shown}/{path}", columns), hashlib.sha256(data).hexdigest()


def is_plain(path: Any) -> bool:
    """Return True if every part of a path is a plain name, so that the path stays below the folder that it is joined to."""
    return isinstance(path, str) and "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def is_below(path: Any, folder: str) -> bool:
    """Return True if a path is plain and below a folder."""
    return is_plain(path) and path.startswith(f"{folder}/")


def encode_table(table: pa.Table) -> bytes:
    """A table as Parquet bytes: zstd, with a checksum in every page. Equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, store_schema=True)
    return sink.getvalue()


def decode_table(data: bytes, what: str, columns: list[str] | None = None) -> pa.Table:
    """A table from Parquet bytes; `what` names them in messages.

    Raises:
        CorruptFileError: not Parquet, or damaged.
        UserError: a column is not there (pyarrow would leave it out without a word).
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            absent = sorted(set(columns or []) - set(file.schema_arrow.names))
            if absent:
                raise UserError(
                    f"{what} has no column {absent[0]!r} (it has {', '.join(file.schema_arrow.names)}): if an older version wrote "
                    "it, run its stage again (`python pipelines/ingest.py --config ...` for source tables), or "
                    "`python pipelines/run_all.py --config ...`"
                )
            return file.read(columns=columns)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # all that damaged bytes have been seen to raise
        reason = one_line(error)[:200]
        raise CorruptFileError(f"{what} is not a whole Parquet file ({reason}); delete it and run again") from None
