"""A release in one slice and in several: the same answers, whatever is asked."""

import asyncio
import itertools
import pickle
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import side_world
import torch
from PIL import Image

from ray_app.base.columns import matrix_column
from ray_app.base.config import ImageLimits, ServeConfig, load_config
from ray_app.base.errors import UserError
from ray_app.base.hashing import shards_of
from ray_app.base.schemas import embedding_results
from ray_app.features.bm25 import CatalogueMatch
from ray_app.online import loaded_release as served_module
from ray_app.online import shard_index as shard_module
from ray_app.online.loaded_release import LoadedRelease
from ray_app.online.messages import QueryInput, ShardStats
from ray_app.online.problems import BadRequest, NotFound
from ray_app.online.release_inputs import config_of
from ray_app.online.service import Service
from ray_app.online.shard_index import ShardIndex
from ray_app.online.shards import LocalShard, ShardServer, at_once
from ray_app.stages.engagement import stage as engagement_stage
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Output, require_output
from ray_app.tables.publish import publish_release

COLOURS = ("red", "green", "blue", "black", "small", "large")
THINGS = ("cup", "mug", "shoe", "laptop", "usb hub", "cables")
PINS = {
    f"{c}-{t}".replace(" ", "_"): f"the {c} {t}{' and another cup' * (i % 3)}"
    for i, (c, t) in enumerate(itertools.product(COLOURS, THINGS))
} | {"p1": "a toaster"}  # which `side_world` has a label of
BOARDS = [("b1", "red-cup", "My kitchen"), ("b1", "blue-mug", "My kitchen")]
PICTURED = "blue-cup"
NO_VECTOR = "green-mug"  # in the catalogue, not in the release
LOG = [
    (f"{c} {t}", f"{c}-{t}", action)
    for n, (c, t) in enumerate(itertools.product(COLOURS[:4], THINGS[:3]))
    for action in ("impression", "click", "save")[: 1 + n % 3]
]
DIM = 8
EVERYTHING = ServeConfig(query_encoder_backend="torch")
MANY = 17  # shards of 37 pins: some of them are empty


class Student:
    """Grades by all that it is given, so that any other number shows."""

    def __init__(self, store, output):
        self.model = SimpleNamespace(cfg=SimpleNamespace(dim=DIM, matryoshka_dims=[]))

    def require_width(self, num_features):
        assert num_features > 4

    def score(self, query_vectors, pin_vectors, features, locales):
        base = features.astype(np.float64) @ np.linspace(1, 2, features.shape[1])
        if query_vectors.shape[1]:
            base += (query_vectors * pin_vectors).sum(1)
        logits = np.exp(np.sin(base[:, None] / np.arange(1, 6)))
        return (logits / logits.sum(1, keepdims=True)).astype(np.float32)


class Encoder:
    """Random vectors that follow from the text, and the zero-shot vectors of `side_world`."""

    backend_name = space = "random"

    @classmethod
    def load(cls, *_):
        return cls()

    def encode(self, texts):
        own = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIM) for text in texts]
        return np.concatenate([own, [side_world.vector(text) for text in texts]], 1).astype(np.float32)

    def zero_shot_part(self, rows):
        return np.zeros((1, 8), np.float32) if rows is None else rows[:, DIM:]


class Spread:
    """Slices in this process; all that goes in and out is pickled, as between processes."""

    def __init__(self, parts):
        self.parts, self.num = parts, len(parts)

    async def ask(self, question, args):
        return {i: copied(getattr(self.parts[i], question)(*copied(own))) for i, own in args.items()}

    async def aside(self, work, *args):
        return work(*args)


def copied(value):
    return pickle.loads(pickle.dumps(value))


