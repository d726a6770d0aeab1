"""Access to shards: in this process, or each in its own process, which holds its shard of the last releases."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from ray_app.base.config import ImageLimits, ServeConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.online.local_files import collect_local
from ray_app.online.messages import ShardStats
from ray_app.online.pin_files import Shard
from ray_app.online.pin_images import ImageJobs
from ray_app.online.problems import Unavailable
from ray_app.online.shard_index import ShardIndex
from ray_app.tables.current import read_current
from ray_app.tables.release import Release, find_release

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
LoadShard = Callable[[Release], ShardIndex]

KEPT = 2  # releases: the one in use, and the one before, with which requests may still be under way


class ShardHandle(Protocol):
    """A shard's process, as others reach it: a `ShardServer`, or what stands for one in another process."""

    async def prepare(self, release_id: str) -> ShardStats:
        """Hold a release, all of it checked.

        Raises:
            UserError: it cannot be served; the message says why.
            Unavailable: the process cannot be reached now.
        """
        ...

    async def ask(self, release_id: str, question: str, *args: Any) -> Any:
        """Call a method of the release's `ShardIndex`.

        Raises:
            Unavailable: the release is not held yet, or the process cannot be reached now.
        """
        ...


class LocalShard:
    """`Shards` of one slice in this process. Nothing in it ever waits, so `at_once` can run what asks it."""

    num = 1

    def __init__(self, whole: ShardIndex) -> None:
        self._whole = whole

    async def ask(self, question: str, args: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """See `Shards`."""
        return {number: getattr(self._whole, question)(*own) for number, own in args.items()}

    async def aside(self, work: Callable[..., Answer], *args: Any) -> Answer:
        """See `Shards`: who asks is in a thread already."""
        return work(*args)


class RemoteShards:
    """`Shards` of one release in other processes."""

    def __init__(self, shards: Sequence[ShardHandle], release_id: str) -> None:
        self.num = len(shards)
        self._shards, self._release_id = shards, release_id

    async def ask(self, question: str, args: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """See `Shards`."""
        asked = [self._shards[number].ask(self._release_id, question, *own) for number, own in args.items()]
        return dict(zip(args, await asyncio.gather(*asked), strict=True))

    async def aside(self, work: Callable[..., Answer], *args: Any) -> Answer:
        """See `Shards`."""
        return await asyncio.to_thread(work, *args)


def at_once(work: Callable[..., Coroutine[Any, Any, Answer]], *args: Any) -> Answer:
    """Run a coroutine that never waits in this thread, without an event loop: one hop for a whole request."""
    running = work(*args)
    try:
        running.send(None)
    except StopIteration as done:
        return done.value
    running.close()
    raise AssertionError("it waited for something; over a LocalShard nothing does")


class _Held(NamedTuple):
    own: ShardIndex
    stats: ShardStats


class ShardServer:
    """One shard's process, without Ray: holds its slices of the releases that routers use.

    It loads what it is asked for. Until then it answers Unavailable, never from another release.

    Args:
        local_cache_dir: Where this machine keeps what is made of a release; a shard has a folder of its own in it.
        shard: Number of the shard, number of shards.
    """

    def __init__(
        self, cfg: ServeConfig, images: ImageLimits, store: Storage, local_cache_dir: Path, shard: Shard,
        load: LoadShard | None = None,
    ) -> None:  # fmt: skip
        self._cfg, self._store = cfg, store
        # Others that clean up in `local_cache_dir` must not take away what this one is just making.
        self._local_cache_dir = local_cache_dir / f"shard{shard[0]}of{shard[1]}"
        self._load_shard = load or partial(ShardIndex.load, store, cfg, images, self._local_cache_dir, shard=shard)
        self._held: dict[str, _Held] = {}  # by release id, the one asked last at the end
        self._loading: dict[str, asyncio.Task[_Held]] = {}
        self._failed_at: dict[str, float] = {}
        self._rank_thread = ThreadPoolExecutor(1, thread_name_prefix="rank")
        self._load_thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._image_jobs = ImageJobs()

    async def start(self) -> None:
        """Load the current release, so that a process that comes back is not asked before it can answer."""
        try:
            current = await asyncio.get_running_loop().run_in_executor(self._load_thread, read_current, self._store)
            if current is not None:
                await self.prepare(current.id)
        except UserError as error:
            logger.error("the current release cannot be loaded, waiting for another one: %s", error)

    def close(self) -> None:
        """Give back the threads."""
        self._rank_thread.shutdown(wait=False, cancel_futures=True)
        self._load_thread.shutdown(wait=False, cancel_futures=True)
        self._image_jobs.close()

    async def prepare(self, release_id: str) -> ShardStats:
        """See `ShardHandle`."""
        held = self._held.get(release_id)
        if held is None:
            held = await asyncio.shield(self._load(release_id))  # who asked may go away, others wait too
        return held.stats

    async def ask(self, release_id: str, question: str, *args: Any) -> Any:
        """See `ShardHandle`."""
        held = self._held.pop(release_id, None)
        if held is None:
            failed_at = self._failed_at.get(release_id)
            if failed_at is None or time.monotonic() - failed_at > self._cfg.poll_interval_sec:
                self._load(release_id)
            raise Unavailable("loading", f"release {release_id} is being loaded; try again")
        self._held[release_id] = held
        work = partial(getattr(held.own, question), *args)
        if question == "image":  # storage may be slow: scores do not wait for it
            return await self._image_jobs.get((release_id, *args), work)
        return await asyncio.get_running_loop().run_in_executor(self._rank_thread, work)

    def _load(self, release_id: str) -> "asyncio.Task[_Held]":
        if release_id not in self._loading:
            self._loading[release_id] = task = asyncio.create_task(self._hold(release_id))
            task.add_done_callback(partial(self._loaded, release_id))
        return self._loading[release_id]

    async def _hold(self, release_id: str) -> _Held:
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._load_thread)
        self._drop(KEPT - 1)  # before, else there would be one more in memory
        release = await in_thread(find_release, self._store, release_id)
        own = await in_thread(self._load_shard, release)
        held = _Held(own, await in_thread(own.stats))
        self._held[release_id] = held
        self._drop(KEPT)
        await in_thread(collect_local, self._local_cache_dir, {*self._held, *self._loading})
        return held

    def _drop(self, num_kept: int) -> None:
        while len(self._held) > num_kept:
            del self._held[next(iter(self._held))]

    def _loaded(self, release_id: str, task: "asyncio.Task[_Held]") -> None:
        del self._loading[release_id]
        self._failed_at.pop(release_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed_at[release_id] = time.monotonic()
            why = None if isinstance(error, UserError) else error  # the latter with its traceback
            logger.error("release %s cannot be loaded: %s", release_id, error, exc_info=why)
