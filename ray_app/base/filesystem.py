"""Opening filesystems, atomic writes, and errors that say what to do. `Storage` is what other code uses."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from ray_app.base.errors import UserError, one_line
from ray_app.base.umask import make_folders, set_mode, umask

TEMP_PREFIX = ".tmp-"  # pyarrow and Ray skip names that start with a dot, so a killed writer's file is never read
_OBJECT_STORES = ("s3", "gcs", "abfs")  # pyarrow's names of filesystems whose uploads appear whole or not at all


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Filesystem and path of a local path or URI.

    Raises:
        UserError: unknown scheme, a malformed URI, or credentials in it.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        shown = uri if "@" not in uri else f"{uri.partition('://')[0]}://..."  # it may hold a password
        raise UserError(f"{shown!r} is not a path or URI: {one_line(error)}") from None
    if len(parts.scheme) < 2:  # a path; one letter is a Windows drive
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if parts.password or (parts.scheme == "s3" and parts.username):
        # A URI is stored in manifests and shown in logs.
        raise UserError(
            f"{parts.scheme}://{parts.hostname}: credentials do not belong in a URI; use environment variables or a profile"
        )
    try:
        if parts.scheme == "s3":
            return _open_s3(parts), f"{parts.netloc}{parts.path}".rstrip("/")
        if parts.scheme in ("gs", "gcs") and not parts.query:
            # pyarrow's own limit is 15 minutes, far too long to learn that a bucket cannot be reached.
            fs = pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=30))
            return fs, f"{parts.netloc}{parts.path}".rstrip("/")
        fs, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{uri.partition('?')[0]} cannot be opened: {one_line(error)}") from None
    return fs, path.rstrip("/")


def _open_s3(parts: SplitResult) -> pafs.FileSystem:
    if not parts.netloc:
        raise UserError("an S3 URI needs a bucket: write it as s3://BUCKET/PREFIX")
    options = {key: values[0] for key, values in parse_qs(parts.query).items()}
    known = {"region", "scheme", "anonymous", "endpoint_override"}
    if unknown := set(options) - known:
        raise UserError(
            f"s3://{parts.netloc}: unknown S3 option {min(unknown)!r}; known: {', '.join(sorted(known))}"
            " (credentials come from the environment)"
        )
    return pafs.S3FileSystem(
        endpoint_override=options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL"),
        region=options.get("region"), scheme=options.get("scheme", "https"),
        anonymous=options.get("anonymous") == "true", connect_timeout=5, request_timeout=60,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=3),
    )  # fmt: skip


def write_atomically(fs: pafs.FileSystem, full: str, data: bytes) -> None:
    """Write a file so that a reader sees all of it or none: a temporary file and a rename, or one upload."""
    if isinstance(fs, pafs.LocalFileSystem):
        _write_local(Path(full), data)
    elif fs.type_name in _OBJECT_STORES:
        _write_stream(fs, full, data)
    else:
        folder = full.rpartition("/")[0]
        fs.create_dir(folder, recursive=True)
        temp = f"{folder}/{TEMP_PREFIX}{uuid.uuid4().hex}"
        _write_stream(fs, temp, data)
        fs.move(temp, full)


def _write_stream(fs: pafs.FileSystem, full: str, data: bytes) -> None:
    with fs.open_output_stream(full) as out:
        out.write(data)


def _write_local(path: Path, data: bytes) -> None:
    make_folders(path.parent)
    temp = path.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
    try:
        with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            set_mode(out.fileno(), 0o666 & ~umask())
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
    errno.EACCES: "permission denied; check who owns that path, or set `output` to another folder",
    errno.EPERM: "permission denied; check who owns that path, or set `output` to another folder",
    errno.ENOENT: "no such file",
    errno.EEXIST: "a part of that path is a file, not a folder; choose another `output`",  # what mkdir says
    errno.ENOTDIR: "a part of that path is a file, not a folder; choose another `output`",
}


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn a filesystem error into one line that says what to do."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0)
        if hint is None:
            hint = f"{one_line(error)[:300]}; check that the address, the bucket and the credentials are right, then run again"
        raise UserError(f"{what}: {hint}") from None
