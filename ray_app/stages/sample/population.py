"""The queries of the log, and which of them are sampled.

Queries are counted where the log is, and their counts brought together by query. What decides about a query, such as its
frequency band, follows from its own counts and from a few numbers about all queries (histograms by locale), so that no query
is compared with another and no process holds all of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.hashing import Keys, buckets_of_hashes, text_keys, uniform
from ray_app.base.text import normalize_query, query_group, tokenize
from ray_app.stages.sample.allocation import Allocation, allocate
from ray_app.stages.sample.trending import trending_scores

ENGAGED_ACTIONS = ("click", "long_click", "save")
HEAD, TORSO, TAIL, TRENDING, UNSEEN = "head", "torso", "tail", "trending", "unseen"

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Histogram = tuple[Ints, Ints]
"""Distinct values, rising, and how often each occurs."""

# What is counted of a query. A row is (kind, normalised query, locale, number, text).
EVENTS, SEARCHES, SEARCHES_BEFORE, CLIENT, TYPE_PINS = range(5)
QUERY_ROWS = pa.schema(
    [
        ("kind", pa.int8()),
        ("query", pa.string()),
        ("locale", pa.string()),  # null: of all
        ("number", pa.int64()),  # of events or pins; of a search, its second
        ("text", pa.string()),  # of a client, its id
    ]
)
QUERY_COUNTS = pa.schema(
    [
        ("query", pa.string()),
        ("locale", pa.string()),
        ("num_events", pa.int64()),
        ("num_searches", pa.int64()),
        ("num_before", pa.int64()),  # searches before the window
        (
            "num_type_pins",
            pa.int64(),
        ),  # pins whose title names this kind of thing, in all locales; 0: below the least number
    ]
)
SELECTED = pa.schema(
    [
        ("query", pa.string()),
        ("locale", pa.string()),
        ("frequency_band", pa.string()),
        ("num_events", pa.int64()),
        ("boost", pa.float64()),  # how much more retrieved pairs an asked-for query gets; 0: from the log only
        ("query_prob", pa.float64()),  # (0, 1]
    ]
)
_QUERY_SALT = 4  # keeps the draw of queries apart from the draws of pairs by source


def count_events(log: pa.Table) -> pa.Table:
    """Rows of QUERY_ROWS: events by query and locale.

    Args:
        log: Columns query, locale.
    """
    counted = _strings(log, "query", "locale").group_by(["query", "locale"]).aggregate([([], "count_all")])
    return _query_rows(EVENTS, counted["query"], counted["locale"], counted["count_all"])


def distinct_searches(log: pa.Table, kind: int) -> pa.Table:
    """Rows of QUERY_ROWS: a search is all events of a query and locale in one second.

    Args:
        log: Columns query, locale, timestamp.
        kind: SEARCHES or SEARCHES_BEFORE.
    """
    rows = _strings(log, "query", "locale")
    seconds = pc.floor_temporal(log["timestamp"], unit="second").cast(pa.timestamp("s", "UTC")).cast(pa.int64())
    rows = rows.append_column("second", seconds)
    distinct = rows.group_by(["query", "locale", "second"]).aggregate([])
    return _query_rows(kind, distinct["query"], distinct["locale"], distinct["second"])


def distinct_clients(queries: pa.ChunkedArray, clients: pa.ChunkedArray) -> pa.Table:
    """Rows of QUERY_ROWS: clients by query; unknown ones support nothing."""
    rows = pa.table({"query": queries.cast(pa.string()), "client": clients.cast(pa.string())})
    distinct = rows.filter(pc.is_valid(rows["client"])).group_by(["query", "client"]).aggregate([])
    return _query_rows(CLIENT, distinct["query"], texts=distinct["client"])


def count_types(types: Mapping[tuple[str, str], int]) -> pa.Table:
    """Rows of QUERY_ROWS: pins by product type and locale."""
    keys = list(types)
    return _query_rows(
        TYPE_PINS, pa.chunked_array([[query for query, _ in keys]], pa.string()),
        pa.chunked_array([[locale for _, locale in keys]], pa.string()),
        pa.chunked_array([[types[key] for key in keys]], pa.int64()),
    )  # fmt: skip


def _strings(log: pa.Table, *names: str) -> pa.Table:
    return pa.table({name: log[name].cast(pa.string()) for name in names})


def _query_rows(
    kind: int, queries: pa.ChunkedArray, locales: pa.ChunkedArray | None = None,
    numbers: pa.ChunkedArray | None = None, texts: pa.ChunkedArray | None = None,
) -> pa.Table:  # fmt: skip
    n = len(queries)
    normalized = {query: normalize_query(query) for query in queries.unique().to_pylist()}
    columns = [
        pa.array([kind] * n, pa.int8()),
        pa.array([normalized[query] for query in queries.to_pylist()], pa.string()),
        pa.nulls(n, pa.string()) if locales is None else locales,
        pa.nulls(n, pa.int64()) if numbers is None else numbers.cast(pa.int64()),
        pa.nulls(n, pa.string()) if texts is None else texts,
    ]
    return pa.Table.from_arrays(columns, schema=QUERY_ROWS)


def query_keys(queries: Sequence[str], locales: Sequence[str]) -> Keys:
    """A number of each query of a locale. Shape (num_queries,)."""
    return text_keys([f"{locale}\0{query}" for query, locale in zip(queries, locales, strict=True)], "query")


def parts_of(queries: Sequence[str], num_parts: int) -> Ints:
    """The part of each query, which has it in all locales. Shape (num_queries,)."""
    return buckets_of_hashes(text_keys(queries, "part of a query"), num_parts)


@dataclass(frozen=True, kw_only=True)
class QuerySummary:
    """What is to be known of a part's queries."""

    events: dict[str, Histogram]  # by locale
    searches: dict[str, tuple[int, int]]  # by locale: in the window and before, also of queries that are not sampled
    type_pins: Histogram  # of the product types


