"""The cache before the query encoder: one vector per query however many ask, and none that is wrong."""

import asyncio
import hmac
import threading
import time

import numpy as np
import pytest
from fake_encoder import Lengths, until

from ray_app.base.config import CacheConfig
from ray_app.online.query_cache import QueryEmbeddingCache

HMAC_KEY = "0123456789abcdef"


def run(encoder, talk, clock=time.monotonic, max_batch_size=32, **cfg):
    async def main():
        options = {"max_batch_size": max_batch_size, "namespace": "test", "clock": clock}
        cache = QueryEmbeddingCache(encoder, CacheConfig(**cfg), **options)
        try:
            return await talk(cache)
        finally:
            await cache.close()

    return asyncio.run(main())


async def hits_of(cache, queries):
    """How many of these were remembered."""
    before = cache.counts()["hits"]
    await cache.get(queries)
    return cache.counts()["hits"] - before


def test_vectors_come_in_the_order_asked_and_the_second_time_from_memory():
    async def talk(cache):
        first = await cache.get(["aaa", "b", "aaa"])
        return first, cache.counts()["hits"], await cache.get(["b", "cc"]), cache.counts()["hits"]

    encoder = Lengths()
    first, none, second, one = run(encoder, talk)
    assert (first[:, 0].tolist(), none) == ([3, 1, 3], 0)
    assert (second[:, 0].tolist(), one) == ([1, 2], 1)
    assert sorted(query for batch in encoder.batches for query in batch) == ["aaa", "b", "cc"]


def test_a_burst_of_one_query_is_encoded_once():
    gate = threading.Event()
    encoder = Lengths(gate)

    async def talk(cache):
        asked = [asyncio.create_task(cache.get(["hot"])) for _ in range(50)]
        await until(lambda: bool(encoder.batches))
        gate.set()
        return await asyncio.gather(*asked), cache.counts()

    answers, counts = run(encoder, talk)
    assert encoder.batches == [["hot"]]
    assert {float(vectors[0, 0]) for vectors in answers} == {3.0}
    assert (counts["misses"], counts["coalesced"], counts["hit_rate"]) == (1, 49, 0.98)


def test_queries_that_wait_go_together_and_a_lone_one_at_once():
    gate = threading.Event()
    encoder = Lengths(gate)

    async def talk(cache):
        first = asyncio.create_task(cache.get(["first"]))
        await until(lambda: bool(encoder.batches))
        rest = [asyncio.create_task(cache.get([f"q{i}"])) for i in range(5)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *rest)

    run(encoder, talk, max_batch_size=3)
    assert [len(batch) for batch in encoder.batches] == [1, 3, 2]


def test_a_failure_reaches_all_who_wait_and_is_not_remembered():
    gate = threading.Event()
    encoder = Lengths(gate)
    encoder.broken = True

    async def talk(cache):
        asked = [asyncio.create_task(cache.get(["x"])) for _ in range(3)]
        await until(lambda: bool(encoder.batches))
        gate.set()
        failed = await asyncio.gather(*asked, return_exceptions=True)
        encoder.broken = False
        return failed, await cache.get(["x"]), cache.counts()["hits"]

    failed, vectors, hits = run(encoder, talk)
    assert [str(error) for error in failed] == ["the model is broken"] * 3
    assert (float(vectors[0, 0]), hits) == (1.0, 0)


class Choking(Lengths):
    """Cannot encode `bad`: fails, or gives no number for it."""

    def __init__(self, gate, raises):
        super().__init__(gate)
        self.raises = raises

    def encode(self, texts):
        made = super().encode(texts)
        if "bad" in texts and self.raises:
            raise RuntimeError("choked")
        made[[text == "bad" for text in texts]] = np.nan
        return made