class World:
    """A release of all pins but one, and slices of it."""

    def __init__(self, folder):
        Image.new("RGB", (8, 8), "red").save(folder / "picture.png")
        self.cfg, self.store = side_world.build(
            folder, pins=PINS, log=LOG, boards=BOARDS, rows_per_file=10, images={PICTURED: folder / "picture.png"},
            engagement={"epochs": 1, "dim": 4, "hidden_dim": 8},
        )  # fmt: skip
        engagement_stage.run(self.cfg, self.store)
        named = [
            ("ingest", "pins"), ("enrich", "pin_texts"), ("engagement", "engagement_pins"),
            ("corpus_statistics", "corpus_statistics"),
        ]  # fmt: skip
        sources = {name: require_output(self.store, stage, name) for stage, name in named}
        sources["engagement_model"] = require_output(self.store, "engagement", "engagement_model")
        for name in ("student", "feature_only_student"):
            sources[name] = Output(name=name, path=f"models/{name}", files=[], rows=0, content_hash="5" * 16)
        self.pins = [pin for pin in PINS if pin != NO_VECTOR]
        vectors = np.random.default_rng(0).standard_normal((len(self.pins), DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        columns = {"content_key": self.pins, "embedding": matrix_column(vectors), "error": [None] * len(self.pins)}
        ledger = Ledger(self.store, "pin_embeddings", "r", embedding_results(DIM))
        ledger.commit(pa.table(columns))
        table = pa.table({"pin_id": self.pins, "content_key": self.pins})
        self.release = publish_release(
            self.store, lambda _: table, ledger, DIM, "5" * 16, sources=sources, config=self.cfg.model_dump(mode="json")
        )
        self.folder = folder / "local"
        self.shards = {num: [self.slice(i, num) for i in range(num)] for num in (1, 3, MANY)}
        self.served = {num: self.serve(num, parts) for num, parts in self.shards.items()}

    def slice(self, i, num):
        shard = (i, num) if num > 1 else None
        return ShardIndex.load(self.store, EVERYTHING, ImageLimits(), self.folder, self.release, shard)

    def serve(self, num, parts):
        shards = LocalShard(parts[0]) if num == 1 else Spread(parts)
        stats = ShardStats.merged([copied(part.stats()) for part in parts])
        return LoadedRelease.load(self.store, EVERYTHING, self.folder, self.release, shards, stats)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        side_world.without_ray(patch, engagement_stage)
        patch.setattr(shard_module, "Student", Student)
        patch.setattr(served_module, "QueryModel", Encoder)
        yield World(tmp_path_factory.mktemp("slices"))


QUERIES = ["red mug", "cup", "usb hub", "smal laptops", "zebra", "the", "black shoe cup cup"]
SHARDS = pytest.mark.parametrize("num", [3, MANY])


def vector_of(query):
    return Encoder().encode([query])


def assert_same(found, wanted):
    """Equal, but for the rounding of numbers that are written with 4 or 5 digits."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1.5e-4)
    else:
        assert found == wanted


def test_the_world_has_all_kinds_of_pins(world):
    """Else the tests below would pass for the wrong reason."""
    engagement = world.shards[1][0].engagement
    assert 0 < np.isnan(engagement).sum() < len(engagement)
    assert len(np.unique(engagement[~np.isnan(engagement)])) > 2
    assert 0 in [part.pins.num_pins for part in world.shards[MANY]]
    assert len(require_output(world.store, "enrich", "pin_texts").files) == 4


@SHARDS
@pytest.mark.parametrize("query", QUERIES)
def test_a_pair_is_graded_as_from_the_whole_release(world, num, query):
    """To more digits than answers have, with the query's vector and without."""
    whole, parts = world.shards[1][0], world.shards[num]
    match = CatalogueMatch.merged([part.match(query) for part in parts])
    for vector in (vector_of(query)[:, :DIM], None):
        asked = QueryInput(query, "en-US", vector, vector_of(query)[:, DIM:])
        known, wanted = whole.grade(asked, world.pins, whole.match(query))
        assert known.all()
        shard = shards_of(world.pins, num)
        for i, part in enumerate(parts):
            known, found = part.grade(asked, world.pins, match)
            assert known.tolist() == (shard == i).tolist()
            np.testing.assert_allclose(found, wanted[shard == i], atol=1e-6)


@SHARDS
@pytest.mark.parametrize("query", QUERIES)
def test_rerank_is_the_same(world, num, query):
    pins = [*world.pins[:20], "nowhere", NO_VECTOR, world.pins[3]]
    for vector, top_k in ((vector_of(query), None), (None, 5)):
        one, several = (at_once(world.served[n].rerank, query, vector, "de-DE", pins, top_k) for n in (1, num))
        assert_same(several, one)
        assert several["unknown_pin_ids"] == ["nowhere", NO_VECTOR]
        assert len(several["results"]) == (top_k or 20)


@SHARDS
@pytest.mark.parametrize("query", QUERIES)
def test_search_is_the_same(world, num, query):
    """There are fewer pins than candidates are asked for, so all that can be found is found."""
    for vector in (vector_of(query), None):
        one, several = (at_once(world.served[n].search, query, vector, "en-US", 12) for n in (1, num))
        assert_same(several, one)
    assert [hit["rank"] for hit in several["results"]] == list(range(1, len(several["results"]) + 1))


@SHARDS
def test_few_candidates_are_the_best_of_all_shards(world, num):
    """Not the best of each: that would rank `num` times as many pins as the config says."""
    cfg = world.served[num].cfg
    few = cfg.model_copy(update={"serve": EVERYTHING.model_copy(update={"dense_top_k": 4})})
    answers = []
    for n in (1, num):
        before = world.served[n]
        again = LoadedRelease(**{name: getattr(before, name) for name in before.__dataclass_fields__} | {"cfg": few})
        answers.append(at_once(again.search, "zebra", vector_of("zebra"), "en-US", 12))
    assert_same(answers[1], answers[0])
    assert answers[1]["num_candidates"] == len(answers[1]["results"]) == 4


@SHARDS
def test_related_pins_are_the_same(world, num):
    for pin in world.pins[:5]:
        one, several = (at_once(world.served[n].related, pin, 7) for n in (1, num))
        assert_same(several, one)
        assert len(several["results"]) == 7 and pin not in [found["pin_id"] for found in several["results"]]


@SHARDS
def test_a_board_is_the_same(world, num):
    of_title = vector_of("mugs")[0, :DIM]
    for title, pins in ((of_title, [*world.pins[:6], "nowhere"]), (None, world.pins[:1]), (of_title, [])):
        one, several = (at_once(world.served[n].board, title, pins) for n in (1, num))
        np.testing.assert_array_equal(several.pop("embedding"), one.pop("embedding"))
        assert several == one
    with pytest.raises(BadRequest, match="neither"):
        at_once(world.served[num].board, None, ["nowhere"])


@pytest.mark.parametrize("num", [1, 3, MANY])
@pytest.mark.parametrize(("pin", "code"), [("nowhere", "unknown_pin"), ("red-cup", "no_image")])
def test_what_is_not_there_is_named(world, num, pin, code):
    with pytest.raises(NotFound) as caught:
        at_once(world.served[num].image, pin)
    assert caught.value.code == code
    with pytest.raises(NotFound, match="no such pin"):
        at_once(world.served[num].related, NO_VECTOR, 3)


ELSEWHERE = ImageLimits(allow_roots=["/nowhere"])


def shown(world, limits):
    """What `Service` shows of a picture, given the operator's limits."""

    async def main():
        service = Service(EVERYTHING, limits, world.store, world.folder)
        await service.start()
        try:
            return await service.image(PICTURED)
        finally:
            await service.close()

    return asyncio.run(main())


def test_pictures_have_the_limits_of_todays_config_not_those_of_the_release(world):
    """Tightened ones would never get there, and who can write release.json would choose what replicas read."""
    assert shown(world, ImageLimits()).startswith(b"\xff\xd8")
    with pytest.raises(NotFound, match="forbidden_path"):
        shown(world, ELSEWHERE)
    caption = world.cfg.caption.model_copy(update={"limits": ELSEWHERE}).model_dump(mode="json")
    release = replace(world.release, config=world.release.config | {"caption": caption})
    part = ShardIndex.load(world.store, EVERYTHING, ImageLimits(), world.folder, release)
    assert part.image(PICTURED) == shown(world, ImageLimits())


def test_a_shard_has_the_limits_of_todays_config_too(world):
    shard = ShardServer(EVERYTHING, ELSEWHERE, world.store, world.folder, (0, 1))
    with pytest.raises(NotFound, match="forbidden_path"):
        shard._load_shard(world.release).image(PICTURED)
    shard.close()


def test_another_students_release_is_refused_even_if_its_copy_is_there(world):
    """Queries of one student and pins of another give plausible nonsense."""
    release = replace(world.release, student_id="6" * 16)
    with pytest.raises(UserError, match=f"made by student {'6' * 16}, but names {'5' * 16}"):
        ShardIndex.load(world.store, EVERYTHING, ImageLimits(), world.folder, release)


def test_how_it_was_served_when_it_was_published_is_not_asked(world):
    """Such as with a password in `redis_url`, which is refused by now."""
    release = replace(world.release, config=world.release.config | {"serve": {"gone": "redis://:secret@host"}})
    assert ShardIndex.load(world.store, EVERYTHING, ImageLimits(), world.folder, release).cfg.serve == EVERYTHING


def test_a_release_of_before_keys_were_renamed_is_served_on():
    """Else nothing answers, nor can be rolled back to, from the upgrade until all stages have run."""
    made_with = load_config("configs/demo.yaml").model_dump(mode="json")
    for section, key in (("enrich", "min_support"), ("engagement", "min_events")):
        made_with[section] |= {key: made_with[section].pop("min_clients")}
    release = SimpleNamespace(id="1" * 16, config=made_with)
    assert config_of(release, ServeConfig()).enrich.min_clients == 5
    assert made_with["enrich"]["min_support"], "a release is not changed by reading it"
    made_with["enrich"]["no_such"] = 2
    with pytest.raises(UserError, match=r"enrich\.no_such"):
        config_of(release, ServeConfig())


@SHARDS
def test_what_is_said_of_the_catalogue_is_the_same(world, num):
    """Typos are corrected by words of all shards."""
    assert world.served[num].about() == world.served[1].about()
    search = at_once(world.served[num].search, "lapptop", None, "en-US", 3)
    assert search["query"]["corrections"] == {"lapptop": "laptop"}


def test_a_missing_shard_is_refused(world):
    """Half of the pins would be gone without a word."""
    with pytest.raises(UserError, match=r"serve\.shards"):
        world.serve(3, world.shards[3][:2])
