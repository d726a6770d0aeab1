"""The online service without HTTP and without Ray: vectors of queries, rerank, search, related pins, boards, pictures.

A request works on one `LoadedRelease` release from start to end, so a swap to another one in between changes nothing for it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.base.config import ImageLimits, ServeConfig, ServeLimits
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.text import normalize_query
from ray_app.online.loaded_release import LoadedRelease, Shards
from ray_app.online.local_files import collect_local
from ray_app.online.messages import ShardStats
from ray_app.online.pin_images import ImageJobs
from ray_app.online.problems import BadRequest, Overloaded, Unavailable
from ray_app.online.query_cache import QueryEmbeddingCache
from ray_app.online.shard_index import ShardIndex
from ray_app.online.shards import LocalShard, RemoteShards, ShardHandle, at_once
from ray_app.tables.current import current_release
from ray_app.tables.release import Release

logger = logging.getLogger(__name__)

LoadRelease = Callable[[Release, LoadedRelease | None], Awaitable[LoadedRelease]]

_WAIT_SEC = 1.0  # between two looks whether the shards are there


class Service:
    """Answers requests from the release that CURRENT names.

    Args:
        shards: Hold the pins, shard i of len(shards) the i-th; empty: this process does.
        load: Makes a `LoadedRelease` of a release, given the one before; tests pass their own.
    """

    def __init__(
        self, cfg: ServeConfig, images: ImageLimits, store: Storage, local_cache_dir: Path, shards: Sequence[ShardHandle] = (),
        load: LoadRelease | None = None,
    ) -> None:  # fmt: skip
        self.cfg, self.store, self._local_cache_dir, self._shards = cfg, store, local_cache_dir, shards
        self._images = images
        self._load = load or self._load_release
        self._served: LoadedRelease | None = None
        self._vectors: QueryEmbeddingCache | None = None
        self._refused: tuple[str, str] | None = None  # release that could not be loaded, and why
        # One thread: numpy and torch use the cores of a replica anyway, and more of them would only wait for each other.
        self._rank_thread = ThreadPoolExecutor(1, thread_name_prefix="rank")
        self._load_thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._image_jobs = ImageJobs()
        self._polling: asyncio.Task[None] | None = None
        self.num_degraded = 0

    @property
    def limits(self) -> ServeLimits:
        """Limits of requests."""
        return self.cfg.limits

    @property
    def log_queries(self) -> bool:
        """True if query texts may be logged."""
        return self.cfg.log_queries

    # --- life ---

    async def start(self) -> None:
        """Load the current release, as soon as the shards are there, and follow CURRENT from then on.

        Raises:
            UserError: there is none, or it cannot be served; the message says why.
        """
        while True:
            try:
                await self.refresh(must=True)
                break
            except Unavailable as problem:
                logger.info("waiting for the shards: %s", problem)
                await asyncio.sleep(_WAIT_SEC)
        self._polling = asyncio.create_task(self._poll())

    async def close(self) -> None:
        """Stop following and give back the threads."""
        if self._polling is not None:
            self._polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._polling
        if self._vectors is not None:
            await self._vectors.close()
        self._rank_thread.shutdown(wait=False, cancel_futures=True)
        self._load_thread.shutdown(wait=False, cancel_futures=True)
        self._image_jobs.close()

    async def refresh(self, must: bool = False) -> bool:
        """Serve the release that CURRENT names, if it is another one; returns whether it changed.

        A release that cannot be served is refused, with a log line that says why, and the old one goes on.

        Args:
            must: Raise instead.

        Raises:
            UserError: only with `must`.
            Unavailable: a shard cannot be reached now.
        """
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._load_thread)
        name = "CURRENT"
        try:
            release = await in_thread(current_release, self.store)
            name = name if release is None else release.id
            if release is None:
                raise UserError("there is no release yet: run `python pipelines/embed.py --config ...` first")
            if self._served is not None and release.id == self._served.release.id:
                self._refused = None  # as after a rollback
                return False
            if self._refused is not None and self._refused[0] == release.id and not must:
                return False
            before = self._served
            served = await self._load(release, before)
            keep = {release.id} if before is None else {release.id, before.release.id}
            await in_thread(collect_local, self._local_cache_dir, keep)
        except UserError as error:
            if must:
                raise
            if self._refused != (name, str(error)):
                logger.error("release refused, the old one goes on: %s", error)
            self._refused = (name, str(error))
            return False
        await self._swap(served)
        return True

    async def _load_release(self, release: Release, before: LoadedRelease | None) -> LoadedRelease:
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._load_thread)
        shards: Shards
        if self._shards:
            stats = ShardStats.merged(await asyncio.gather(*(shard.prepare(release.id) for shard in self._shards)))
            shards = RemoteShards(self._shards, release.id)
        else:
            whole = await in_thread(ShardIndex.load, self.store, self.cfg, self._images, self._local_cache_dir, release)
            stats, shards = await in_thread(whole.stats), LocalShard(whole)
        return await in_thread(
            LoadedRelease.load, self.store, self.cfg, self._local_cache_dir, release, shards, stats, before
        )  # fmt: skip

    async def _swap(self, served: LoadedRelease) -> None:
        before, old_vectors = self._served, self._vectors
        if before is None or served.encoder is not before.encoder or old_vectors is None:
            vectors = QueryEmbeddingCache(
                served.encoder, self.cfg.cache, max_batch_size=self.cfg.max_batch_size,
                max_waiting=self.limits.max_waiting_queries, namespace=served.encoder.space,
            )  # fmt: skip
            self._served, self._vectors = served, vectors
            if old_vectors is not None:
                await asyncio.sleep(self.limits.deadline_ms / 1000)  # requests that began with it end with it
                await old_vectors.close()
        else:
            self._served = served
        self._refused = None
        made = served.release
        logger.info("serving release %s: %d pins, student %s", made.id, made.num_pins, made.student_id)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.cfg.poll_interval_sec)
            try:
                await self.refresh()
            except Unavailable as problem:
                logger.warning("cannot load a new release now; the old one goes on: %s", problem)
            except Exception:  # storage may be away for a while; what is served does not need it
                logger.exception("cannot look for a new release; the old one goes on")

    # --- requests ---

    async def encode(self, queries: Sequence[str]) -> dict[str, Any]:
        """See serve.models.EncodeResponse."""
        if len(queries) > self.limits.max_queries:
            raise BadRequest("too_many", f"queries: at most {self.limits.max_queries} at once")
        texts = [self._text(query) for query in queries]
        served, cache = self._current()
        own = np.ascontiguousarray((await cache.get(texts))[:, : served.release.dim])
        return {"student": served.release.student_id, "dim": served.release.dim, "embeddings": own}

    async def rerank(self, query: str, locale: str, pin_ids: Sequence[str], top_k: int | None) -> dict[str, Any]:
        """See serve.models.RerankResponse."""
        started = time.perf_counter()
        if len(pin_ids) > self.limits.max_candidates:
            raise BadRequest("too_many", f"pin_ids: at most {self.limits.max_candidates} candidates of one query")
        text = self._text(query)
        served, cache = self._current()
        vector = await self._vector(cache, text)
        ranked = await self._rank(served.rerank, text, vector, locale, list(pin_ids), top_k)
        return ranked | {"degraded": vector is None, "took_ms": _ms(started)}

    async def search(self, query: str, locale: str, top_k: int) -> dict[str, Any]:
        """See serve.models.SearchResponse."""
        started = time.perf_counter()
        text = self._text(query)
        served, cache = self._current()
        vector = await self._vector(cache, text)
        found = await self._rank(served.search, text, vector, locale, top_k)
        return found | {"degraded": vector is None, "took_ms": _ms(started)}

    async def related(self, pin_id: str, k: int) -> dict[str, Any]:
        """See serve.models.RelatedResponse."""
        served, _ = self._current()
        return await self._rank(served.related, pin_id, k)

    async def encode_board(self, title: str, pin_ids: Sequence[str]) -> dict[str, Any]:
        """See serve.models.BoardResponse: the mean of the title's vector and of the pins' mean vector.

        Source: boards are read as their title in the paper; pins that are in it say the rest.
        """
        served, cache = self._current()
        title = normalize_query(title)
        if len(title) > self.limits.max_query_chars:
            raise BadRequest("too_long", f"title: at most {self.limits.max_query_chars} characters")
        if len(pin_ids) > self.limits.max_candidates:
            raise BadRequest("too_many", f"pin_ids: at most {self.limits.max_candidates}")
        of_title = (await cache.get([title]))[0, : served.release.dim] if title else None
        return await self._rank(served.board, of_title, list(pin_ids))

    async def image(self, pin_id: str) -> bytes:
        """A small JPEG of a pin's picture."""
        served, _ = self._current()
        if self._shards:
            return await served.image(pin_id)
        # Not in the thread that ranks: storage may be slow, and no other request waits for it.
        made = await self._image_jobs.get((served.release.id, pin_id), partial(at_once, served.image, pin_id))
        assert made is not None
        return made

    def about(self) -> dict[str, Any]:
        """See serve.models.About."""
        return self._current()[0].about()

    def readiness(self) -> dict[str, Any]:
        """Readiness: the served release, and a newer release that was rejected; for this process, not for callers."""
        refused = None if self._refused is None else {"release": self._refused[0], "why": self._refused[1]}
        served = self._served
        if served is None:
            return {"ready": False, "refused": refused}
        release = served.release
        about = {"release": release.id, "student": release.student_id, "backend": served.encoder.backend_name}
        cache = {} if self._vectors is None else self._vectors.counts()
        return {"ready": True, "refused": refused, "cache": cache, "degraded": self.num_degraded} | about

    @property
    def cache(self) -> QueryEmbeddingCache | None:
        """Query embedding cache, for metrics."""
        return self._vectors

    # --- helpers ---

    def _current(self) -> tuple[LoadedRelease, QueryEmbeddingCache]:
        if self._served is None or self._vectors is None:
            raise Unavailable("not_ready", "no release is loaded yet; try again")
        return self._served, self._vectors

    def _text(self, query: str) -> str:
        text = normalize_query(query)
        if not text:
            raise BadRequest("empty_query", "query: it has no visible character")
        if len(text) > self.limits.max_query_chars:
            raise BadRequest("too_long", f"query: at most {self.limits.max_query_chars} characters")
        return text

    async def _vector(self, cache: QueryEmbeddingCache, text: str) -> np.ndarray | None:
        """The query's vector, or None if it is not there in time: then features alone rank."""
        try:
            async with asyncio.timeout(self.limits.encoder_timeout_ms / 1000):
                return await cache.get([text], urgent=True)
        except TimeoutError:
            logger.warning("a query is ranked without its vector: that took over %d ms", self.limits.encoder_timeout_ms)
        except Overloaded as problem:
            logger.warning("a query is ranked without its vector: %s", problem)
        except Exception:  # whatever is broken in the encoder, words and features can still rank
            logger.exception("a query is ranked without its vector")
        self.num_degraded += 1
        return None

    async def _rank(self, work: Callable[..., Coroutine[Any, Any, dict[str, Any]]], *args: Any) -> dict[str, Any]:
        if self._shards:
            return await work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._rank_thread, partial(at_once, work, *args))


def _ms(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 3)
