"""Queries and pins are read by their own prompts, and each finds its own results."""

import numpy as np
import pyarrow as pa
import pytest
import side_world
from tiny_models import published

from ray_app.base.columns import matrix_of
from ray_app.base.config import FeatureConfig, PinTextConfig
from ray_app.base.schemas import PIN_TEXTS, embedding_results
from ray_app.base.storage import Storage
from ray_app.cluster.embedding import NO_TEXT, embed_batch, wanted_texts
from ray_app.cluster.encoders import title_and_text_configs
from ray_app.cluster.pin_texts import PinTexts
from ray_app.models.text_encoder import TextEncoder
from ray_app.stages.zero_shot import stage
from ray_app.tables.buckets import bucketed_output, write_bucket
from ray_app.tables.keys import first_rows, key_numbers
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import read_output, require_output

PINS = {"p1": "red mug", "p2": "usb hub"}
LOG = [("red mug", "p1", "click"), ("shoe", "p2", "impression")]  # the first query is a title too


def world(folder, source):
    cfg, store = side_world.build(folder, pins=PINS, log=LOG, labelled=("cup",))
    features = FeatureConfig(zero_shot_model=source, zero_shot_max_tokens=10)
    return cfg.model_copy(update={"features": features}), store


def fill_ledger(tower, rows):
    """So that the stage has no model work to do, and needs no Ray."""
    tower.ledger.commit(embed_batch(rows, tower.build(), 8))


@pytest.fixture
def prompted(tmp_path, tiny_encoder):
    (tmp_path / "data").mkdir()
    source = published(tmp_path / "model", tiny_encoder, prompts={"query": "blue cable ", "document": "small shoe "})
    return *world(tmp_path / "data", source), source


def test_a_text_that_is_query_and_title_gets_two_vectors(prompted):
    """With one key for both, whichever came first would be the other's vector too."""
    cfg, store, source = prompted
    pin, query = (stage.zero_shot_tower(cfg, store, role) for role in ("pin", "query"))
    wanted = pin.pin_texts(require_output(store, "enrich", "pin_texts"), title_and_text_configs(cfg)).wanted
    keyed = wanted.keyed(0)
    fill_ledger(pin, wanted.columns(0, keyed.take(first_rows(key_numbers(keyed["content_key"])))))
    fill_ledger(pin, wanted_texts(pin.recipe, [""]))
    fill_ledger(query, wanted_texts(query.recipe, ["red mug", "shoe", "cup"]))
    manifest = stage.run(cfg, store)
    pins = read_output(store, manifest.output("zero_shot_pins"))
    queries = read_output(store, manifest.output("zero_shot_queries"))
    encoder = TextEncoder(source, None, 10, role="query")
    assert queries["query"].to_pylist() == ["cup", "red mug", "shoe"]
    np.testing.assert_allclose(matrix_of(queries["embedding"]), encoder.encode(["cup", "red mug", "shoe"]), atol=1e-3)
    wanted = encoder.as_role("pin").encode(["red mug", "usb hub"])
    titles = matrix_of(pins["title_embedding"])
    np.testing.assert_allclose(titles, wanted, atol=1e-3)
    assert not pin.encode([""]).any()  # a prompt alone says nothing of a pin
    assert np.abs(titles[0] - matrix_of(queries["embedding"])[1]).max() > 0.01


def test_prompts_and_pooling_are_in_the_recipe(prompted, tiny_encoder):
    cfg, store, _ = prompted

    def recipes(**changes):
        features = cfg.features.model_copy(update=changes)
        changed = cfg.model_copy(update={"features": features})
        return [stage.zero_shot_tower(changed, store, role).recipe for role in ("query", "pin")]

    query, pin = recipes()
    assert query != pin
    assert recipes(zero_shot_query_prompt="hub ") != [query, pin] and recipes(zero_shot_query_prompt="hub ")[1] == pin
    assert not {query, pin} & set(recipes(zero_shot_pooling="cls"))
    without = recipes(zero_shot_query_prompt="", zero_shot_pin_prompt="")
    assert without[0] == without[1]  # one text, one vector, computed once


def test_a_pin_without_texts_has_zeros_and_is_counted_once(tmp_path):
    """Its title and its text are one result of the ledger."""
    store = Storage(str(tmp_path))
    rows = [{"pin_id": "p1", "title": "mug"}, {"pin_id": "p2", "title": None}]
    pins = pa.Table.from_pylist(rows, schema=PIN_TEXTS)
    output = bucketed_output("pin_texts", "t", [write_bucket(store, "t", 0, pins, 10)])
    title = PinTextConfig(fields=["title"])
    texts = PinTexts(store, output, (title, title), "r")
    keys = texts.keyed(0)["content_key"].unique()
    ledger = Ledger(store, "text_embeddings", "r", embedding_results(1))
    ledger.commit(pa.table({"content_key": keys, "embedding": [[1.0], None], "error": [None, NO_TEXT]}))
    bucket, num_empty = stage._write_bucket(store, "out", texts, ledger, 10, 0)
    assert num_empty == 1
    assert store.read_table(bucket.files[0])["text_embedding"].to_pylist()[0] == [1.0]
    assert store.read_table(bucket.files[0])["title_embedding"].to_pylist()[1] in ([0.0], None)
