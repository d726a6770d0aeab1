"""The teacher labels pairs of the kind that it was trained on: no pin says the pair's own query as one that led to it."""

import numpy as np
import pyarrow as pa
import pytest
from minimal import make_config

from ray_app.base.schemas import PIN_TEXTS
from ray_app.features.catalogue import Catalogue
from ray_app.features.cosine import CosineFeatures
from ray_app.features.shown_pairs import ShownPairs

QUERIES = ["desk", "mugs", "red mug"]
ENGAGED = {"p0": ["red mug", "Mug", "cup"], "p1": None, "p2": ["mug"], "p3": ["desk"]}
FIELDS = ["title", "engaged_queries"]


def make_catalogue(**sections):
    titles = ["vase", "red mug", None, "table"]
    rows = [
        {"pin_id": pin, "title": title, "engaged_queries": queries, "locale": "en-US"}
        for (pin, queries), title in zip(ENGAGED.items(), titles, strict=True)
    ]
    texts = pa.Table.from_pylist(rows, schema=PIN_TEXTS)
    vectors = pa.array(np.eye(4, dtype=np.float32).tolist(), pa.list_(pa.float32(), 4))
    zero_shot = pa.table({"pin_id": texts["pin_id"], "title_embedding": vectors, "text_embedding": vectors})
    sections = {"pin_text": {"fields": FIELDS}, "features": {"bm25_fields": FIELDS}} | sections
    return Catalogue.of(make_config(**sections), texts, zero_shot)


@pytest.fixture
def catalogue():
    return make_catalogue()


def every_pair(catalogue):
    num = len(catalogue.pairs.rendered)
    return ShownPairs.of(catalogue, QUERIES, np.repeat(np.arange(3), num), np.tile(np.arange(num), 3))


def texts_of(shown):
    names = [(shown.queries[q], f"p{p}") for q, p in zip(shown.query_index, shown.pin_index, strict=True)]
    return dict(zip(names, shown.pin_texts, strict=True))


def test_a_pairs_own_query_and_its_near_duplicates_are_not_in_the_pins_text(catalogue):
    """Else a click on (mugs, p0) comes back as the teacher's grade by the words "mugs" beside "Mug"."""
    texts = texts_of(every_pair(catalogue))
    assert texts["mugs", "p0"] == "vase. red mug, cup"
    assert texts["red mug", "p0"] == "vase. Mug, cup"
    assert texts["mugs", "p2"] == ""


def test_other_pairs_read_the_pin_as_it_is_and_share_its_key(catalogue):
    """Their labels are found again, and the engine computes the pin's words once."""
    shown = every_pair(catalogue)
    texts, keys = texts_of(shown), dict(zip(texts_of(shown), shown.pin_keys, strict=True))
    assert texts["desk", "p0"] == catalogue.pairs.rendered[0] == "vase. red mug, Mug, cup"
    assert keys["desk", "p0"] == catalogue.pin_keys([0])[0]
    assert keys["desk", "p1"] == keys["mugs", "p1"] == keys["red mug", "p1"]
    assert len({keys[query, "p0"] for query in QUERIES}) == 3


def test_features_are_those_of_the_text_that_is_shown(catalogue):
    """BM25 and coverage over engaged queries would tell what the text no longer does."""
    shown, cosine = every_pair(catalogue), CosineFeatures.of(catalogue.title_vectors, catalogue.text_vectors)
    vectors = np.eye(4, dtype=np.float32)[:3]
    found = shown.features(cosine, vectors)
    names = catalogue.pairs.names
    of = {pair: dict(zip(names, row, strict=False)) for pair, row in zip(texts_of(shown), found.tolist(), strict=True)}
    assert of["desk", "p3"]["engaged_queries_present"] == 0
    assert of["mugs", "p0"]["engaged_queries_coverage"] == 1  # "red mug" says the word too, and is another query
    assert of["mugs", "p2"]["all_bm25"] == of["mugs", "p2"]["pin_num_tokens"] == 0
    untouched = np.flatnonzero(shown.variant < 0)
    plain = catalogue.teacher_features(cosine, QUERIES, vectors, shown.query_index, shown.pin_index)
    np.testing.assert_array_equal(found[untouched], plain[untouched])
    np.testing.assert_array_equal(found[:, len(names) :], plain[:, len(names) :])  # no vector has read the queries


def test_taking_pairs_takes_what_they_are_shown(catalogue):
    shown = every_pair(catalogue)
    rows = np.array([11, 4, 0])
    part = shown.take(rows)
    assert part.pin_texts == [shown.pin_texts[row] for row in rows]
    assert part.pin_keys == [shown.pin_keys[row] for row in rows]


def test_a_teacher_that_reads_no_engaged_queries_has_no_other_texts():
    catalogue = make_catalogue(pin_text={"fields": ["title"]}, features={"bm25_fields": ["title"]})
    assert (every_pair(catalogue).variant == -1).all()


def test_no_pairs_are_no_pairs(catalogue):
    nothing = ShownPairs.of(catalogue, [], np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert (nothing.pin_texts, nothing.pin_keys) == ([], [])
