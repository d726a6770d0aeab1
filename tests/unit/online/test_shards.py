"""Processes that hold shards: what they keep, what they say while they load, and what the service makes of it."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from ray_app.base.config import ImageLimits, ServeConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.online import service as service_module
from ray_app.online import shards as shards_module
from ray_app.online.loaded_release import LoadedRelease
from ray_app.online.messages import ShardStats
from ray_app.online.problems import NotFound, Unavailable
from ray_app.online.service import Service
from ray_app.online.shards import LocalShard, RemoteShards, ShardServer, at_once


class OneShard:
    """Says of which release and shard it is."""

    def __init__(self, release, shard):
        self.name = f"{release}/{shard}"

    def stats(self):
        return ShardStats(num_pins=1, locales=Counter(), words=Counter())

    def image(self, pin_id):
        if pin_id == "none":
            raise NotFound("no_image", "none")
        return self.name


def release(name):
    return SimpleNamespace(id=name, num_pins=2, student_id="student")


class World:
    """Shards whose releases load at once, but for those that are `bad`."""

    def __init__(self, tmp_path, monkeypatch, poll_interval_sec=0.01):
        self.cfg = ServeConfig(shards=2, poll_interval_sec=poll_interval_sec)
        self.store, self.folder = Storage(str(tmp_path)), tmp_path
        self.current, self.bad, self.loads = "one", {}, []
        self.encoder = SimpleNamespace(
            space="space", backend_name="fake", encode=lambda texts: np.ones((len(texts), 1))
        )
        monkeypatch.setattr(shards_module, "find_release", lambda _, name: release(name))
        monkeypatch.setattr(shards_module, "read_current", lambda _: self.current and release(self.current))
        monkeypatch.setattr(service_module, "current_release", lambda _: release(self.current))
        monkeypatch.setattr(service_module, "LoadedRelease", SimpleNamespace(load=self.served))
        monkeypatch.setattr(service_module, "_WAIT_SEC", 0.01)
        self.shards = [self.shard(i) for i in range(2)]

    def shard(self, i):
        def load(release):
            self.loads.append(f"{release.id}/{i}")
            if (why := self.bad.get(f"{release.id}/{i}")) is not None:
                raise why
            return OneShard(release.id, i)

        return ShardServer(self.cfg, ImageLimits(), self.store, self.folder, (i, self.cfg.shards), load)

    def served(self, store, cfg, local_cache_dir, release, shards, stats, before):
        assert stats.num_pins == shards.num
        everything = dict.fromkeys(LoadedRelease.__dataclass_fields__)
        return LoadedRelease(**everything | {"release": release, "shards": shards, "encoder": self.encoder})

    def service(self):
        return Service(self.cfg, ImageLimits(), self.store, self.folder, self.shards)


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


async def eventually(done):
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.01)


async def both(served):
    """What each of the two shards answers."""
    return (await served.shards.ask("image", {0: ("x",), 1: ("x",)})).values()


def test_what_a_shard_does_not_hold_it_loads_and_never_answers_from_another(world):
    """A process that was restarted knows nothing; it is told by what it is asked."""

    async def talk():
        shard = world.shards[1]
        await shard.prepare("one")
        with pytest.raises(Unavailable) as caught:
            await shard.ask("two", "image", "x")
        await eventually(lambda: "two" in shard._held)
        return caught.value.code, await shard.ask("two", "image", "x"), await shard.ask("one", "image", "x")

    assert asyncio.run(talk()) == ("loading", "two/1", "one/1")
    assert world.loads == ["one/1", "two/1"]


def test_the_release_in_use_stays_when_others_come(world):
    """Two are held: what requests use, and one more."""

    async def talk():
        shard = world.shards[0]
        for name in ("one", "two"):
            await shard.prepare(name)
        await shard.ask("one", "image", "x")
        await shard.prepare("three")
        return list(shard._held)

    assert asyncio.run(talk()) == ["one", "three"]


def test_many_who_ask_for_a_release_load_it_once(world):
    async def talk():
        await asyncio.gather(*(world.shards[0].prepare("one") for _ in range(5)))

    asyncio.run(talk())
    assert world.loads == ["one/0"]


def test_a_release_that_cannot_be_loaded_is_not_tried_with_each_question(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, poll_interval_sec=1000)
    world.bad["one/0"] = UserError("release one is damaged")

    async def talk():
        for _ in range(5):
            with pytest.raises(Unavailable):
                await world.shards[0].ask("one", "image", "x")
            await asyncio.sleep(0.02)

    asyncio.run(talk())
    assert world.loads == ["one/0"]


def test_a_shard_starts_with_the_current_release_or_without(world):
    """It waits to be told if the current one is bad, which routers may have refused long ago."""
    world.bad["two/1"] = UserError("release two is damaged")

    async def talk():
        await world.shards[0].start()
        world.current = "two"
        await world.shards[1].start()
        world.current = None
        await world.shard(1).start()
        return [list(shard._held) for shard in world.shards]

    assert asyncio.run(talk()) == [["one"], []]


def test_problems_of_a_question_reach_who_asked(world):
    async def talk():
        await world.shards[0].prepare("one")
        await world.shards[0].ask("one", "image", "none")

    with pytest.raises(NotFound, match="none"):
        asyncio.run(talk())


def test_a_release_is_served_once_all_shards_have_it(world):
    async def talk():
        service = world.service()
        await service.start()
        before = list(await both(service._current()[0]))
        world.current = "two"
        await eventually(lambda: service._current()[0].release.id == "two")
        after = list(await both(service._current()[0]))
        await service.close()
        return before, after

    assert asyncio.run(talk()) == (["one/0", "one/1"], ["two/0", "two/1"])


def test_what_one_shard_refuses_is_refused_with_its_message(world):
    world.bad["two/1"] = UserError("release two: part-00000.parquet is damaged")

    async def talk():
        service = world.service()
        await service.start()
        world.current = "two"
        await eventually(lambda: service.readiness()["refused"])
        answers = list(await both(service._current()[0]))
        ready = service.readiness()
        await service.close()
        return answers, ready

    answers, ready = asyncio.run(talk())
    assert answers == ["one/0", "one/1"]
    assert ready["refused"] == {"release": "two", "why": "release two: part-00000.parquet is damaged"}
    assert world.loads.count("two/1") == 1


def test_a_router_waits_for_shards_that_start_and_goes_on_without_those_that_are_away(world):
    """Neither is a refusal: the release is fine."""

    class Away:
        prepared = 0

        async def prepare(self, release_id):
            self.prepared += 1
            if self.prepared < 3 or (release_id == "two" and self.prepared < 9):
                raise Unavailable("shard_unavailable", "Shard1 does not answer now")
            return await world_shard.prepare(release_id)

        async def ask(self, *args):
            return await world_shard.ask(*args)

    world_shard, world.shards[1] = world.shards[1], Away()

    async def talk():
        service = world.service()
        await service.start()
        world.current = "two"
        await eventually(lambda: world.shards[1].prepared > 5)
        away = service.readiness()
        await eventually(lambda: service._current()[0].release.id == "two")
        await service.close()
        return away

    away = asyncio.run(talk())
    assert (away["release"], away["refused"]) == ("one", None)


def test_one_shard_that_cannot_answer_fails_the_question(world):
    """An answer without its pins would look like a whole one."""

    class Gone:
        async def ask(self, *args):
            raise Unavailable("shard_unavailable", "Shard1 does not answer now")

    async def talk():
        await world.shards[0].prepare("one")
        shards = RemoteShards([world.shards[0], Gone()], "one")
        assert await shards.ask("image", {0: ("x",)}) == {0: "one/0"}
        await shards.ask("image", {0: ("x",), 1: ("x",)})

    with pytest.raises(Unavailable, match="Shard1"):
        asyncio.run(talk())


def test_a_local_slice_needs_no_event_loop():
    """A request without shards is one job of one thread."""
    shards = LocalShard(OneShard("one", 0))

    async def work(pin):
        return await shards.aside(str.upper, (await shards.ask("image", {0: (pin,)}))[0])

    assert at_once(work, "x") == "ONE/0"
    with pytest.raises(AssertionError, match="waited"):
        at_once(asyncio.sleep, 0)
