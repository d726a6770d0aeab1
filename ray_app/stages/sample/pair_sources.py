"""Sources of pairs: what the log and the retrievers reach of a bucket's pins, and the ranks over all buckets."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import binom

from ray_app.base.config import SampleConfig
from ray_app.base.text import normalize_query
from ray_app.features.bm25 import Bm25Index, CatalogueMatch, positive_idf
from ray_app.stages.sample.population import ENGAGED_ACTIONS, TRENDING

NearestPins = Callable[[list[str], int], tuple[NDArray, NDArray]]
"""(queries, k) -> pin rows and scores, each (num_queries, <= k), best first; row -1 for none."""

# How users met the pair, strongest first. Positions are guessed for a grid of four columns: first row, first screen.
ENGAGEMENT_BANDS = ("engaged", "hidden", "top", "middle", "deep")
RETRIEVED = len(ENGAGEMENT_BANDS)  # the band of pairs that the log does not have
SOURCES = ("log", "bm25", "embedding", "random")  # in the order in which a pair of several sources is named
_ENGAGED = ENGAGEMENT_BANDS.index("engaged")
_TOP_POSITION, _MIDDLE_POSITION = 4, 12
_LEAST_COVERAGE = 0.1  # a query in another language than the pins is not worthless
_MISSED = 1e-9  # probability that a bucket has more of a query's best pins than are looked for

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A row is a pair that a source reaches. One without a pin says how well the bucket matches the query: in `bm25` the best score
# by titles, in `coverage` the number of titles with all words.
CANDIDATES = pa.schema(
    [
        ("query_row", pa.int64()),  # of the selected queries
        ("pin_id", pa.string()),
        ("band", pa.int8()),  # of ENGAGEMENT_BANDS, or RETRIEVED
        ("bm25", pa.float64()),  # null: not among the best pins of the bucket, as in the next two
        ("coverage", pa.float64()),  # share of the query's words that the pin has, by idf
        ("cosine", pa.float64()),
    ]
)
RANKED = pa.schema(
    [
        ("query_row", pa.int64()),
        ("pin_id", pa.string()),
        ("band", pa.int8()),
        ("bm25_share", pa.float64()),  # of the query's draw by BM25; 0: not among its best
        ("cosine_share", pa.float64()),
    ]
)
QUERY_WEIGHTS = pa.schema(
    [
        ("query_row", pa.int64()),
        ("weight", pa.float64()),  # of the retrieval budget, before it is divided by the mean
        ("num_candidates", pa.int64()),
        ("num_in_log", pa.int64()),
        ("best_title_score", pa.float64()),
        ("num_full_matches", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True, eq=False)
class PinBucket:
    """The pins of a bucket, as sources search them. Rows are those of `pin_ids`, which rise."""

    pin_ids: list[str]
    bm25: Bm25Index  # over the pins' texts
    nearest: NearestPins | None  # by zero-shot vectors; None: no such source
    match: Callable[[list[str]], CatalogueMatch] | None = None  # by titles; None: it is not asked for


def depth_of_bucket(depth: int, num_buckets: int) -> int:
    """How many of its best pins a bucket has to offer, so that a query's `depth` best of all are among them.

    Pins are in buckets by hash, so a bucket has more of them than this only by chance, once in 10^9 queries.
    """
    return min(depth, int(binom.isf(_MISSED, depth, 1.0 / num_buckets)) + 1) if num_buckets > 1 else depth


def find_candidates(bucket: PinBucket, log: pa.Table, selected: pa.Table, depth: int) -> pa.Table:
    """Pairs of the selected queries with a bucket's pins that the log or a retriever reaches.

    Args:
        bucket: Pins.
        log: Of these pins: query, locale, pin_id, position, action.
        selected: Queries (SELECTED).
        depth: Of retrieval, in this bucket.

    Returns:
        CANDIDATES, in no particular order.
    """
    queries, num_pins = selected["query"].to_pylist(), len(bucket.pin_ids)
    row_of = {key: row for row, key in enumerate(zip(queries, selected["locale"].to_pylist(), strict=True))}
    keys, bands = _log_pairs(log, row_of, bucket.pin_ids)
    by_words, scores, coverage = _by_words(bucket, queries, depth)
    by_vector, cosines = _by_vector(bucket, queries, depth)
    every = np.unique(np.concatenate([keys, by_words, by_vector]))
    band = np.full(len(every), RETRIEVED, np.int8)
    band[np.searchsorted(every, keys)] = bands
    arrays = []
    for place, values in ((by_words, scores), (by_words, coverage), (by_vector, cosines)):
        column = np.full(len(every), np.nan)
        column[np.searchsorted(every, place)] = values
        arrays.append(pa.array(column, pa.float64(), from_pandas=True))
    ids = pa.array(bucket.pin_ids, pa.string()).take(pa.array(every % max(num_pins, 1)))
    pairs = pa.Table.from_arrays([pa.array(every // max(num_pins, 1)), ids, pa.array(band), *arrays], schema=CANDIDATES)
    if bucket.match is None:
        return pairs
    distinct = sorted(set(queries))
    match = bucket.match(distinct)
    number_of = {query: i for i, query in enumerate(distinct)}
    rows = np.array([number_of[query] for query in queries], np.int64)
    matches = pa.Table.from_arrays(
        [
            pa.array(np.arange(len(queries))), pa.nulls(len(queries), pa.string()), pa.nulls(len(queries), pa.int8()),
            pa.array(match.best[rows]), pa.array(match.num_full[rows].astype(np.float64)), pa.nulls(len(queries), pa.float64()),
        ], schema=CANDIDATES,
    )  # fmt: skip
    return pa.concat_tables([pairs, matches])


def _log_pairs(log: pa.Table, row_of: dict[tuple[str, str], int], pin_ids: list[str]) -> tuple[Ints, Ints]:
    """Distinct pairs as query row * number of pins + pin row, rising, and the strongest band that each was met in."""
    queries, locales = (log[name].cast(pa.string()).to_pylist() for name in ("query", "locale"))
    normalized = {query: normalize_query(query) for query in set(queries)}
    found = [row_of.get((normalized[q], locale), -1) for q, locale in zip(queries, locales, strict=True)]
    query_row = np.array(found, np.int64)
    pin_row = pc.index_in(log["pin_id"], value_set=pa.array(pin_ids, pa.string()), skip_nulls=True)
    pin = pin_row.fill_null(-1).to_numpy().astype(np.int64)
    action = log["action"]
    position = log["position"].fill_null(np.iinfo(np.int32).max).to_numpy()
    band = np.select(
        [
            pc.is_in(action, value_set=pa.array(ENGAGED_ACTIONS)).to_numpy(),
            pc.equal(action, "hide").to_numpy(),
            position <= _TOP_POSITION,
            position <= _MIDDLE_POSITION,
        ],
        range(4),
        default=4,
    )
    used = (pin >= 0) & (query_row >= 0)
    keys, place = np.unique(query_row[used] * max(len(pin_ids), 1) + pin[used], return_inverse=True)
    strongest = np.full(len(keys), len(ENGAGEMENT_BANDS) - 1, np.int64)
    np.minimum.at(strongest, place.reshape(-1), band[used])
    return keys, strongest


def _by_words(bucket: PinBucket, queries: list[str], depth: int) -> tuple[Ints, Floats, Floats]:
    """The best pins of each query by BM25: keys as of `_log_pairs`, scores, and idf-weighted coverage."""
    tops = [bucket.bm25.top_k(query, depth) for query in queries]
    query_index = np.repeat(np.arange(len(queries)), [len(pins) for pins, _ in tops])
    pins = np.concatenate([np.zeros(0, np.int64), *(pins for pins, _ in tops)])
    terms = bucket.bm25.query_terms(queries)
    found = bucket.bm25.pair_terms(terms, query_index, pins)
    idf = positive_idf(terms, bucket.bm25.num_docs)
    hits = np.bincount(found.pair, (found.posting > 0) * idf[found.query_term], minlength=len(query_index))
    total = np.add.reduceat(np.append(idf, 0.0), terms.start[:-1]) if len(queries) else np.zeros(0)
    coverage = hits / np.maximum(total[query_index], 1e-9)
    scores = np.concatenate([np.zeros(0), *(scores for _, scores in tops)])
    return query_index * max(len(bucket.pin_ids), 1) + pins, scores, coverage


def _by_vector(bucket: PinBucket, queries: list[str], depth: int) -> tuple[Ints, Floats]:
    num_pins = len(bucket.pin_ids)
    if bucket.nearest is None or not queries or not num_pins:
        return np.zeros(0, np.int64), np.zeros(0)
    rows, scores = bucket.nearest(queries, min(depth, num_pins))
    rows = np.asarray(rows, np.int64).reshape(len(queries), -1)
    there = rows >= 0
    keys = (np.arange(len(queries))[:, None] * num_pins + rows)[there]
    return keys, np.asarray(scores, np.float64).reshape(rows.shape)[there]


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedPart:
    """A part's queries with their candidates."""

    pairs: pa.Table  # RANKED, by query row, then by pin
    queries: pa.Table  # QUERY_WEIGHTS, one row per query of the part, rising


