"""Columns to cut judged pairs by: what a query is (frequency, length) and what a pin is (age).

table = slice_columns(judged_table, search_log, pins)   # + frequency_band, query_length, pin_age
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.text import normalize_query
from ray_app.stages.sample.trending import impressions, num_searches

HEAD_SEARCHES = 5  # guessed: a query that was searched at least so often counts as frequent
FREQUENCIES = ("frequent", "rare", "not in the log")
LENGTHS = ("1 word", "2 words", "3 words", "4 words or more")
AGES = ("under 30 days", "30 to 180 days", "180 to 365 days", "over 365 days", "unknown")
SLICE_COLUMNS = ("locale", "frequency_band", "query_length", "pin_age")
_AGE_DAYS = (30, 180, 365)
_DAY_MS = 24 * 3600 * 1000
_RANK = {name: place for names in (FREQUENCIES, LENGTHS, AGES) for place, name in enumerate(names)}

# Scripts written without spaces, as runs of one script. A run of katakana is one word, two Chinese characters are one,
# four letters of Thai, Lao, Burmese or Khmer are one; hiragana mostly inflects the word before it.
_HAN = re.compile("[\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_KATAKANA = re.compile("[\u30a0-\u30ff]+")
_HIRAGANA = re.compile("[\u3040-\u309f]+")
_SOUTHEAST = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+")
_UNSPACED = (_HAN, _KATAKANA, _HIRAGANA, _SOUTHEAST)


def slice_columns(judged: pa.Table, log: pa.Table, pins: pa.Table) -> pa.Table:
    """The judged pairs with the columns `frequency_band`, `query_length` and `pin_age` (strings) appended.

    Args:
        judged: query, pin_id; any order.
        log: query, locale, timestamp, action; a pin's age is counted to its last event.
        pins: pin_id, created_at.
    """
    queries = judged["query"].to_pylist()
    end = pc.max(log["timestamp"]).as_py() if log.num_rows else None
    columns = {
        "frequency_band": frequency_bands(queries, log),
        "query_length": [LENGTHS[min(count_words(query), len(LENGTHS)) - 1] for query in queries],
        "pin_age": pin_ages(judged["pin_id"].to_pylist(), pins, None if end is None else end.timestamp() * 1000),
    }
    for name, values in columns.items():
        judged = judged.append_column(name, pa.array(values, pa.string()))
    return judged


def frequency_bands(queries: Sequence[str], log: pa.Table) -> list[str]:
    """Frequency of each query's searches, in all locales: `frequent`, `rare` or `not in the log`.

    Searches are counted as `ray_app.stages.sample.trending` does: rows would make a page of twelve pins twelve searches. Impressions
    are counted, where the log has any; a query that has other events only was searched too, but how often nobody knows.
    """
    shown = impressions(log)
    times: Counter[str] = Counter(dict.fromkeys(map(normalize_query, pc.unique(log["query"]).to_pylist()), 0))
    for (query, _), number in num_searches(shown if shown.num_rows else log).items():
        times[query] += number
    found = [times.get(normalize_query(query)) for query in queries]
    return [FREQUENCIES[2 if n is None else 0 if n >= HEAD_SEARCHES else 1] for n in found]


def count_words(query: str) -> int:
    """Words of a query, at least 1: what spaces separate; an estimate in scripts without spaces (see above)."""
    count = 0
    for part in normalize_query(query).split():
        han = sum((len(run) + 1) // 2 for run in _HAN.findall(part))
        words = han + len(_KATAKANA.findall(part)) + sum((len(run) + 3) // 4 for run in _SOUTHEAST.findall(part))
        rest = part
        for script in _UNSPACED:
            rest = script.sub(" ", rest)
        count += max(1, words + sum(any(map(str.isalnum, found)) for found in rest.split()))
    return max(1, count)


def pin_ages(pin_ids: Sequence[str], pins: pa.Table, end_ms: float | None) -> list[str]:
    """Age of each pin at a moment (Unix milliseconds), one of AGES.

    `unknown`: the moment, the pin or its date is not known. A pin that is younger than the moment is under 30 days old.
    """
    created = pins["created_at"].cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()).to_pylist()
    created_of = dict(zip(pins["pin_id"].to_pylist(), created, strict=True))

    def age(born: int | None) -> str:
        if born is None or end_ms is None:
            return AGES[-1]
        return AGES[int(np.searchsorted(_AGE_DAYS, (end_ms - born) / _DAY_MS, side="right"))]

    return [age(created_of.get(pin_id)) for pin_id in pin_ids]


def in_order(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Indices of a column's values as a reader expects them: bands by what they mean, others largest first."""
    ranks = [_RANK.get(str(value)) for value in values]
    if None in ranks:
        return np.argsort(-counts, kind="stable")
    return np.argsort(np.array(ranks), kind="stable")


def cuts_queries(values: np.ndarray, query_index: np.ndarray) -> bool:
    """Return True if a column has several values within one query, so that a slice holds parts of queries.

    Args:
        query_index: (n,) ascending.
    """
    return bool(((values[1:] != values[:-1]) & (query_index[1:] == query_index[:-1])).any())
