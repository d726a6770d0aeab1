"""Sources of pairs, and the inclusion probability of each pair by source."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_app.base.config import SampleConfig
from ray_app.features.bm25 import Bm25Index, positive_idf
from ray_app.stages.sample.allocation import Allocation, allocate, solve_factor
from ray_app.stages.sample.pilot import Deviations
from ray_app.stages.sample.population import ENGAGEMENT_BANDS, TRENDING, Population

NearestPins = Callable[[list[str], int], tuple[NDArray, NDArray]]
"""(queries, k) -> pin rows and scores, each (num_queries, <= k), best first; row -1 for none."""

SOURCES = ("log", "bm25", "embedding", "random")  # in the order in which a pair of several sources is named
RETRIEVED = len(ENGAGEMENT_BANDS)  # the band of pairs that the log does not have

_LEAST_COVERAGE = 0.1  # a query in another language than the pins is not worthless

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairPool:
    """The pairs that the log or a retriever reaches, sorted by (query, pin), with what each source draws them by."""

    query: Ints  # (num_candidates,)
    pin: Ints  # (num_candidates,)
    band: Ints  # (num_candidates,) into ENGAGEMENT_BANDS, or RETRIEVED
    prob: Floats  # (num_candidates, 3) for log, bm25, embedding
    random_prob: Floats  # (num_queries,) of every pair of a query, these and all others


def build_pair_pool(
    population: Population,
    num_pins: int,
    bm25: Bm25Index,
    neighbors: NearestPins | None,
    cfg: SampleConfig,
    target: float,
    deviations: Deviations | None = None,
) -> PairPool:
    """Pool the sources and scale their probabilities so that the expected sample has `target` pairs.

    The log's share is drawn by strata. Retrieval fills what is left, by `query_budgets` and rank; random pins never
    exceed their share, for nothing is learnt from a sample full of them.
    """
    num_queries = len(population.queries)
    log = (population.pair_query * num_pins + population.pair_pin, population.pair_band)
    engaged_keys = log[0][log[1] == ENGAGEMENT_BANDS.index("engaged")]
    tops = [bm25.top_k(query, cfg.depth)[0] for query in population.queries]
    bm25_pool = _bm25_pool(tops, num_pins, engaged_keys)
    near_pool = _neighbor_pool(population.queries, num_pins, neighbors, cfg.depth)
    keys = np.unique(np.concatenate([log[0], bm25_pool[0], near_pool[0]]))
    band = np.full(len(keys), RETRIEVED, np.int64)
    band[np.searchsorted(keys, log[0])] = log[1]

    log_prob = np.zeros(len(keys))
    log_prob[np.searchsorted(keys, log[0])] = log_rates(
        population, target * cfg.log_fraction, cfg.allocation, deviations
    )
    query = keys // num_pins
    weights = query_budgets(population, bm25, tops, cfg)
    share = np.zeros((len(keys), 2))
    for column, (pool_keys, pool_share), part in (
        (0, bm25_pool, cfg.bm25_fraction),
        (1, near_pool, cfg.embedding_fraction),
    ):
        place = np.searchsorted(keys, pool_keys)
        share[place, column] = pool_share * part * weights[query[place]]
    random_fraction = cfg.random_fraction * weights / num_pins
    num_others = num_pins - np.bincount(query, minlength=num_queries)

    def probs(factor: float) -> tuple[Floats, Floats]:
        # The weights' mean is 1, so `target / num_queries` is the factor at which random pins have their share.
        random_prob = np.minimum(1.0, min(factor, target / num_queries) * random_fraction)
        return np.column_stack([log_prob, np.minimum(1.0, factor * share)]), random_prob

    def expected(factor: float) -> float:
        prob, random_prob = probs(factor)
        missed = np.prod(1.0 - prob, axis=1) * (1.0 - random_prob[query])
        return float((1.0 - missed).sum() + num_others @ random_prob)

    # At the highest factor even the last rank of the least query is certain.
    smallest = np.concatenate([share[share > 0], random_fraction[random_fraction > 0]]).min(initial=1.0)
    prob, random_prob = probs(solve_factor(expected, target, highest=1.0 / smallest))
    return PairPool(query=query, pin=keys % num_pins, band=band, prob=prob, random_prob=random_prob)


def query_budgets(population: Population, bm25: Bm25Index, tops: list[NDArray], cfg: SampleConfig) -> Floats:
    """Share of the retrieval budget per query; (num_queries,), mean 1, all positive.

    Frequent queries get more (by the square root), and so do labelled and trending ones. A query whose words the catalogue hardly has
    gets less: real logs are full of typos, bots and tests, from which a teacher's labels teach nothing. Its weight is the
    best pin's idf-weighted coverage of it (among `tops`, its best pins by BM25), to the power `coverage_exponent`, never 0.
    """
    queries = population.queries
    query_index = np.repeat(np.arange(len(queries)), [len(top) for top in tops])
    terms = bm25.query_terms(queries)
    found = bm25.pair_terms(terms, query_index, np.concatenate([np.zeros(0, np.int64), *tops]))
    idf = positive_idf(terms, bm25.num_docs)
    hits = np.bincount(found.pair, (found.posting > 0) * idf[found.query_term], minlength=len(query_index))
    best = np.zeros(len(queries))
    np.maximum.at(best, query_index, hits)
    total = np.add.reduceat(np.append(idf, 0.0), terms.start[:-1]) if len(queries) else best
    coverage = np.maximum(best / np.maximum(total, 1e-9), _LEAST_COVERAGE)
    weight = np.sqrt(np.maximum(population.num_events, 1)) * coverage**cfg.coverage_exponent
    weight = np.where(population.boost > 0, np.maximum(weight, 1.0) * population.boost, weight)
    weight = weight * np.where(np.array(population.frequency_bands) == TRENDING, cfg.trending_boost, 1.0)
    return weight / weight.mean()


def log_rates(
    population: Population, target: float, allocation: Allocation = "sqrt", deviations: Deviations | None = None
) -> Floats:
    """Sampling rate of each pair of the log, equal within a stratum; (num_pairs,)."""
    names = stratum_names(population.locales, population.frequency_bands, population.pair_query, population.pair_band)
    if not len(names):
        return np.zeros(0)
    strata, stratum, sizes = np.unique(names, return_inverse=True, return_counts=True)
    spread = deviations.of(strata.tolist()) if deviations else None
    return allocate(allocation, sizes, target, spread)[stratum.reshape(-1)]


def stratum_names(locales: list[str], frequency_bands: list[str], query: Ints, band: Ints) -> NDArray:
    """`locale/frequency/engagement` of each pair; (num_pairs,) strings."""
    if not len(query):
        return np.array([], str)
    engagement = (*ENGAGEMENT_BANDS, "retrieved")
    width = len(engagement)
    code = query * width + band
    distinct, place = np.unique(code, return_inverse=True)
    parts = [(int(c) // width, int(c) % width) for c in distinct]
    return np.array([f"{locales[q]}/{frequency_bands[q]}/{engagement[b]}" for q, b in parts])[place.reshape(-1)]


def _bm25_pool(tops: list[NDArray], num_pins: int, engaged_keys: Ints) -> tuple[Ints, Floats]:
    """Keys and shares of each query's best pins by BM25 that nobody engaged with for that query."""
    engaged = set(engaged_keys.tolist())
    keys, shares = [np.zeros(0, np.int64)], [np.zeros(0)]
    for q, top in enumerate(tops):
        pool = np.array([key for key in (q * num_pins + top).tolist() if key not in engaged], np.int64)
        keys.append(pool)
        shares.append(_rank_shares(len(pool)))
    return np.concatenate(keys), np.concatenate(shares)


def _neighbor_pool(queries: list[str], num_pins: int, neighbors: NearestPins | None, depth: int) -> tuple[Ints, Floats]:
    """Keys and shares of the nearest pins, ranks 1..depth."""
    if neighbors is None:
        return np.zeros(0, np.int64), np.zeros(0)
    rows = np.asarray(neighbors(queries, min(depth, num_pins))[0], np.int64).reshape(len(queries), -1)
    there = rows >= 0
    keys = (np.arange(len(queries))[:, None] * num_pins + rows)[there]
    return keys, np.concatenate([_rank_shares(n) for n in there.sum(axis=1).tolist()])


def _rank_shares(num_ranks: int) -> Floats:
    """Share of each rank in the draw of one query: proportional to 1 / sqrt(rank), summing to 1.

    Guessed: the student reorders the top of such lists, so it should see more of the top, and still all of the depth.
    """
    weight = 1.0 / np.sqrt(np.arange(1, num_ranks + 1))
    return weight / weight.sum() if num_ranks else weight