def rank_candidates(candidates: pa.Table, rows: Ints, selected: pa.Table, depth: int, cfg: SampleConfig) -> RankedPart:
    """Rank the candidates of a part's queries over all buckets.

    A query's share of the retrieval budget follows from its frequency (the square root), from whether it is asked for or
    trending, and from how well the catalogue has its words: real logs are full of typos, bots and tests, from which a
    teacher's labels teach nothing. That is the best pin's idf-weighted coverage of it, among its best pins by BM25, to the
    power `coverage_exponent`, never 0.

    Args:
        candidates: Of all buckets, in any order.
        rows: (num_queries,) of the part's queries, rising.
        selected: All selected queries.
        depth: Of retrieval, over all buckets.
        cfg: Weights.
    """
    is_pair = pc.is_valid(candidates["pin_id"])
    pairs, matches = candidates.filter(is_pair), candidates.filter(pc.invert(is_pair))
    pairs = pairs.sort_by([("query_row", "ascending"), ("pin_id", "ascending")])
    query = np.searchsorted(rows, pairs["query_row"].to_numpy())
    band = pairs["band"].to_numpy()
    bm25, coverage, cosine = (_floats(pairs[name]) for name in ("bm25", "coverage", "cosine"))
    top = _best(query, bm25, depth)
    best = np.zeros(len(rows))
    np.maximum.at(best, query[top], coverage[top])
    bm25_share, cosine_share = np.zeros(len(query)), np.zeros(len(query))
    hard = top[band[top] != _ENGAGED]  # whom nobody engaged with for that query
    bm25_share[hard] = _rank_shares(query[hard])
    near = _best(query, cosine, depth)
    cosine_share[near] = _rank_shares(query[near])
    kept = np.flatnonzero((band != RETRIEVED) | (bm25_share > 0) | (cosine_share > 0))
    weight = _weights(selected.take(pa.array(rows)), np.maximum(best, _LEAST_COVERAGE), cfg)
    in_log = np.bincount(query[band != RETRIEVED], minlength=len(rows))
    title_score, num_full = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    place = np.searchsorted(rows, matches["query_row"].to_numpy())
    np.maximum.at(title_score, place, _floats(matches["bm25"]))
    np.add.at(num_full, place, _floats(matches["coverage"]).astype(np.int64))
    numbers = [rows, weight, np.bincount(query[kept], minlength=len(rows)), in_log, title_score, num_full]
    return RankedPart(
        pairs=pa.Table.from_arrays(
            [
                *(pairs[name].take(pa.array(kept)) for name in ("query_row", "pin_id", "band")),
                pa.array(bm25_share[kept]),
                pa.array(cosine_share[kept]),
            ],
            schema=RANKED,
        ),
        queries=pa.Table.from_arrays([pa.array(column) for column in numbers], schema=QUERY_WEIGHTS),
    )


