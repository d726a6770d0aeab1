"""Searches and candidates: a query that the log knows among the unseen ones would flatter, and so would a pin shown twice."""

import numpy as np
import pytest

from ray_app.analysis.simulate.traffic import NO_PIN, country, draw_traffic, retrieve
from ray_app.base.config import DemoConfig, SimulateConfig
from ray_app.demo.facts import pin_id
from ray_app.demo.labels import query_grades
from ray_app.demo.queries import is_held_out

DEMO = DemoConfig(num_pins=400)
CFG = SimulateConfig(num_searches=2000, num_logged_searches=500, unseen_queries=40, candidates=60)


@pytest.fixture(scope="module")
def drawn():
    return draw_traffic(DEMO, CFG)


def test_traffic_is_a_function_of_the_settings(drawn):
    again = draw_traffic(DEMO, CFG)[1]
    assert (again.query_of == drawn[1].query_of).all()
    other = draw_traffic(DEMO, CFG.model_copy(update={"seed": 1}))[1]
    assert not set(other.search.tolist()) & set(again.search.tolist())


def test_unseen_queries_are_held_out_and_nobody_takes_part_before_and_in_the_experiment(drawn):
    before, traffic = drawn
    for text, unseen in zip(traffic.queries.text, traffic.is_unseen, strict=True):
        assert is_held_out(DEMO.seed, text) == unseen
    assert not traffic.is_unseen[before.query_of].any()
    assert traffic.is_unseen[traffic.query_of].mean() == pytest.approx(CFG.unseen_fraction, abs=0.03)
    assert not set(before.search.tolist()) & set(traffic.search.tolist())


def test_popular_queries_are_searched_often(drawn):
    times = np.bincount(drawn[1].query_of)[: (~drawn[1].is_unseen).sum()]
    assert times[0] == times.max()


def test_candidates_are_distinct_known_by_their_truth_and_hold_a_perfect_pin(drawn):
    queries = drawn[1].queries
    found = retrieve(DEMO, queries, CFG.candidates)
    assert found.pins.shape == (len(queries), CFG.candidates)
    for q in range(0, len(queries), 20):
        pins = found.pins[q][found.pins[q] != NO_PIN]
        assert (np.diff(pins) > 0).all()  # distinct, and by pin id
        assert [pin_id(n) for n in pins] == sorted(pin_id(n) for n in pins)
        assert (found.grades[q][: len(pins)] == query_grades(DEMO, queries, q, pins)).all()
    assert (found.grades.max(axis=1) == 5).all()
    assert ((found.grades == 0) == (found.pins == NO_PIN)).all()


def test_one_text_in_one_locale_is_one_cluster(drawn):
    clusters, texts, locales = drawn[1].clusters, drawn[1].texts, drawn[1].locales
    assert len(set(clusters.tolist())) == len(set(zip(texts, locales, strict=True)))


def test_countries_are_regions_and_a_script_is_none():
    locales = ("en-US", "fr-CA", "hi-IN", "zh-Hant-TW", "de", "und")
    assert [country(locale) for locale in locales] == ["US", "CA", "IN", "TW", "de", "und"]
