"""The service over releases that answer by arithmetic: swaps, refusals, and what happens without a vector."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from fake_encoder import Lengths

from ray_app.base.config import ImageLimits, ServeConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.online import service as module
from ray_app.online.problems import BadRequest, Unavailable
from ray_app.online.service import Service


class Release:
    """Echoes what it was asked, with its own name."""

    def __init__(self, name, encoder):
        self.release = SimpleNamespace(id=name, dim=1, num_pins=3, student_id="student")
        self.encoder = encoder

    async def rerank(self, text, vector, locale, pin_ids, top_k):
        return {"release": self.release.id, "vector": None if vector is None else float(vector[0, 0]), "text": text}


class World:
    """What CURRENT names, and what loading it gives."""

    def __init__(self, tmp_path, monkeypatch, **limits):
        self.current = "one"
        self.encoder = Lengths()
        self.bad = {}
        self.loads = []
        cfg = ServeConfig.model_validate({"poll_interval_sec": 1000, "limits": limits})
        monkeypatch.setattr(module, "current_release", lambda _: self.current and SimpleNamespace(id=self.current))
        self.service = Service(cfg, ImageLimits(), Storage(str(tmp_path)), tmp_path, load=self.load)

    async def load(self, release, _):
        self.loads.append(release.id)
        if release.id in self.bad:
            raise UserError(self.bad[release.id])
        return Release(release.id, self.encoder)

    def run(self, talk):
        async def main():
            await self.service.start()
            try:
                return await talk(self.service)
            finally:
                await self.service.close()

        return asyncio.run(main())


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


async def ask(service, query="mug"):
    return await service.rerank(query, "en-US", ["a"], None)


def test_a_new_release_is_served_after_it_was_loaded(world):
    async def talk(service):
        first = await ask(service)
        world.current = "two"
        assert await service.refresh() and not await service.refresh()
        return [first["release"], (await ask(service))["release"]]

    assert world.run(talk) == ["one", "two"]
    assert world.loads == ["one", "two"]


def test_a_refused_release_leaves_the_old_one_and_is_not_loaded_for_ever(world):
    world.bad["two"] = "release two is damaged"

    async def talk(service):
        world.current = "two"
        changed = [await service.refresh() for _ in range(3)]
        ready = service.readiness()
        world.current = "three"
        return changed, ready, await service.refresh(), service.readiness()

    changed, ready, recovered, after = world.run(talk)
    assert changed == [False] * 3 and world.loads.count("two") == 1
    assert ready["release"] == "one" and ready["refused"] == {"release": "two", "why": "release two is damaged"}
    assert recovered and after["release"] == "three" and after["refused"] is None


def test_it_does_not_start_without_a_release(world):
    world.current = None
    with pytest.raises(UserError, match=r"run `python pipelines/embed\.py"):
        world.run(ask)
    with pytest.raises(Unavailable):
        asyncio.run(ask(world.service))


def test_a_slow_encoder_degrades_the_answer_and_does_not_lose_the_vector(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, encoder_timeout_ms=30)
    world.encoder.gate = threading.Event()

    async def talk(service):
        late = await ask(service)
        world.encoder.gate.set()
        await asyncio.sleep(0.05)
        return [late, await ask(service)]

    late, after = world.run(talk)
    assert (late["degraded"], late["vector"]) == (True, None)
    assert (after["degraded"], after["vector"]) == (False, 3.0)
    assert world.service.num_degraded == 1


def test_a_broken_encoder_degrades_search_but_fails_encode(world):
    world.encoder.broken = True

    async def talk(service):
        with pytest.raises(RuntimeError, match="broken"):
            await service.encode(["mug"])
        return await ask(service)

    assert world.run(talk)["degraded"]


def test_queries_are_normalised_before_anything_else(world):
    """Else one query would be cached as several, and the student would read what it was never trained on."""
    assert world.run(lambda service: ask(service, "  Red\tMUG\u200b "))["text"] == "red mug"


@pytest.mark.parametrize(
    ("query", "pins", "code"),
    [("\u200b \n", ["a"], "empty_query"), ("x" * 11, ["a"], "too_long"), ("mug", ["a"] * 4, "too_many")],
)
def test_what_is_too_much_is_refused(query, pins, code, tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, max_query_chars=10, max_candidates=3)
    with pytest.raises(BadRequest) as caught:
        world.run(lambda service: service.rerank(query, "en-US", pins, None))
    assert caught.value.code == code


def test_requests_that_began_before_a_swap_end_with_their_release(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, encoder_timeout_ms=5000)
    world.encoder.gate = threading.Event()

    async def talk(service):
        old = asyncio.create_task(ask(service))
        await asyncio.sleep(0.01)
        world.current = "two"
        await service.refresh()
        world.encoder.gate.set()
        return (await old)["release"], (await ask(service))["release"]

    assert world.run(talk) == ("one", "two")
