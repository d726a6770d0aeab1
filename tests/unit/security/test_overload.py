"""What one caller can take from the others: the encoder's queue, and the places of requests."""

import asyncio
import threading
from types import SimpleNamespace

import httpx
import pyarrow as pa
import pytest
from fake_encoder import Lengths, until
from hostile_images import encode, jpeg_of_scans
from PIL import Image

from ray_app.base.config import CacheConfig, ImageLimits, ServeConfig, ServeLimits
from ray_app.base.images.decode import decode
from ray_app.online import pin_images as module
from ray_app.online.pin_images import ImageJobs, PinImages
from ray_app.online.problems import NotFound, Overloaded
from ray_app.online.query_cache import QueryEmbeddingCache
from ray_app.online.service import Service
from serve.http import build_http


def with_cache(talk, **options):
    async def run():
        encoder = Lengths(threading.Event())
        cache = QueryEmbeddingCache(encoder, CacheConfig(), **options)
        busy = asyncio.create_task(cache.get(["busy"]))
        await until(lambda: encoder.batches)
        try:
            return await talk(cache, encoder)
        finally:
            encoder.gate.set()
            await busy
            await cache.close()

    return asyncio.run(run())


async def begun(*requests):
    """They have come as far as they do without an answer of anybody else."""
    tasks = [asyncio.create_task(request) for request in requests]
    await asyncio.sleep(0)
    return tasks


