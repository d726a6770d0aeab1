"""A pair in the wrong slice hides where a model fails."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from ray_app.analysis.metrics.slices import AGES, count_words, cuts_queries, in_order, pin_ages, slice_columns

END = datetime(2024, 1, 31, tzinfo=UTC)


def pins_of(**days):
    """Pins created so many days before END; None: no date."""
    born = [None if d is None else END - timedelta(days=d) for d in days.values()]
    return pa.table({"pin_id": list(days), "created_at": pa.array(born, pa.timestamp("ms", tz="UTC"))})


def log_of(queries, actions=None, days=None):
    """An event per query, each on a day of its own unless `days` says otherwise."""
    times = [END - timedelta(days=i) for i in days or range(len(queries))]
    columns = {"query": queries, "locale": ["en-US"] * len(queries), "action": actions or ["click"] * len(queries)}
    table = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    return pa.table(table | {"timestamp": pa.array(times, pa.timestamp("ms", tz="UTC"))})


@pytest.mark.parametrize(
    ("query", "words"),
    [("red", 1), ("  Red   Balloon ", 2), ("t-shirt", 1), ("", 1), ("लाल गुब्बारा", 2), ("빨간 풍선", 2), ("セーター", 1),
     ("白いセーター", 2), ("帽子", 1), ("红色气球", 2), ("iphoneケース", 2), ("กระเป๋า", 2)],
)  # fmt: skip
def test_words_of_a_query(query, words):
    assert count_words(query) == words


def test_all_columns_are_appended_and_nothing_else_changes(make_pairs):
    pairs = make_pairs([("red", "new", 5), ("a b c d e", "old", 1)])
    found = slice_columns(pairs, log_of(["RED"] * 5), pins_of(new=1, old=1000))
    assert found.select(pairs.column_names).equals(pairs)
    rows = found.select(["frequency_band", "query_length", "pin_age"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("frequent", "1 word", "under 30 days"),
        ("not in the log", "4 words or more", "over 365 days"),
    ]


def test_a_query_searched_seldom_is_rare_and_a_page_of_twelve_pins_is_one_search(make_pairs):
    """In a log of impressions every query was "frequent", so the slice said nothing."""
    pairs = make_pairs([("red", "a", 5), ("blue", "a", 5), ("green", "a", 5)])
    shown = ["red"] * 12 + ["blue"] * 5
    log = log_of(
        [*shown, *["green"] * 4], ["impression"] * 17 + ["click"] * 4, [0] * 12 + [1, 2, 3, 4, 5] + [0, 1, 2, 3]
    )
    found = slice_columns(pairs, log, pins_of(a=1))
    assert found["frequency_band"].to_pylist() == ["rare", "frequent", "rare"]


def test_the_edges_of_ages_belong_to_the_older_side_and_pins_younger_than_the_log_are_known():
    pins = pins_of(young=-3, a=29, b=30, c=180, d=365, e=None)
    ages = pin_ages(["young", "a", "b", "c", "d", "e", "gone"], pins, END.timestamp() * 1000)
    assert ages == ["under 30 days", AGES[0], AGES[1], AGES[2], AGES[3], "unknown", "unknown"]


def test_without_a_log_ages_are_unknown_and_nothing_breaks(make_pairs):
    found = slice_columns(make_pairs([("red", "a", 5)]), log_of([]), pins_of(a=1))
    assert (found["pin_age"].to_pylist(), found["frequency_band"].to_pylist()) == (["unknown"], ["not in the log"])


def test_bands_stand_in_their_own_order_and_others_by_size():
    ages = np.array(["over 365 days", "under 30 days"], dtype=object)
    locales = np.array(["de-DE", "en-US"], dtype=object)
    counts = np.array([1, 9])
    assert (in_order(ages, counts).tolist(), in_order(locales, counts[::-1]).tolist()) == ([1, 0], [0, 1])


def test_a_column_that_differs_within_a_query_cuts_it():
    query = np.array([0, 0, 1, 1])
    assert cuts_queries(np.array(list("aabb"), dtype=object), query) is False
    assert cuts_queries(np.array(list("aaab"), dtype=object), query) is True
