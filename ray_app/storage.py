"""Files of a run, on any pyarrow filesystem: a local folder, `s3://`, `gs://`. No other code knows which.

A write is atomic: a reader sees the whole file or none. Locally that is a temporary file and a rename; object stores
show an object only when its upload is complete.
"""

import errno
import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ray_app.errors import UserError

TEMP_PREFIX = ".tmp-"  # pyarrow and Ray skip names that start with a dot, so a killed writer's file is never read


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
    """Reads and writes files under one root; picklable, so that Ray workers can write too.

    Args:
        uri: Local path or pyarrow.fs URI. `s3://bucket/prefix?endpoint_override=http://host:port` reaches other S3s.
    """

    uri: str

    @cached_property
    def _fs_and_root(self) -> tuple[pafs.FileSystem, str]:
        return open_uri(self.uri)

    @property
    def fs(self) -> pafs.FileSystem:
        """The filesystem, for libraries that take one."""
        return self._fs_and_root[0]

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    def __getstate__(self) -> dict[str, str]:
        return {"uri": self.uri}  # filesystem handles do not travel between processes

    def __setstate__(self, state: dict[str, str]) -> None:
        object.__setattr__(self, "uri", state["uri"])

    def full_path(self, path: str) -> str:
        """Path inside the filesystem, as `fs` wants it."""
        return f"{self._fs_and_root[1]}/{path}" if path else self._fs_and_root[1]

    # --- bytes ---

    def write_bytes(self, path: str, data: bytes) -> StoredFile:
        """Write a file atomically and return its name and hash.

        Raises:
            UserError: the storage is full, read-only or unreachable; what stood at `path` is untouched.
        """
        with _explained(f"cannot write {self.uri}/{path}"):
            full = self.full_path(path)
            if self.is_local:
                _write_local(Path(full), data)
            else:
                with self.fs.open_output_stream(full) as out:
                    out.write(data)
        return StoredFile(path=path, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    def read_bytes(self, path: str) -> bytes:
        """Whole content of a file.

        Raises:
            UserError: there is no such file, or it cannot be read.
        """
        with _explained(f"cannot read {self.uri}/{path}"), self.fs.open_input_file(self.full_path(path)) as file:
            return file.read()

    def exists(self, path: str) -> bool:
        """Whether a file or folder of that name is there."""
        with _explained(f"cannot look up {self.uri}/{path}"):
            return self.fs.get_file_info(self.full_path(path)).type != pafs.FileType.NotFound

    def list_files(self, path: str, suffix: str = "") -> list[str]:
        """Paths (under the root, sorted) of all files below a folder; none if there is no such folder."""
        with _explained(f"cannot list {self.uri}/{path}"):
            selector = pafs.FileSelector(self.full_path(path), recursive=True, allow_not_found=True)
            infos = self.fs.get_file_info(selector)
        skip = len(self._fs_and_root[1]) + 1
        names = [info.path[skip:] for info in infos if info.type == pafs.FileType.File]
        return sorted(n for n in names if n.endswith(suffix) and not n.rsplit("/", 1)[-1].startswith(TEMP_PREFIX))

    def delete(self, path: str) -> None:
        """Remove a file or folder; nothing happens if it is gone already."""
        with _explained(f"cannot delete {self.uri}/{path}"):
            full = self.full_path(path)
            kind = self.fs.get_file_info(full).type
            if kind == pafs.FileType.File:
                self.fs.delete_file(full)
            elif kind == pafs.FileType.Directory:
                self.fs.delete_dir(full)

    def delete_temporary_files(self) -> int:
        """Remove what killed writers left behind; returns how many files."""
        if not self.is_local:
            return 0
        left = [p for p in Path(self.full_path("")).rglob(f"{TEMP_PREFIX}*") if p.is_file()]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

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
            raise CorruptFileError(f"{self.uri}/{path} is not valid JSON; delete it and run again") from None

    def write_table(self, path: str, table: pa.Table) -> StoredFile:
        """Write a Parquet file atomically. Equal tables give equal bytes; pages carry checksums."""
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True, store_schema=True)
        return self.write_bytes(path, sink.getvalue())

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file.

        Raises:
            CorruptFileError: the file is torn, or a page fails its checksum.
        """
        with _explained(f"cannot read {self.uri}/{path}"):
            try:
                file = pq.ParquetFile(
                    self.full_path(path), filesystem=self.fs, page_checksum_verification=True, memory_map=False
                )
                with file:
                    return file.read(columns=columns)
            except FileNotFoundError:
                raise
            except (pa.ArrowInvalid, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                reason = " ".join(str(error).split())[:200]
                raise CorruptFileError(
                    f"{self.uri}/{path} is not a whole Parquet file ({reason}); delete it and run again"
                ) from None


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Filesystem and path of a local path or URI.

    Raises:
        UserError: unknown scheme, or a malformed URI.
    """
    parts = urlsplit(uri)
    if len(parts.scheme) < 2:  # a path; one letter is a Windows drive
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if parts.scheme == "s3":
        options = {key: values[0] for key, values in parse_qs(parts.query).items()}
        endpoint = options.pop("endpoint_override", None) or os.environ.get("AWS_ENDPOINT_URL")
        known = {"region", "scheme", "anonymous"}
        if unknown := set(options) - known:
            raise UserError(f"{uri}: unknown S3 option {sorted(unknown)[0]!r}; known: {sorted(known)}")
        fs = pafs.S3FileSystem(
            endpoint_override=endpoint,
            region=options.get("region"),
            scheme=options.get("scheme", "https"),
            anonymous=options.get("anonymous") == "true",
            connect_timeout=5,
            request_timeout=60,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=3),
        )
        return fs, f"{parts.netloc}{parts.path}".rstrip("/")
    try:
        fs, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{uri} cannot be opened: {' '.join(str(error).split())}") from None
    return fs, path.rstrip("/")


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
    try:
        with temp.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())  # else a power cut can leave the new name with no content
        temp.replace(path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


_HINTS = {
    errno.ENOSPC: "the disk is full; free some space and run again, finished work is kept",
    errno.EDQUOT: "the disk quota is used up; free some space and run again, finished work is kept",
    errno.EROFS: "the folder is read-only; set `output` to a folder that can be written",
    errno.EACCES: "permission denied; set `output` to a folder that you own",
    errno.EPERM: "permission denied; set `output` to a folder that you own",
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "a part of that path is a file, not a folder; choose another `output`",
}


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn a filesystem error into one line that says what to do."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0)
        if hint is None:
            detail = " ".join(str(error).split())[:300]
            hint = f"{detail}; check that the address, the bucket and the credentials are right, then run again"
        raise UserError(f"{what}: {hint}") from None
