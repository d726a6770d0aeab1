"""Reranking: what is said of a pin depends on the pin and the query, not on its company."""

import numpy as np
import pytest
import whole_release
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_release import shards

from ray_app.base.config import BlendConfig
from ray_app.base.text import normalize_query
from ray_app.online.blend import UNKNOWN, blend, engagement_scores, order
from ray_app.online.query_understanding import SpellingDictionary, count_words, understand
from ray_app.online.shards import at_once

GRADES = st.lists(st.sampled_from([1.0, 2.5, 2.5001, 4.0, 5.0]), max_size=20)
few = settings(settings.default, max_examples=max(10, settings.default.max_examples // 2))


@given(GRADES, st.randoms(use_true_random=False))
def test_order_is_by_score_then_by_pin_id_and_forgets_nobody(scores, random):
    names = [f"p{i}" for i in range(len(scores))]
    random.shuffle(names)
    found = order(np.array(scores), names).tolist()
    assert sorted(found) == list(range(len(scores)))
    assert [(-scores[i], names[i]) for i in found] == sorted((-s, n) for s, n in zip(scores, names, strict=True))


@given(GRADES, st.floats(0, 2))
def test_engagement_decides_between_equals_and_costs_at_most_its_weight(scores, weight):
    cfg = BlendConfig(engagement_weight=weight)
    values = np.array(scores, np.float32)
    low, middle, high = (blend(values, np.full(len(values), e, np.float32), cfg) for e in (0, np.nan, 1))
    assert middle.dtype == np.float32
    assert (low <= middle).all() and (middle <= high).all()
    assert high - values == pytest.approx(np.full(len(values), weight), abs=1e-5)
    assert middle - values == pytest.approx(np.full(len(values), weight * UNKNOWN), abs=1e-5)


@given(st.lists(st.tuples(st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5), st.booleans()), max_size=15))
def test_engagement_is_a_percentile(rows):
    rates = np.array([row for row, _ in rows], np.float32).reshape(-1, 5)
    known = np.array([is_known for _, is_known in rows], bool)
    scores = engagement_scores(rates, known)
    assert np.isnan(scores).tolist() == (~known).tolist()
    if known.any():
        assert 0 <= scores[known].min() and scores[known].max() <= 1
        assert float(scores[known].mean()) == pytest.approx(UNKNOWN, abs=1e-5)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return whole_release.build(tmp_path_factory.mktemp("rerank")).served[1]


QUERIES = st.sampled_from(shards.QUERIES) | st.text(min_size=1, max_size=12).map(normalize_query).filter(bool)
PIN_LISTS = st.lists(st.sampled_from([*shards.PINS, "nowhere", "", "\0", "💥"]), max_size=25)
LOCALES = st.sampled_from(["en-US", "de-DE", "xx"])


def by_name(found):
    return {hit["pin_id"]: hit for hit in found["results"]}


def rerank(served, query, locale, pins, top_k=None, degraded=False):
    vector = None if degraded else shards.vector_of(query)
    return at_once(served.rerank, query, vector, locale, pins, top_k)


@few
@given(query=QUERIES, locale=LOCALES, pins=PIN_LISTS, degraded=st.booleans(), random=st.randoms(use_true_random=False))
def test_rerank_ranks_each_known_pin_once_whatever_order_it_is_asked_in(served, query, locale, pins, degraded, random):
    known = {pin for pin in pins if pin in shards.PINS and pin != shards.NO_VECTOR}
    found = rerank(served, query, locale, pins, degraded=degraded)
    names = [hit["pin_id"] for hit in found["results"]]
    assert sorted(names) == sorted(known)
    assert found["unknown_pin_ids"] == [pin for pin in dict.fromkeys(pins) if pin not in known]
    assert all(abs(sum(hit["probs"]) - 1) < 1e-3 and 1 <= hit["score"] <= 5 for hit in found["results"])
    scores = [hit["score"] for hit in found["results"]]
    assert scores == sorted(scores, reverse=True)
    shuffled = list(pins)
    random.shuffle(shuffled)
    again = rerank(served, query, locale, shuffled, degraded=degraded)
    shards.assert_same(by_name(again), by_name(found))


@few
@given(query=QUERIES, locale=LOCALES, pins=PIN_LISTS, data=st.data())
def test_a_pin_is_scored_alone_as_in_any_company(served, query, locale, pins, data):
    whole = by_name(rerank(served, query, locale, pins))
    if whole:
        pin = data.draw(st.sampled_from(sorted(whole)))
        shards.assert_same(by_name(rerank(served, query, locale, [pin]))[pin], whole[pin])


@few
@given(query=QUERIES, pins=PIN_LISTS, top_k=st.integers(1, 30))
def test_the_best_k_are_the_head_of_all(served, query, pins, top_k):
    whole = rerank(served, query, "en-US", pins)["results"]
    assert rerank(served, query, "en-US", pins, top_k)["results"] == whole[:top_k]


@few
@given(query=QUERIES, top_k=st.integers(1, 40), degraded=st.booleans())
def test_search_shows_pins_once_in_the_order_it_says(served, query, top_k, degraded):
    vector = None if degraded else shards.vector_of(query)
    hits = at_once(served.search, query, vector, "en-US", top_k)["results"]
    names = [hit["pin_id"] for hit in hits]
    assert len(names) == len(set(names)) <= top_k
    assert [hit["rank"] for hit in hits] == list(range(1, len(hits) + 1))
    blended_score = [hit["blended_score"] for hit in hits]
    assert blended_score == sorted(blended_score, reverse=True)
    assert all(hit["sources"] for hit in hits)


VOCABULARY = SpellingDictionary.of(count_words(shards.PINS.values()), ["en", "de"])


WORDS = st.sampled_from(["mug", "mgu", "lapptop", "usb", "\u200d", "ﬁ"])


@given(st.text(max_size=30) | st.lists(WORDS, max_size=5).map(" ".join))
def test_understanding_any_text_keeps_the_users_words(text):
    found = understand(text, VOCABULARY)
    assert found.text == normalize_query(text)
    assert set(found.corrections) <= set(found.tokens)
    assert all(word in VOCABULARY.words for word in found.corrections.values())
    assert understand(found.text, VOCABULARY) == found