def gather_queries(
    rows: pa.Table, excluded_groups: frozenset[str], extra_queries: Sequence[tuple[str, str]], min_type_pins: int,
) -> tuple[pa.Table, QuerySummary]:  # fmt: skip
    """Bring a part's counts together.

    Queries without a word ("", "???") cannot be judged and are left out, as is every near-duplicate of an excluded one.

    Args:
        rows: Of all buckets, in any order (QUERY_ROWS).
        excluded_groups: `query_group` of the queries that are held out.
        extra_queries: (normalised query, locale) of this part that are sampled for whether or not the log has them.
        min_type_pins: A product type of fewer pins is noise.

    Returns:
        QUERY_COUNTS, sorted by query and locale, and a summary.
    """
    counts = {
        EVENTS: _added(rows, EVENTS),
        SEARCHES: Counter[tuple[str, str]](),
        SEARCHES_BEFORE: Counter[tuple[str, str]](),
        TYPE_PINS: _added(rows, TYPE_PINS),
    }
    for kind in (SEARCHES, SEARCHES_BEFORE):
        distinct = _of_kind(rows, kind).group_by(["query", "locale", "number"]).aggregate([])
        counted = distinct.group_by(["query", "locale"]).aggregate([([], "count_all")])
        for query, locale, num in zip(*(counted[name].to_pylist() for name in counted.column_names), strict=True):
            counts[kind][query, locale] = num
    totals: Counter[str] = Counter()
    for (query, _), num in counts[TYPE_PINS].items():
        totals[query] += num
    types = {key for key in counts[TYPE_PINS] if totals[key[0]] >= min_type_pins}
    usable = {
        query: bool(tokenize(query)) and query_group(query) not in excluded_groups
        for query in {*(query for query, _ in counts[EVENTS]), *(query for query, _ in types), *(q for q, _ in extra_queries)}
    }  # fmt: skip
    kept = sorted(key for key in {*counts[EVENTS], *types, *extra_queries} if usable[key[0]])
    columns = [
        [query for query, _ in kept],
        [locale for _, locale in kept],
        *([counts[kind].get(key, 0) for key in kept] for kind in (EVENTS, SEARCHES, SEARCHES_BEFORE)),
        [totals[key[0]] if key in types else 0 for key in kept],
    ]
    table = pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, QUERY_COUNTS, strict=True)], schema=QUERY_COUNTS
    )
    events = {}
    for locale in table["locale"].unique().to_pylist():
        events[locale] = _histogram(table.filter(pc.equal(table["locale"], locale))["num_events"].to_numpy())
    searches: dict[str, tuple[int, int]] = {}
    for place, kind in enumerate((SEARCHES, SEARCHES_BEFORE)):
        for (_, locale), num in counts[kind].items():
            both = list(searches.get(locale, (0, 0)))
            both[place] += num
            searches[locale] = (both[0], both[1])
    summary = QuerySummary(events=events, searches=searches, type_pins=_histogram(table["num_type_pins"].to_numpy()))
    return table, summary