@pytest.mark.parametrize(
    ("raises", "told", "retried"),
    [(True, "choked", [["aa"], ["bad"], ["c"]]), (False, "no usable vectors", [["bad"]])],
)
def test_a_query_that_breaks_the_encoder_fails_alone(raises, told, retried):
    """Else one user's odd words take the vectors of all who ask in that moment, again at each retry."""
    gate = threading.Event()
    encoder = Choking(gate, raises)

    async def talk(cache):
        first = asyncio.create_task(cache.get(["first"]))
        await until(lambda: bool(encoder.batches))
        rest = [asyncio.create_task(cache.get([query])) for query in ("aa", "bad", "c")]
        await asyncio.sleep(0)
        gate.set()
        found = await asyncio.gather(first, *rest, return_exceptions=True)
        return found, await hits_of(cache, ["aa", "c"]), cache.counts()["batches"]

    (_, aa, bad, c), kept, num_batches = run(encoder, talk)
    assert (aa.tolist(), c.tolist(), kept) == ([[2.0, 1.0]], [[1.0, 1.0]], 2)
    assert isinstance(bad, Exception) and told in str(bad)
    assert encoder.batches == [["first"], ["aa", "bad", "c"], *retried]
    assert num_batches == len(encoder.batches)


def test_one_who_goes_away_takes_nobodys_vector_along():
    gate = threading.Event()
    encoder = Lengths(gate)

    async def talk(cache):
        gone, stays = (asyncio.create_task(cache.get(["same"])) for _ in range(2))
        await until(lambda: bool(encoder.batches))
        gone.cancel()
        await asyncio.sleep(0)
        gate.set()
        return await stays, gone.cancelled()

    vectors, cancelled = run(encoder, talk)
    assert cancelled and float(vectors[0, 0]) == 4.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_no_number_is_an_error_and_not_remembered(bad):
    encoder = Lengths()
    encoder.encode = lambda texts: np.full((len(texts), 2), bad, np.float32)
    with pytest.raises(ValueError, match="no usable vectors"):
        run(encoder, lambda cache: cache.get(["x"]))


def test_old_vectors_are_made_again_and_the_least_used_make_room():
    now = [0.0]
    encoder = Lengths()

    async def talk(cache):
        found = []
        for query, at in (("a", 0), ("b", 1), ("a", 2), ("c", 3), ("a", 4), ("b", 5), ("b", 99)):
            now[0] = at
            found.append(await hits_of(cache, [query]))
        return found

    cached = run(encoder, talk, clock=lambda: now[0], max_entries=2, ttl_sec=50)
    assert cached == [0, 0, 1, 0, 1, 0, 0]  # b made room for c; at 99 it is too old


def test_switched_off_it_remembers_nothing():
    async def talk(cache):
        await cache.get(["a"])
        return await hits_of(cache, ["a"])

    assert run(Lengths(), talk, max_entries=0) == 0


def test_nobody_can_change_what_is_remembered():
    async def talk(cache):
        (await cache.get(["abc"]))[:] = 0
        return await cache.get(["abc"])

    assert float(run(Lengths(), talk)[0, 0]) == 3.0


@pytest.fixture
def redis_url(redis_server, monkeypatch):
    """Settings of the second level."""
    monkeypatch.setenv("TEST_HMAC_KEY", HMAC_KEY)
    return {"redis_url": redis_server, "redis_key_env": "TEST_HMAC_KEY"}


def test_replicas_share_a_second_level(redis_url):
    async def warm(cache):
        await cache.get(["shared", "other"])

    async def later(cache):
        await cache.get(["own"])  # tells how wide vectors are
        await asyncio.gather(*cache._writes)  # the connection is there
        return await cache.get(["shared"]), cache.counts()

    run(Lengths(), warm, **redis_url)
    encoder = Lengths()
    vectors, counts = run(encoder, later, **redis_url)
    assert (vectors.tolist(), encoder.batches, counts["second_level_hits"]) == ([[6.0, 1.0]], [["own"]], 1)


def test_a_vector_of_another_width_in_the_second_level_is_ignored(redis_url):
    import redis

    key = hmac.digest(HMAC_KEY.encode(), b"odd", "sha256").hex()
    redis.Redis.from_url(redis_url["redis_url"]).set(f"relevance:test:{key}", b"\0" * 12)

    async def talk(cache):
        await cache.get(["own2"])
        await asyncio.gather(*cache._writes)
        return await cache.get(["odd"])

    assert run(Lengths(), talk, **redis_url).tolist() == [[3.0, 1.0]]


def test_without_the_second_level_queries_are_answered_all_the_same(redis_url):
    found = run(Lengths(), lambda cache: cache.get(["abc"]), **redis_url | {"redis_url": "redis://127.0.0.1:1/0"})
    assert found.tolist() == [[3.0, 1.0]]
