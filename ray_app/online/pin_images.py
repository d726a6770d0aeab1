"""The pins' pictures for the page. Whoever knows a pin's id may ask for one, so what that may cost is small and fixed."""

import asyncio
import io
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import pyarrow as pa

from ray_app.base.config import ImageLimits
from ray_app.base.config.credentials import secret_part
from ray_app.base.images.decode import ImageError, decode
from ray_app.base.images.fetch import is_url, normalize_location, read_image
from ray_app.online.problems import NotFound, Overloaded

SIDE = 480  # pixels
MAX_DECODED_BYTES = 256_000_000  # for one picture; captioning, which has more of the machine, allows 600 MB
AT_ONCE = 2  # pictures that a process reads and decodes
MAX_WAITING = 64  # pictures beside them
_KEPT = 500  # pictures, some 20 kB each
_FAILURES_KEPT = 10_000
_FAILURE_SEC = 300.0  # what could not be read is tried again then: storage may have been away


class PinImages:
    """Locations of pin images, and cached thumbnails. Thread-safe.

    Args:
        pins: Columns image and image_bytes, as `schemas.PINS` has them.
    """

    def __init__(self, pins: pa.Table, limits: ImageLimits) -> None:
        from cachetools import LRUCache, TTLCache

        self._pins, self._limits = pins, limits
        self._lock = threading.Lock()
        self._kept: LRUCache[int, bytes] = LRUCache(_KEPT)
        self._failed: TTLCache[int, str] = TTLCache(_FAILURES_KEPT, _FAILURE_SEC)  # why

    def url(self, pin_id: str, row: int) -> str | None:
        """Address for the browser: the public URL, or a path of this app; None: no image, or a URL that contains a secret."""
        location = self._pins["image"][row].as_py()
        if self._pins["image_bytes"][row].is_valid or (location and not is_url(location)):
            return f"/v1/pins/{quote(pin_id, safe='')}/image"
        return location if location and _may_be_shown(location) else None

    def jpeg(self, row: int) -> bytes:
        """At most SIDE pixels a side; decoded and written anew, so that no other file can be read this way.

        Raises:
            NotFound: there is none, it is on the web, from where nothing is fetched for others, or it cannot be read.
        """
        with self._lock:
            kept, failed = self._kept.get(row), self._failed.get(row)
        if kept is not None:
            return kept
        if failed is not None:
            raise _no_image(failed)
        try:
            made = self._make(row)
        except ImageError as error:
            with self._lock:
                self._failed[row] = error.code
            raise _no_image(error.code) from None
        with self._lock:
            self._kept[row] = made
        return made

    def _make(self, row: int) -> bytes:
        data, location = self._pins["image_bytes"][row].as_py(), self._pins["image"][row].as_py()
        if data is None:
            if is_url(location or ""):
                raise ImageError("on_the_web", "browsers load it from there")
            data = read_image(normalize_location(location or ""), self._limits)
        picture = decode(data, self._limits, MAX_DECODED_BYTES)
        picture.thumbnail((SIDE, SIDE))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=82)
        return out.getvalue()


def _may_be_shown(url: str) -> bool:
    try:
        urlsplit(url)
    except ValueError:
        return False
    return secret_part(url) is None


def _no_image(code: str) -> NotFound:
    return NotFound("no_image", f"this pin's picture cannot be shown: {code}")


@dataclass
class _ImageJob:
    future: Future[bytes | None]
    waiting: int = 0


class ImageJobs:
    """Pictures that are being made: few at once, each once however many ask. Belongs to one event loop.

    One that nobody waits for any more is not begun; one that was begun ends, and whoever asks meanwhile shares it.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="picture")
        self._jobs: dict[Hashable, _ImageJob] = {}

    async def get(self, key: Hashable, make: Callable[[], bytes | None]) -> bytes | None:
        """Result of `make`, shared by concurrent callers.

        Raises:
            Overloaded: too many others wait.
        """
        job = self._jobs.get(key)
        if job is None:
            if len(self._jobs) >= AT_ONCE + MAX_WAITING:
                raise Overloaded("overloaded", f"more than {MAX_WAITING} pictures wait; try again")
            job = self._jobs[key] = _ImageJob(self._threads.submit(make))
            loop = asyncio.get_running_loop()
            job.future.add_done_callback(lambda _: _call(loop, self._end, key, job))
        job.waiting += 1
        try:
            return await asyncio.shield(asyncio.wrap_future(job.future))
        finally:
            job.waiting -= 1
            if not job.waiting and job.future.cancel():  # which has no effect on one that was begun
                self._end(key, job)

    def close(self) -> None:
        """Give back the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _end(self, key: Hashable, job: _ImageJob) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]


def _call(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, *args)
