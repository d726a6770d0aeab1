"""Vectors of queries: remembered, encoded once however many ask, and encoded together when they wait together."""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np

from ray_app.base.config import CacheConfig
from ray_app.base.config.credentials import read_secret
from ray_app.online.problems import Overloaded

logger = logging.getLogger(__name__)

REDIS_SEC = 0.02  # a second level that answers later than that is slower than encoding
_REDIS_WRITE_SEC = 1.0  # nobody waits for it
_LOG_EVERY_SEC = 60.0
_HMAC_KEY_CHARS = 16


class QueryEncoder(Protocol):
    """Texts -> vectors."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(num_texts, width) float32; runs in a thread of its own."""


class QueryEmbeddingCache:
    """Cache, single flight and batching before one encoder. Belongs to one event loop.

    A lone query is encoded at once; those that arrive while the encoder works wait and go together, urgent ones first. A
    query that nobody waits for any more leaves the queue.

    Args:
        encoder: Called from one thread, never twice at once.
        max_waiting: Queries that may wait, of the urgent ones and of the others each.
        namespace: Says whose vectors these are, in a second level that others use too.
    """

    def __init__(
        self, encoder: QueryEncoder, cfg: CacheConfig, *, max_batch_size: int = 32, max_waiting: int = 512,
        namespace: str = "", clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        from cachetools import TTLCache

        self._encoder, self._max_batch_size, self._max_waiting = encoder, max_batch_size, max_waiting
        self._kept: TTLCache[str, np.ndarray] = TTLCache(cfg.max_entries, cfg.ttl_sec, timer=clock)
        self._flying: dict[str, asyncio.Future[np.ndarray]] = {}
        self._awaited: dict[str, int] = {}  # how many wait for each of `_flying`
        self._urgent: dict[str, None] = {}  # queues; a dict, since queries leave from the middle
        self._later: dict[str, None] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._worker: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._second = _Redis(cfg, namespace) if cfg.redis_url else None
        self.hits = self.coalesced = self.misses = self.second_level_hits = self.batches = 0

    def counts(self) -> dict[str, float]:
        """Queries by where their vectors came from, and the share that nothing had to be computed for."""
        asked = self.hits + self.coalesced + self.misses
        return {
            "hits": self.hits, "coalesced": self.coalesced, "misses": self.misses, "batches": self.batches,
            "second_level_hits": self.second_level_hits, "entries": len(self._kept), "waiting": self.num_waiting,
            "hit_rate": (self.hits + self.coalesced) / asked if asked else 0.0,
        }  # fmt: skip

    @property
    def num_waiting(self) -> int:
        """Queries that the encoder has not begun with."""
        return len(self._urgent) + len(self._later)

    async def get(self, queries: Sequence[str], *, urgent: bool = False) -> np.ndarray:
        """Vectors (num_queries, width) float32. Which were remembered is for nobody: it tells what others have asked.

        Raises:
            Overloaded: too many queries wait already; none of these is encoded.
            Exception: what the encoder raised; nothing is remembered then, and the next one to ask tries again.
        """
        known = {query: vector for query in queries if (vector := self._kept.get(query)) is not None}
        wanted = [query for query in dict.fromkeys(queries) if query not in known]
        new = [query for query in wanted if query not in self._flying]
        queue = self._urgent if urgent else self._later
        if new and len(queue) + len(new) > self._max_waiting:
            raise Overloaded(
                "overloaded", f"{len(queue)} queries wait to be encoded, at most {self._max_waiting} may; try again"
            )
        hits = sum(query in known for query in queries)
        self.hits += hits
        self.misses += len(new)
        self.coalesced += len(queries) - hits - len(new)
        flying = {query: self._flying.get(query) or self._start(query, queue) for query in wanted}
        for query in wanted:
            self._awaited[query] += 1
            if urgent and query in self._later:
                del self._later[query]
                self._urgent[query] = None
        try:
            # Shielded: one who goes away must not take the others' vector along.
            made = {query: await asyncio.shield(future) for query, future in flying.items()}
        finally:
            for query, future in flying.items():
                self._leave(query, future)
        return np.stack([known[query] if query in known else made[query] for query in queries])

    async def close(self) -> None:
        """Let the encoder finish what it does, and end."""
        if self._worker is not None:
            self._worker.cancel()
        for future in self._flying.values():
            future.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._second is not None:
            await asyncio.gather(*self._writes)
            await self._second.close()

    def _start(self, query: str, queue: dict[str, None]) -> asyncio.Future[np.ndarray]:
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_seen)
        self._flying[query] = future
        self._awaited[query] = 0
        queue[query] = None
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return future

    def _leave(self, query: str, future: asyncio.Future[np.ndarray]) -> None:
        """One who waited waits no longer. What nobody waits for is not encoded, unless the encoder has begun with it."""
        if self._flying.get(query) is not future:
            return
        self._awaited[query] -= 1
        if not self._awaited[query] and (query in self._urgent or query in self._later):
            self._urgent.pop(query, None)
            self._later.pop(query, None)
            del self._flying[query], self._awaited[query]
            future.cancel()

    def _next_batch(self) -> list[str]:
        batch = list(islice(chain(self._urgent, self._later), self._max_batch_size))
        for query in batch:
            self._urgent.pop(query, None)
            self._later.pop(query, None)
        return batch

    async def _work(self) -> None:
        """Encode until nobody waits."""
        while batch := self._next_batch():
            for query, vector in (await self._vectors_of(batch)).items():
                if isinstance(vector, np.ndarray):
                    vector.flags.writeable = False
                    if self._kept.maxsize:
                        self._kept[query] = vector
                self._land(query, vector)

    async def _vectors_of(self, batch: list[str]) -> dict[str, np.ndarray | Exception]:
        """Each query's vector, or why it has none."""
        known = {} if self._second is None else await self._second.get(batch)
        self.second_level_hits += len(known)
        missing = [query for query in batch if query not in known]
        made = await self._encode(missing) if missing else {}
        fresh = {query: vector for query, vector in made.items() if isinstance(vector, np.ndarray)}
        if fresh and self._second is not None:
            self._writes.add(write := asyncio.create_task(self._second.put(fresh)))
            write.add_done_callback(self._writes.discard)
        return {**known, **made}

    async def _encode(self, queries: list[str]) -> dict[str, np.ndarray | Exception]:
        """Each query's vector, or why it has none. What fails in a batch is done again alone: it must not fail the others."""
        self.batches += 1
        loop, error = asyncio.get_running_loop(), ValueError("the query encoder gave no usable vectors")
        try:
            made = np.asarray(await loop.run_in_executor(self._thread, self._encoder.encode, queries), np.float32)
            if made.ndim != 2 or len(made) != len(queries):
                raise error
        except Exception as raised:  # noqa: BLE001 - it is handed to all who wait
            found: dict[str, np.ndarray | Exception] = dict.fromkeys(queries, raised)
        else:
            found = {q: row.copy() if np.isfinite(row).all() else error for q, row in zip(queries, made, strict=True)}
        if len(queries) > 1:
            for query in [query for query, vector in found.items() if isinstance(vector, Exception)]:
                found |= await self._encode([query])
        return found

    def _land(self, query: str, result: np.ndarray | BaseException) -> None:
        future = self._flying.pop(query)
        del self._awaited[query]
        if future.done():
            return
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)


