from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from sampling import find_trending

from ray_app.base.schemas import SEARCH_LOG
from ray_app.stages.sample.trending import rise_score

START = datetime(2024, 1, 1, tzinfo=UTC)


def make_log(searches, rows_per_search=1, action="impression"):
    """(query, locale, second) of each search."""
    rows = [search for search in searches for _ in range(rows_per_search)]
    columns = {
        "event_id": [str(i) for i in range(len(rows))],
        "timestamp": [START + timedelta(seconds=int(second)) for _, _, second in rows],
        "query": [query for query, _, _ in rows],
        "locale": [locale for _, locale, _ in rows],
        "action": [action] * len(rows),
    }
    return pa.table([columns.get(n, [None] * len(rows)) for n in SEARCH_LOG.names], schema=SEARCH_LOG)


def searches(counts, locale="en-US", start=0):
    """Each query so many times, each search in a second of its own."""
    return [(query, locale, start + i) for query, num in counts.items() for i in range(num)]


def draw(seed, num_days, num_queries=400, per_day=3000):
    """Searches of a log in which nothing changes: long-tailed, each search independent of the others."""
    rng = np.random.default_rng(seed)
    chance = 1.0 / np.arange(1, num_queries + 1)
    counts = rng.poisson(num_days * per_day * chance / chance.sum())
    return {f"q{i}": int(num) for i, num in enumerate(counts)}


@pytest.mark.parametrize("seed", range(8))
def test_a_stable_log_has_no_trending_query(seed):
    assert find_trending(make_log(searches(draw(seed, 1))), make_log(searches(draw(seed + 100, 9)))) == []


@pytest.mark.parametrize("seed", range(4))
def test_planted_queries_are_found_and_no_others(seed):
    """`q200` is searched some 2 times a day, `q3` some 120 times; `new` was never searched."""
    now = draw(seed, 1) | {"new": 15, "q200": 25}
    now["q3"] *= 4
    found = find_trending(make_log(searches(now)), make_log(searches(draw(seed + 100, 9))))
    assert {trend.query for trend in found} == {"new", "q200", "q3"}
    assert [trend.score for trend in found] == sorted((trend.score for trend in found), reverse=True)


def test_a_query_that_falls_is_not_trending():
    now, then = draw(1, 1), draw(101, 9)
    assert find_trending(make_log(searches(now | {"q0": 20})), make_log(searches(then))) == []


def test_a_large_query_that_rises_by_half_is_not_trending():
    """Significant, and yet what every week brings."""
    now, then = {"a": 3000, "b": 7000}, {"a": 20_000, "b": 80_000}
    assert rise_score(*(np.array([n]) for n in (3000, 20_000, 10_000, 100_000)))[0] > 10
    assert find_trending(make_log(searches(now)), make_log(searches(then))) == []


def test_a_handful_of_searches_is_no_trend():
    assert find_trending(make_log(searches(draw(1, 1) | {"new": 9})), make_log(searches(draw(101, 9)))) == []


def test_all_queries_of_a_market_that_grows_are_not_trending():
    """Ten times the searches, the same shares."""
    assert find_trending(make_log(searches(draw(1, 10))), make_log(searches(draw(101, 1)))) == []


def test_a_page_of_twelve_rows_is_one_search():
    """Else every query that is new and searched once would look like a trend."""
    now, then = searches(draw(1, 1) | {"once": 1, "new": 15}), searches(draw(101, 9))
    plain = find_trending(make_log(now), make_log(then))
    assert [trend.query for trend in plain] == ["new"]
    assert find_trending(make_log(now, 12), make_log(then, 12)) == plain


def test_clicks_do_not_count_beside_impressions():
    now, then = searches({"a": 100, "b": 100}), searches({"a": 900, "b": 900})
    clicks = make_log(searches({"a": 400}, start=10_000), action="click")
    assert find_trending(pa.concat_tables([make_log(now), clicks]), make_log(then)) == []


def test_a_log_of_clicks_alone_counts_clicks():
    now, then = searches({"a": 100, "b": 40}), searches({"a": 900, "b": 20})
    found = find_trending(make_log(now, action="click"), make_log(then, action="click"))
    assert [trend.query for trend in found] == ["b"]


def test_spellings_of_a_query_count_together():
    now = searches({"Rain  Boots": 6, "other": 100}) + searches({"rain boots": 6}, start=50)
    found = find_trending(make_log(now), make_log(searches({"other": 900})))
    assert [(trend.query, trend.num_searches) for trend in found] == [("rain boots", 12)]


def test_locales_are_compared_with_themselves():
    now = searches({"a": 50, "b": 50}) + searches({"a": 10, "b": 90}, "de-DE")
    then = searches({"a": 100, "b": 900}) + searches({"a": 100, "b": 900}, "de-DE")
    assert [(t.query, t.locale) for t in find_trending(make_log(now), make_log(then))] == [("a", "en-US")]


def test_a_locale_without_a_past_has_no_trends():
    assert find_trending(make_log(searches({"a": 50})), make_log(searches({"a": 50}, "de-DE"))) == []


def test_growth_and_score_of_a_hand_computed_case():
    """20 of 100 now, 10 of 400 then: (20.5 / 100) / (10.5 / 400); 6 of the 30 were expected now, 24 then."""
    now, then = make_log(searches({"a": 20, "b": 80})), make_log(searches({"a": 10, "b": 390}))
    trend = find_trending(now, then)[0]
    assert trend.growth == pytest.approx(0.205 / 0.02625)
    assert trend.score == pytest.approx(np.sqrt(2 * (20 * np.log(20 / 6) + 10 * np.log(10 / 24))))


def test_scores_are_standard_normal_where_nothing_changes():
    rng = np.random.default_rng(0)
    now, then = rng.poisson(40, 20_000), rng.poisson(160, 20_000)
    score = rise_score(now, then, np.full(20_000, 1_000), np.full(20_000, 4_000))
    assert abs(score.mean()) < 0.05 and 0.95 < score.std() < 1.05


def test_an_empty_past_has_no_trends():
    assert find_trending(make_log(searches({"a": 50})), SEARCH_LOG.empty_table()) == []
