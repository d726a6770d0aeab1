"""Bytes of a picture that a table names: a path, a pyarrow.fs URI, or an http(s) URL. The names are not ours to trust."""

import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from ray_app.base.config import ImageLimits
from ray_app.base.errors import UserError, one_line
from ray_app.base.filesystem import open_uri
from ray_app.base.images.decode import ImageError
from ray_app.base.images.http_fetch import fetch_url

_SCHEMES = ("file", "s3", "gs", "gcs")
_CHUNK = 1 << 20
FAILING_SEC = 60.0  # guessed: six pictures that time out by the default limits
EARNED_SEC = 1.0


def normalize_location(image: str, folder: Path | None = None) -> str:
    """A path made absolute; URIs as they are.

    Args:
        image: As a table names it.
        folder: Below which relative paths are: in a task, the driver's working directory; None: that of this process.
    """
    image = image.strip()
    return image if "://" in image else str((folder or Path.cwd()) / Path(image).expanduser())


def is_url(location: str) -> bool:
    """Return True for an http(s) location; such images are taken as immutable."""
    return location[:8].casefold().startswith(("http://", "https://"))


def shown(location: str) -> str:
    """A location for messages: without the parts that may hold a password or a signature."""
    if "://" not in location:
        return location
    scheme, _, rest = location.partition("://")
    return f"{scheme}://{rest.partition('?')[0].partition('#')[0].rpartition('@')[2]}"


def read_image(location: str, limits: ImageLimits) -> bytes:
    """The file's bytes.

    Args:
        location: As `normalize_location` gives it.

    Raises:
        ImageError: bad_location, forbidden_path, not_found, unreadable, too_many_bytes, or what `fetch_url` raises.
    """
    if is_url(location):
        return fetch_url(location, limits)
    fs, path = open_location(location, limits)
    try:
        info = fs.get_file_info(path)
        _require_file(info, location)  # a FIFO would be waited for for ever
        if (info.size or 0) > limits.max_bytes:
            raise ImageError("too_many_bytes", f"{info.size:,} bytes, at most {limits.max_bytes:,} are allowed")
        parts, total = [], 0
        with fs.open_input_stream(path) as stream:
            while total <= limits.max_bytes and (chunk := stream.read(_CHUNK)):
                parts.append(chunk)
                total += len(chunk)
    except OSError as error:
        raise ImageError("unreadable", f"{shown(location)}: {one_line(error)}") from None
    if total > limits.max_bytes:
        raise ImageError("too_many_bytes", f"grew beyond {limits.max_bytes:,} while it was read")
    return b"".join(parts)


class HostBudget:
    """Reads pictures, and leaves out hosts whose pictures fail and take long to. Any number of threads may read.

    A host may cost FAILING_SEC seconds of threads that end in an error, and EARNED_SEC more for each picture that it gives:
    else a host of tarpits costs `limits.timeout_sec` for each pin that names it, again in each run.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._left: dict[str, float] = {}  # seconds, by host

    def read(self, location: str, limits: ImageLimits) -> bytes:
        """See `read_image`.

        Raises:
            ImageError: host_failing too: it was not asked.
        """
        if not is_url(location):
            return read_image(location, limits)
        host = _host(location)
        with self._lock:
            if self._left.setdefault(host, FAILING_SEC) <= 0:
                raise ImageError("host_failing", f"{host}: too many of its pictures failed; the next run tries again")
        began, earned = self._clock(), 0.0
        try:
            data = read_image(location, limits)
            earned = EARNED_SEC
            return data
        finally:
            with self._lock:
                self._left[host] += earned or began - self._clock()


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def open_location(location: str, limits: ImageLimits) -> tuple[pafs.FileSystem, str]:
    """Filesystem and path of a location that is not a URL.

    Raises:
        ImageError: bad_location, or forbidden_path: it is not below one of `limits.allow_roots`.
    """
    if "://" not in location:
        _require_allowed(location, limits)
        return _open_root(""), location
    try:
        parts = urlsplit(location)
        if parts.scheme not in _SCHEMES:
            raise ImageError(
                "bad_location", f"unknown scheme {parts.scheme!r}; known: {', '.join(_SCHEMES)}, http, https"
            )
        if parts.scheme == "file":
            fs, path = open_uri(f"file://{parts.path}")
            _require_allowed(path, limits)
            return fs, path
        _require_allowed(f"{parts.scheme}://{parts.netloc}{parts.path}", limits)
        _refuse_endpoint(parts.query, limits)
        query = f"?{parts.query}" if parts.query else ""
        return _open_root(f"{parts.scheme}://{parts.netloc}{query}"), f"{parts.netloc}{parts.path}"
    except (UserError, ValueError) as error:
        raise ImageError("bad_location", f"{shown(location)}: {one_line(error)}") from None


def stat_images(locations: list[str], limits: ImageLimits) -> list[tuple[int, int] | None]:
    """Size in bytes and time of change (ns) of each file; None: a URL, no such file, or not reachable.

    S3 tells times in whole seconds: a file replaced by one of equal size within the second in which it was read is not
    noticed there.
    """
    by_fs: dict[int, tuple[pafs.FileSystem, list[tuple[int, str]]]] = {}
    found: list[tuple[int, int] | None] = [None] * len(locations)
    for row, location in enumerate(locations):
        if is_url(location):
            continue
        try:
            fs, path = open_location(location, limits)
        except ImageError:
            continue  # read_image says why
        by_fs.setdefault(id(fs), (fs, []))[1].append((row, path))
    for fs, wanted in by_fs.values():
        try:
            infos = fs.get_file_info([path for _, path in wanted])
        except OSError:
            continue
        for (row, _), info in zip(wanted, infos, strict=True):
            if info.type == pafs.FileType.File:
                found[row] = (info.size or 0, info.mtime_ns or 0)
    return found


@lru_cache(maxsize=64)
def _open_root(root: str) -> pafs.FileSystem:
    """One filesystem per bucket and process; opening one may ask the network for the bucket's region."""
    return open_uri(root)[0] if root else pafs.LocalFileSystem()


def _require_file(info: pafs.FileInfo, location: str) -> None:
    if info.type == pafs.FileType.NotFound:
        raise ImageError("not_found", shown(location))
    if info.type != pafs.FileType.File:
        raise ImageError("unreadable", f"{shown(location)} is not a regular file")


def _require_allowed(location: str, limits: ImageLimits) -> None:
    """A catalogue that others write must not be a way to files, or buckets, that this process can read."""
    if limits.allow_roots is not None and not any(_is_below(location, root) for root in limits.allow_roots):
        raise ImageError("forbidden_path", f"{shown(location)} is not below one of caption.limits.allow_roots")


def _is_below(location: str, root: str) -> bool:
    if "://" in location:  # a bucket: names there are compared as they are, but somebody may resolve `..` on the way
        return ".." not in location.split("/") and f"{location}/".startswith(f"{root.rstrip('/')}/")
    # With links followed: one in a picture folder may lead anywhere.
    return "://" not in root and Path(location).resolve().is_relative_to(Path(root).expanduser().resolve())


def _refuse_endpoint(query: str, limits: ImageLimits) -> None:
    """An S3 URI may name its server: that must not be a way around the checks of URLs."""
    from urllib.parse import parse_qs

    for value in parse_qs(query).get("endpoint_override", []):
        host = urlsplit(value if "://" in value else f"//{value}").hostname or ""
        if host.casefold() not in {allowed.casefold() for allowed in limits.allow_hosts}:
            raise ImageError("forbidden_address", f"endpoint_override {host!r} is not in caption.limits.allow_hosts")