def _floats(column: pa.ChunkedArray) -> Floats:
    """Values, NaN for null."""
    return np.asarray(column.to_numpy(), np.float64)


def _best(query: Ints, scores: Floats, depth: int) -> Ints:
    """Positions of the `depth` best of each query, best first; ties by position. NaN is no score."""
    there = np.flatnonzero(~np.isnan(scores))
    order = there[np.lexsort((there, -scores[there], query[there]))]
    return order[_ranks(query[order]) < depth]


def _ranks(query: Ints) -> Ints:
    """Place of each within its query, from 0; equal ones stand together."""
    begins = np.flatnonzero(np.diff(query, prepend=-1))
    sizes = np.diff(begins, append=len(query))
    return np.arange(len(query)) - np.repeat(begins, sizes)


def _rank_shares(query: Ints) -> Floats:
    """Share of each rank in the draw of its query: proportional to 1 / sqrt(rank), summing to 1.

    Guessed: the student reorders the top of such lists, so it should see more of the top, and still all of the depth.

    Args:
        query: (n,) of each rank, in order of rank; equal ones stand together.
    """
    if not len(query):
        return np.zeros(0)
    weight = 1.0 / np.sqrt(_ranks(query) + 1.0)
    begins = np.flatnonzero(np.diff(query, prepend=-1))
    return weight / np.repeat(np.add.reduceat(weight, begins), np.diff(begins, append=len(query)))