def _of_kind(rows: pa.Table, kind: int) -> pa.Table:
    return rows.filter(pc.equal(rows["kind"], kind))


def _added(rows: pa.Table, kind: int) -> Counter[tuple[str, str]]:
    """(query, locale) -> sum of the numbers."""
    added = _of_kind(rows, kind).group_by(["query", "locale"]).aggregate([("number", "sum")])
    columns = (added[name].to_pylist() for name in ("query", "locale", "number_sum"))
    return Counter({(query, locale): num for query, locale, num in zip(*columns, strict=True)})


def public_queries_of(rows: pa.Table, min_clients: int) -> pa.Table:
    """(query, num_clients) of a part's queries that several clients searched, sorted by query."""
    distinct = _of_kind(rows, CLIENT).group_by(["query", "text"]).aggregate([])
    counts = distinct.group_by("query").aggregate([([], "count_all")])
    enough = pc.and_(pc.greater_equal(counts["count_all"], min_clients), pc.not_equal(counts["query"], ""))
    found = counts.filter(enough).sort_by("query")
    return pa.table({"query": found["query"], "num_clients": found["count_all"]})


def _histogram(values: NDArray) -> Histogram:
    found, counts = np.unique(values[values > 0], return_counts=True)
    return found.astype(np.int64), counts.astype(np.int64)


def merge_histograms(parts: Sequence[Histogram]) -> Histogram:
    """The histogram of all parts."""
    values, place = np.unique(np.concatenate([np.zeros(0, np.int64), *(v for v, _ in parts)]), return_inverse=True)
    counts = np.concatenate([np.zeros(0, np.int64), *(c for _, c in parts)])
    return values, np.bincount(place.reshape(-1), counts, len(values)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Bands:
    """What a query's band and boost follow from."""

    least_events: dict[str, tuple[int, int]]  # by locale: of a head query, and of a torso query
    searches: dict[str, tuple[int, int]]  # by locale: in the window and before
    least_type_pins: int  # of a product type that is sampled
    with_trends: bool

    @classmethod
    def of(cls, summaries: Sequence[QuerySummary], max_types: int, with_trends: bool) -> "Bands":
        """From the summaries of all parts.

        Head: the most frequent queries that make up the first third of a locale's events; torso: the second third. Queries
        of equal frequency are in one band, that where the first of them starts.

        Args:
            max_types: Of product types; those of the fewest pins are left out.
            with_trends: Queries may be trending.
        """
        locales = sorted({locale for summary in summaries for locale in summary.events})
        least = {}
        for locale in locales:
            least[locale] = _thirds(merge_histograms([s.events[locale] for s in summaries if locale in s.events]))
        searches: dict[str, tuple[int, int]] = {}
        for summary in summaries:
            for locale, (now, before) in summary.searches.items():
                own = searches.get(locale, (0, 0))
                searches[locale] = (own[0] + now, own[1] + before)
        pins, counts = merge_histograms([summary.type_pins for summary in summaries])
        too_many = int((np.cumsum(counts[::-1])[::-1] > max_types).sum())
        least_type_pins = int(pins[too_many - 1]) + 1 if too_many else 1
        return cls(least_events=least, searches=searches, least_type_pins=least_type_pins, with_trends=with_trends)


def _thirds(events: Histogram) -> tuple[int, int]:
    """Least number of events of a head query and of a torso query."""
    values, counts = events
    total, before = int(values @ counts), 0
    head = torso = int(values[-1]) if len(values) else 1
    for value, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        if 3 * before < total:
            head = torso = value
        elif 3 * before < 2 * total:
            torso = value
        before += value * count
    return head, torso


@dataclass(frozen=True, kw_only=True)
class BandedQueries:
    """A part's queries that may be sampled."""

    table: pa.Table  # SELECTED, with a query_prob of 1 for those that are asked for and of 0 for the others
    optional: Counter[str]  # queries by stratum, `locale/frequency`, of those that nobody asked for
    trending: list[tuple[float, str, str, int, float]]
    """(score, query, locale, searches in the window, growth) of the trending ones."""


def band_queries(
    counts: pa.Table, bands: Bands, boosts: Mapping[tuple[str, str], float], type_boost: float,
    trending: frozenset[tuple[str, str]] | None = None,
) -> BandedQueries:  # fmt: skip
    """Tell the band and the boost of each query of a part.

    Args:
        counts: Of `gather_queries`.
        boosts: (normalised query, locale) that is asked for -> its boost.
        type_boost: Of product types.
        trending: Those queries are trending; None: those whose searches grew.
    """
    queries, locales = counts["query"].to_pylist(), counts["locale"].to_pylist()
    events, type_pins = counts["num_events"].to_numpy(), counts["num_type_pins"].to_numpy()
    names, boost = [], np.zeros(len(queries))
    found = _trending(counts, bands) if trending is None else {}
    for i, key in enumerate(zip(queries, locales, strict=True)):
        if type_pins[i] >= bands.least_type_pins:
            boost[i] = type_boost
        boost[i] = boosts.get(key, boost[i])  # what is asked for is so whatever its kind
        is_trending = i in found if trending is None else key in trending
        names.append(
            TRENDING if is_trending else frequency_band(int(events[i]), *bands.least_events.get(key[1], (1, 1)))
        )
    kept = (events > 0) | (boost > 0)
    is_asked = boost > 0
    columns = [queries, locales, names, events, boost, is_asked.astype(np.float64)]
    table = pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, SELECTED, strict=True)], schema=SELECTED
    ).filter(pa.array(kept))
    optional = Counter(
        f"{locale}/{name}" for locale, name, no in zip(locales, names, kept & ~is_asked, strict=True) if no
    )
    told = [(score, queries[i], locales[i], num, growth) for i, (score, num, growth) in found.items()]
    return BandedQueries(table=table, optional=optional, trending=told)


