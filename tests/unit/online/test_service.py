"""The service over releases that answer by arithmetic: swaps, refusals, and what happens without a vector."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ray_app.base.config import ImageLimits, ServeConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.online import service as module
from ray_app.online.problems import BadRequest, Unavailable
from ray_app.online.service import Service


class Encoder:
    """A query's vector is [its length]."""

    space, backend_name = "space", "lengths"

    def __init__(self) -> None:
        self.gate: threading.Event | None = None
        self.broken = False

    def encode(self, texts: list[str]) -> np.ndarray:
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.broken:
            raise RuntimeError("the model is broken")
        return np.array([[len(text)] for text in texts], np.float32)


class Release:
    """Echoes what it was asked, with its own name."""

    dim, num_pins = 1, 3

    def __init__(self, name: str, encoder: Encoder) -> None:
        self.release = SimpleNamespace(id=name)
        self.student_id, self.encoder = "student", encoder

    async def rerank(self, text: str, vector: np.ndarray | None, locale: str, pin_ids: list[str], top_k: Any) -> Any:
        return {"release": self.release.id, "vector": None if vector is None else float(vector[0, 0]), "text": text}


class World:
    """What CURRENT names, and what loading it gives."""

    def __init__(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
        self.current: str | None = "one"
        self.encoder = Encoder()
        self.bad: dict[str, str] = {}
        self.loads: list[str] = []
        cfg = ServeConfig.model_validate({"poll_interval_sec": 1000, "limits": limits})
        monkeypatch.setattr(module, "current_release", lambda _: self.current and SimpleNamespace(id=self.current))
        self.service = Service(cfg, ImageLimits(), Storage(str(tmp_path)), tmp_path, load=self.load)

    async def load(self, release: Any, _: Any) -> Any:
        self.loads.append(release.id)
        if release.id in self.bad:
            raise UserError(self.bad[release.id])
        return Release(release.id, self.encoder)

    def run(self, talk: Callable[[Service], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            await self.service.start()
            try:
                return await talk(self.service)
            finally:
                await self.service.close()

        return asyncio.run(main())


async def ask(service: Service, query: str = "mug") -> Any:
    return await service.rerank(query, "en-US", ["a"], None)


def test_a_new_release_is_served_after_it_was_loaded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)

    async def talk(service: Service) -> list[Any]:
        first = await ask(service)
        world.current = "two"
        assert await service.refresh() and not await service.refresh()
        return [first["release"], (await ask(service))["release"]]

    assert world.run(talk) == ["one", "two"]
    assert world.loads == ["one", "two"]


def test_a_refused_release_leaves_the_old_one_and_is_not_loaded_for_ever(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    world.bad["two"] = "release two is damaged"

    async def talk(service: Service) -> Any:
        world.current = "two"
        changed = [await service.refresh() for _ in range(3)]
        ready = service.readiness()
        world.current = "three"
        return changed, ready, await service.refresh(), service.readiness()

    changed, ready, recovered, after = world.run(talk)
    assert changed == [False] * 3 and world.loads.count("two") == 1
    assert ready["release"] == "one" and ready["refused"] == {"release": "two", "why": "release two is damaged"}
    assert recovered and after["release"] == "three" and after["refused"] is None


def test_it_does_not_start_without_a_release(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.current = None
    with pytest.raises(UserError, match=r"run `python pipelines/embed\.py"):
        world.run(ask)
    with pytest.raises(Unavailable):
        asyncio.run(ask(world.service))


def test_a_slow_encoder_degrades_the_answer_and_does_not_lose_the_vector(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, encoder_timeout_ms=30)
    world.encoder.gate = threading.Event()

    async def talk(service: Service) -> list[Any]:
        late = await ask(service)
        assert world.encoder.gate is not None
        world.encoder.gate.set()
        await asyncio.sleep(0.05)
        return [late, await ask(service)]

    late, after = world.run(talk)
    assert (late["degraded"], late["vector"]) == (True, None)
    assert (after["degraded"], after["vector"]) == (False, 3.0)
    assert world.service.num_degraded == 1


def test_a_broken_encoder_degrades_search_but_fails_encode(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.encoder.broken = True

    async def talk(service: Service) -> Any:
        with pytest.raises(RuntimeError, match="broken"):
            await service.encode(["mug"])
        return await ask(service)

    assert world.run(talk)["degraded"]


def test_queries_are_normalised_before_anything_else(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one query would be cached as several, and the student would read what it was never trained on."""
    world = World(tmp_path, monkeypatch)
    assert world.run(lambda service: ask(service, "  Red\tMUG\u200b "))["text"] == "red mug"


@pytest.mark.parametrize(
    ("query", "pins", "code"),
    [("\u200b \n", ["a"], "empty_query"), ("x" * 11, ["a"], "too_long"), ("mug", ["a"] * 4, "too_many")],
)
def test_what_is_too_much_is_refused(
    query: str, pins: list[str], code: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, max_query_chars=10, max_candidates=3)
    with pytest.raises(BadRequest) as caught:
        world.run(lambda service: service.rerank(query, "en-US", pins, None))
    assert caught.value.code == code


def test_requests_that_began_before_a_swap_end_with_their_release(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, encoder_timeout_ms=5000)
    world.encoder.gate = threading.Event()

    async def talk(service: Service) -> Any:
        old = asyncio.create_task(ask(service))
        await asyncio.sleep(0.01)
        world.current = "two"
        await service.refresh()
        assert world.encoder.gate is not None
        world.encoder.gate.set()
        return (await old)["release"], (await ask(service))["release"]

    assert world.run(talk) == ("one", "two")