async def leave(*tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- the encoder's queue ---


def test_queries_whose_requests_are_over_leave_the_queue():
    """100 requests that were answered 503 left 6,336 queries, half a minute of work for which all others waited."""

    async def talk(cache, encoder):
        asked = [[f"{i} {j}" for j in range(64)] for i in range(5)]
        *gone, stays = await begun(*(cache.get(queries) for queries in (*asked, ["0 1", "mine"])))
        waited = cache.num_waiting
        await leave(*gone)
        left = cache.num_waiting
        encoder.gate.set()
        await stays
        return waited, left, sorted(query for batch in encoder.batches for query in batch)

    assert with_cache(talk) == (321, 2, ["0 1", "busy", "mine"])


def test_a_query_that_is_left_and_asked_again_is_encoded():
    async def talk(cache, encoder):
        await leave(*await begun(cache.get(["a"])))
        (again,) = await begun(cache.get(["a"]))
        encoder.gate.set()
        return (await again).tolist(), encoder.batches

    assert with_cache(talk) == ([[1.0, 1.0]], [["busy"], ["a"]])


def test_the_queue_is_bounded_and_what_is_refused_leaves_nothing_in_it():
    async def talk(cache, encoder):
        (fits,) = await begun(cache.get([f"fits {i}" for i in range(8)]))
        with pytest.raises(Overloaded, match="8 queries wait"):
            await cache.get(["one", "two", "three"])
        waited = cache.num_waiting
        (urgent,) = await begun(cache.get(["a search"], urgent=True))
        encoder.gate.set()
        await asyncio.gather(fits, urgent)
        return waited, cache.num_waiting

    assert with_cache(talk, max_waiting=10) == (8, 0)


def test_search_goes_before_encode():
    async def talk(cache, encoder):
        bulk = await begun(cache.get([f"bulk {i}" for i in range(6)]))
        search = await begun(*(cache.get([q], urgent=True) for q in ("search", "bulk 5")))
        encoder.gate.set()
        await asyncio.gather(*bulk, *search)
        return encoder.batches[1:]

    batches = with_cache(talk, max_batch_size=3)
    assert batches == [["search", "bulk 5", "bulk 0"], ["bulk 1", "bulk 2", "bulk 3"], ["bulk 4"]]


def test_limits_under_which_no_request_could_be_answered_are_refused():
    with pytest.raises(ValueError, match="max_waiting_queries: 10 is less than max_queries, 64"):
        ServeLimits(max_waiting_queries=10)


# --- a service as `make serve` has it, over pictures of a table ---


class Release:
    """Two pins; the picture `gated` is read when the gate opens."""

    def __init__(self, encoder, pictures=None):
        self.encoder, self.pictures = encoder, pictures
        self.release = SimpleNamespace(id="one", dim=2, num_pins=2, student_id="student")
        self.gate, self.making, self.most = threading.Event(), [], 0
        self._now, self._lock = 0, threading.Lock()

    async def image(self, pin_id):
        with self._lock:
            self._now += 1
            self.making.append(pin_id)
            self.most = max(self.most, self._now)
        assert self.gate.wait(20)
        with self._lock:
            self._now -= 1
        return b"jpeg"

    async def rerank(self, text, vector, locale, pin_ids, top_k):
        return {"results": []}

    def about(self):
        return {"release": "one"}


def with_service(talk, tmp_path, token=None, **limits):
    async def run():
        encoder = Lengths(threading.Event())
        release = Release(encoder)
        service = Service(ServeConfig.model_validate({"limits": limits}), ImageLimits(), None, tmp_path)
        await service._swap(release)
        app = build_http(service, token=token)
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
                return await talk(client, service, release)
        finally:
            encoder.gate.set()
            release.gate.set()
            await service.close()

    return asyncio.run(run())


def test_answered_encode_requests_leave_no_work_and_search_has_its_vector(tmp_path):
    async def talk(client, service, release):
        encoder = release.encoder
        statuses = set()
        for i in range(4):
            body = {"queries": [f"word{i} number{j}" for j in range(64)]}
            answer = await client.post("/v1/encode", json=body, headers={"x-deadline-ms": "50"})
            statuses.add(answer.status_code)
        waiting = service.cache.num_waiting
        encoder.gate.set()
        answer = await client.post("/v1/rerank", json={"query": "a user", "pin_ids": ["p"]})
        return statuses, waiting, answer.json()["degraded"], sum(map(len, encoder.batches))

    # One batch was begun with; of all else only the user's query is encoded.
    limits = {"deadline_ms": 20_000, "encoder_timeout_ms": 20_000}
    assert with_service(talk, tmp_path, **limits) == ({503}, 0, False, 33)


def test_too_many_queries_that_wait_are_answered_429(tmp_path):
    async def talk(client, service, release):
        asked = [{"queries": [f"{i} {j}" for j in range(64)]} for i in range(2)]
        first = await begun(*(client.post("/v1/encode", json=body) for body in asked))
        await until(lambda: service.cache.num_waiting == 96)
        answer = await client.post("/v1/encode", json={"queries": [f"more {j}" for j in range(64)]})
        release.encoder.gate.set()
        assert [(await one).status_code for one in first] == [200, 200]
        return answer.status_code, answer.json()["error"], answer.headers["retry-after"]

    assert with_service(talk, tmp_path, max_waiting_queries=128, deadline_ms=20_000) == (429, "overloaded", "1")


@pytest.mark.parametrize(("asked", "seconds"), [("1", 0.05), ("0", 0.05), ("70", 0.07), ("5000", 1.0), ("", 1.0)])
def test_a_deadline_has_a_floor(asked, seconds):
    """At 1 ms a request is nothing but work that nobody waits for."""
    guard = build_http(type("S", (), {"limits": ServeLimits(), "log_queries": False})())
    assert guard._deadline({b"x-deadline-ms": asked.encode()}) == seconds


def test_strangers_who_ask_for_pictures_take_no_place_of_those_with_the_token(tmp_path):
    """64 strangers took all places: those with the token were answered 429."""

    async def talk(client, service, release):
        strangers = await begun(*(client.get(f"/v1/pins/{i}/image") for i in range(64)))
        await until(lambda: len(release.making) == 2)
        mine = await client.get("/v1/about", headers={"authorization": "Bearer right"})
        release.gate.set()
        found = [(await one).status_code for one in strangers]
        return mine.status_code, found.count(200), found.count(429), release.most

    limits = {"max_concurrent_requests": 4, "max_concurrent_open_requests": 6, "deadline_ms": 20_000}
    assert with_service(talk, tmp_path, token="right", **limits) == (200, 6, 58, 2)


def test_one_picture_is_made_once_however_many_ask(tmp_path):
    async def talk(client, service, release):
        asked = await begun(*(client.get("/v1/pins/p/image") for _ in range(10)))
        await until(lambda: release.making)
        release.gate.set()
        return {(await one).content for one in asked}, release.making

    assert with_service(talk, tmp_path, deadline_ms=20_000) == ({b"jpeg"}, ["p"])


def test_pictures_whose_requests_are_over_are_not_begun(tmp_path):
    """After the 503 the work went on, in as many threads as there are."""

    async def talk(client, service, release):
        soon = {"x-deadline-ms": "50"}
        over = await asyncio.gather(*(client.get(f"/v1/pins/{i}/image", headers=soon) for i in range(10)))
        begun = len(release.making)
        release.gate.set()
        answer = await client.get("/v1/pins/late/image")
        return {one.status_code for one in over}, begun, answer.status_code, sorted(release.making)[2:]

    assert with_service(talk, tmp_path, deadline_ms=20_000) == ({503}, 2, 200, ["late"])


def test_who_asks_while_a_left_picture_is_being_made_shares_it():
    async def run():
        jobs, gate, made = ImageJobs(), threading.Event(), []

        def make():
            made.append(1)
            assert gate.wait(20)
            return b"jpeg"

        gone = await begun(jobs.get("p", make))
        await until(lambda: made)
        await leave(*gone)
        (later,) = await begun(jobs.get("p", make))
        gate.set()
        found = await later
        await until(lambda: not jobs._jobs)
        jobs.close()
        return found, made

    assert asyncio.run(run()) == (b"jpeg", [1])


def test_pictures_that_wait_are_bounded(monkeypatch):
    async def run():
        monkeypatch.setattr(module, "MAX_WAITING", 3)
        jobs, gate = ImageJobs(), threading.Event()
        asked = await begun(*(jobs.get(i, lambda: b"" if gate.wait(20) else None) for i in range(5)))
        with pytest.raises(Overloaded):
            await jobs.get("more", lambda: b"")
        gate.set()
        await asyncio.gather(*asked)
        jobs.close()

    asyncio.run(run())


# --- what a picture may be ---


def table(**row):
    return pa.table({"image": pa.array([row.get("image")], pa.string()), "image_bytes": pa.array([row.get("data")], pa.binary())})  # fmt: skip


def why(pictures):
    with pytest.raises(NotFound) as caught:
        pictures.jpeg(0)
    return str(caught.value).rpartition(" ")[2]


def test_pictures_on_the_web_are_not_fetched_for_anybody(monkeypatch):
    """The page loads them itself, so a request for one is a stranger's, who would have the server call where a pin says."""
    monkeypatch.setattr(module, "read_image", lambda *_: pytest.fail("it was fetched"))
    assert why(PinImages(table(image="https://example.com/a.png"), ImageLimits())) == "on_the_web"


def test_a_picture_that_cannot_be_read_is_not_read_again_at_once(monkeypatch, tmp_path):
    read = []
    monkeypatch.setattr(module, "read_image", lambda location, _: read.append(location) or b"no picture")
    pictures = PinImages(table(image=str(tmp_path / "x.png")), ImageLimits())
    assert [why(pictures), why(pictures)] == ["not_an_image"] * 2
    assert len(read) == 1


def test_serving_spends_less_memory_on_a_picture_than_captioning():
    data = encode(Image.new("RGB", (4000, 4000)), "WEBP", quality=1)
    assert decode(data, ImageLimits()).size == (512, 512)
    assert why(PinImages(table(data=data), ImageLimits())) == "too_much_memory"


@pytest.mark.parametrize(("size", "kind", "options"), [((4032, 3024), "WEBP", {"quality": 1}), ((7300, 5475), "JPEG", {"progressive": True})])  # fmt: skip
def test_photos_of_the_sizes_that_the_docs_name_are_shown(size, kind, options):
    """One of 12 megapixels, as phones make them, was refused as WebP."""
    data = encode(Image.new("RGB", size), kind, **options)
    assert PinImages(table(data=data), ImageLimits()).jpeg(0).startswith(b"\xff\xd8")


def test_a_picture_of_many_scans_is_refused_by_the_route():
    assert why(PinImages(table(data=jpeg_of_scans(300)), ImageLimits())) == "too_many_scans"


@pytest.mark.parametrize(
    "url",
    ["https://user:hunter2@host/a.png", "https://hunter2@host/a.png", "https://b.s3.amazonaws.com/a.png?X-Amz-Signature=1",
     "https://host/a.png?x-goog-signature=1", "https://host/a?sv=2&sig=1", "https://host/a.png?w=3&Signature=1&Key-Pair-Id=2",
     "https://host/a.png?access_token=1", "https://host/a.png#access_token=1", "https://host/a.png?%73ig=1", "http://[::1/a.png"],
)  # fmt: skip
def test_urls_with_a_secret_are_not_handed_out(url):
    assert PinImages(table(image=url), ImageLimits()).url("p", 0) is None


@pytest.mark.parametrize("url", ["https://host/a.png", "https://host/signature/token.png?w=300&v=2#top"])
def test_other_urls_are(url):
    assert PinImages(table(image=url), ImageLimits()).url("p", 0) == url