def frequency_band(num_events: int, least_head: int, least_torso: int) -> str:
    """Band of a query that is not trending, by the numbers of `Bands.least_events`."""
    if not num_events:
        return UNSEEN
    return HEAD if num_events >= least_head else TORSO if num_events >= least_torso else TAIL


def _trending(counts: pa.Table, bands: Bands) -> dict[int, tuple[float, int, float]]:
    """Row -> (score, searches in the window, growth) of the trending queries."""
    if not bands.with_trends:
        return {}
    totals = np.array([bands.searches.get(locale, (0, 0)) for locale in counts["locale"].to_pylist()], np.int64)
    totals = totals.reshape(-1, 2)
    now, before = counts["num_searches"].to_numpy(), counts["num_before"].to_numpy()
    rows, score, growth = trending_scores(now, before, totals[:, 0], totals[:, 1])
    return {int(row): (float(s), int(now[row]), float(g)) for row, s, g in zip(rows, score, growth, strict=True)}


def query_rates(
    optional: Mapping[str, int], num_asked: int, max_queries: int, allocation: Allocation
) -> dict[str, float]:
    """Probability of a query by stratum, of those that nobody asked for.

    By the root of the strata's sizes or, with neyman too, in proportion to them: the deviations are those of pairs.

    Args:
        optional: Number of such queries by stratum.
        num_asked: Queries that are asked for, all of which are sampled.
        max_queries: Of both.
    """
    names = sorted(optional)
    if not names:
        return {}
    sizes = np.array([optional[name] for name in names], np.float64)
    rates = allocate(allocation, sizes, max(max_queries - num_asked, 0))
    return dict(zip(names, rates.tolist(), strict=True))


def select_queries(banded: pa.Table, rates: Mapping[str, float], seed: int) -> pa.Table:
    """The queries of a part that are sampled (SELECTED), each by its own number."""
    queries, locales = banded["query"].to_pylist(), banded["locale"].to_pylist()
    names = (f"{locale}/{band}" for locale, band in zip(locales, banded["frequency_band"].to_pylist(), strict=True))
    asked = banded["query_prob"].to_numpy()
    prob = np.array([max(a, rates.get(name, 0.0)) for a, name in zip(asked, names, strict=True)], np.float64)
    kept = uniform(seed, _QUERY_SALT, query_keys(queries, locales)) < prob
    table = banded.set_column(banded.column_names.index("query_prob"), SELECTED.field("query_prob"), pa.array(prob))
    return table.filter(pa.array(kept, pa.bool_()))