def _weights(queries: pa.Table, coverage: Floats, cfg: SampleConfig) -> Floats:
    events, boost = queries["num_events"].to_numpy(), queries["boost"].to_numpy()
    is_trending = np.array(pc.equal(queries["frequency_band"], TRENDING).to_numpy(zero_copy_only=False), bool)
    weight = np.sqrt(np.maximum(events, 1)) * coverage**cfg.coverage_exponent
    weight = np.where(boost > 0, np.maximum(weight, 1.0) * boost, weight)
    return weight * np.where(is_trending, cfg.trending_boost, 1.0)


def stratum_names(queries: pa.Table, bands: Ints) -> list[str]:
    """`locale/frequency/engagement` of each pair.

    Args:
        queries: The pairs' queries (SELECTED), row by row.
        bands: (num_pairs,) of ENGAGEMENT_BANDS, or RETRIEVED.
    """
    engagement = (*ENGAGEMENT_BANDS, "retrieved")
    columns = queries["locale"].to_pylist(), queries["frequency_band"].to_pylist(), bands.tolist()
    return [f"{locale}/{frequency}/{engagement[band]}" for locale, frequency, band in zip(*columns, strict=True)]


def count_strata(part: RankedPart, selected: pa.Table, num_pins: int) -> tuple[Counter[str], Counter[str]]:
    """Pairs by stratum: of the log, drawn by strata; and all, of which there are so many for each query that might have been drawn.

    Where queries were drawn themselves, the second is estimated from those: a query stands for 1 / query_prob.
    """
    pairs = part.pairs.filter(pc.not_equal(part.pairs["band"], RETRIEVED))
    queries = selected.take(pairs["query_row"])
    names = stratum_names(queries, pairs["band"].to_numpy())
    every: Counter[str] = Counter()
    for name, prob in zip(names, queries["query_prob"].to_pylist(), strict=True):
        every[name] += 1.0 / prob
    own = selected.take(part.queries["query_row"])
    others = (num_pins - part.queries["num_in_log"].to_numpy()) / own["query_prob"].to_numpy()
    retrieved = stratum_names(own, np.full(own.num_rows, RETRIEVED))
    for name, number in zip(retrieved, others.tolist(), strict=True):
        every[name] += number
    return Counter(names), every