def _seen(future: "asyncio.Future[np.ndarray]") -> None:
    """An error that nobody waits for any more is no error of the program."""
    if not future.cancelled():
        future.exception()


def redis_secrets(cfg: CacheConfig) -> tuple[str | None, bytes]:
    """The password of the second level, None if it asks for none, and the secret that its keys are made with.

    Raises:
        UserError: the environment has none, or too short a one.
    """
    secret = read_secret(cfg.redis_key_env or "", "serve.cache.redis_key_env", _HMAC_KEY_CHARS)
    password = cfg.redis_password_env
    return password and read_secret(password, "serve.cache.redis_password_env"), secret.encode()


class _Redis:
    """The second level. Whatever is wrong with it, requests go on without.

    Raises:
        UserError: a secret that the config names is not in the environment.
    """

    def __init__(self, cfg: CacheConfig, namespace: str) -> None:
        import redis.asyncio

        assert cfg.redis_url is not None
        password, self._hmac_key = redis_secrets(cfg)
        self._client: Any = redis.asyncio.from_url(
            cfg.redis_url, password=password, socket_timeout=_REDIS_WRITE_SEC, socket_connect_timeout=_REDIS_WRITE_SEC,
            max_connections=4,
        )  # fmt: skip
        self._prefix, self._ttl = f"relevance:{namespace}:", max(1, round(cfg.ttl_sec))
        self._width: int | None = None  # of this encoder's vectors; known after the first
        self._logged = float("-inf")

    async def get(self, queries: Sequence[str]) -> dict[str, np.ndarray]:
        values = await self._try(lambda: self._client.mget([self._key(query) for query in queries]))
        found = {}
        for query, value in zip(queries, values or [], strict=False):
            if value is None or self._width is None or len(value) != 4 * self._width:
                continue
            vector = np.frombuffer(value, np.float32).copy()
            if np.isfinite(vector).all():
                found[query] = vector
        return found

    async def put(self, vectors: dict[str, np.ndarray]) -> None:
        self._width = len(next(iter(vectors.values())))

        async def write() -> None:
            async with self._client.pipeline(transaction=False) as pipe:
                for query, vector in vectors.items():
                    pipe.set(self._key(query), vector.tobytes(), ex=self._ttl)
                await pipe.execute()

        await self._try(write, _REDIS_WRITE_SEC)

    async def close(self) -> None:
        await self._try(self._client.aclose)

    def _key(self, query: str) -> str:
        # A plain hash would let whoever sees it test whether somebody asked this or that.
        return self._prefix + hmac.digest(self._hmac_key, query.encode("utf-8", "surrogatepass"), "sha256").hex()

    async def _try(self, call: Callable[[], Any], seconds: float = REDIS_SEC) -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await call()
        except Exception as error:  # noqa: BLE001 - the library's, the network's or the server's: vectors can be made again
            if time.monotonic() - self._logged > _LOG_EVERY_SEC:
                self._logged = time.monotonic()
                logger.warning("the second level of the query cache is left out: %s", type(error).__name__)
            return None
