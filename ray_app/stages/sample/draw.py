"""Draw the pairs that the teacher labels, with exact inclusion probabilities.

Two phases. First queries (all of them, unless there are more than `max_queries`). Then, given the queries, pairs from
four independent sources: the log by strata, BM25 and embedding ranks, and random pins. Every draw is made with a known
probability, so weighting a pair by 1 / inclusion_prob gives unbiased totals over all pairs of the queries with the
catalogue (Horvitz-Thompson), and over those of any subset, such as the log's.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.base.config import SampleConfig
from ray_app.base.hashing import Keys, text_keys, uniform
from ray_app.base.schemas import PAIRS
from ray_app.features.bm25 import Bm25Index
from ray_app.stages.sample.allocation import Allocation, allocate
from ray_app.stages.sample.effective_size import describe_weights
from ray_app.stages.sample.pair_sources import (
    RETRIEVED,
    SOURCES,
    NearestPins,
    PairPool,
    build_pair_pool,
    stratum_names,
)
from ray_app.stages.sample.pilot import Deviations
from ray_app.stages.sample.population import Population, build_population

_RANDOM = SOURCES.index("random")
_QUERY_SALT = len(SOURCES)  # keeps the draw of queries apart from the draws of pairs

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def sample_pairs(
    log: pa.Table,
    pin_ids: Sequence[str],
    bm25: Bm25Index,
    neighbors: NearestPins | None,
    cfg: SampleConfig,
    seed: int,
    excluded_queries: Collection[str] = (),
    extra_queries: Mapping[tuple[str, str], float] | None = None,
    trending: Collection[tuple[str, str]] = (),
    deviations: Deviations | None = None,
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Sample pairs for the teacher.

    Args:
        log: Search log, schema SEARCH_LOG; may be empty.
        pin_ids: The catalogue, in the order of `bm25`'s documents and of the rows that `neighbors` returns.
        bm25: Index over the pins' texts.
        neighbors: Zero-shot nearest pins of queries; None: no such source, the others take its share.
        cfg: How many, from where.
        seed: Another seed draws other pairs with the same probabilities.
        excluded_queries: Held-out queries; neither they nor their near-duplicates are sampled.
        extra_queries: (query, locale) that are sampled for whether or not the log has them -> how much more
            retrieved pairs each gets than a query of the log.
        trending: (normalised query, locale) that are a frequency band of their own, with `trending_boost`.
        deviations: For `allocation: neyman`; None: taken as equal.

    Returns:
        Pairs (schema PAIRS, sorted by query, locale, pin) and one dict per stratum: `stratum`, `num_pairs` (how many
        there are), `num_sampled`, `estimated_pairs` (the sum of 1 / inclusion_prob, which estimates `num_pairs`),
        `effective_size` of those sampled, and `design_effect` (None: none was sampled).
    """
    seed %= 2**64  # what hashing takes
    whole = build_population(log, pin_ids, excluded_queries, extra_queries, trending)
    if not whole.queries or not pin_ids:
        return PAIRS.empty_table(), []
    query_keys = text_keys([f"{loc}\0{q}" for q, loc in zip(whole.queries, whole.locales, strict=True)], "query")
    query_prob = _query_probs(whole, cfg.max_queries, cfg.allocation)
    rows = np.flatnonzero(uniform(seed, _QUERY_SALT, query_keys) < query_prob)
    population, query_keys, query_prob = _subset(whole, rows), query_keys[rows], query_prob[rows]
    if not len(rows):
        return PAIRS.empty_table(), _describe(whole, PAIRS.empty_table(), len(pin_ids))

    pin_keys = text_keys(pin_ids, "pin")
    found = build_pair_pool(population, len(pin_ids), bm25, neighbors, cfg, _target(cfg.num_pairs), deviations)
    query, pin, band, prob, source = _draw(found, query_keys, pin_keys, seed)
    names = stratum_names(population.locales, population.frequency_bands, query, band)
    pairs = pa.table(
        {
            "query": np.array(population.queries, object)[query],
            "locale": np.array(population.locales, object)[query],
            "pin_id": np.array(pin_ids, object)[pin],
            "stratum": names,
            "inclusion_prob": prob * query_prob[query],
            "source": np.array(SOURCES, object)[source],
        },
        schema=PAIRS,
    ).sort_by([("query", "ascending"), ("locale", "ascending"), ("pin_id", "ascending")])
    return pairs, _describe(whole, pairs, len(pin_ids))


def _draw(found: PairPool, query_keys: Keys, pin_keys: Keys, seed: int) -> tuple[Ints, Ints, Ints, Floats, Ints]:
    """The drawn pairs: query, pin, band, probability given the queries, and the first source that drew each."""
    num_pins = len(pin_keys)
    numbers = [uniform(seed, s, query_keys[found.query], pin_keys[found.pin]) for s in range(_RANDOM)]
    drawn = np.column_stack([*(np.stack(numbers, axis=1) < found.prob).T, np.zeros(len(found.query), bool)])
    random_query, random_pin = _draw_random(query_keys, pin_keys, found.random_prob * num_pins, seed)

    # A random pair may be one of the candidates, which are sorted by (query, pin).
    keys, random_keys = found.query * num_pins + found.pin, random_query * num_pins + random_pin
    place = np.searchsorted(keys, random_keys)
    is_candidate = np.append(keys, -1)[place] == random_keys
    drawn[place[is_candidate], _RANDOM] = True
    fresh = ~is_candidate
    num_fresh = int(fresh.sum())

    chosen = np.flatnonzero(drawn.any(axis=1))
    missed = np.prod(1.0 - found.prob[chosen], axis=1) * (1.0 - found.random_prob[found.query[chosen]])
    return (
        np.concatenate([found.query[chosen], random_query[fresh]]),
        np.concatenate([found.pin[chosen], random_pin[fresh]]),
        np.concatenate([found.band[chosen], np.full(num_fresh, RETRIEVED)]),
        np.concatenate([1.0 - missed, found.random_prob[random_query[fresh]]]),
        np.concatenate([drawn[chosen].argmax(axis=1), np.full(num_fresh, _RANDOM)]),
    )


def _draw_random(query_keys: Keys, pin_keys: Keys, per_query: Floats, seed: int) -> tuple[Ints, Ints]:
    """On average `per_query` (num_queries,) distinct pins for each query, every pin with the same probability."""
    by_hash = np.argsort(pin_keys)  # not the catalogue's order, which may change from run to run
    whole = np.floor(per_query)
    # One more with the probability of the remainder, so that the average is exact.
    num_pins = (whole + (uniform(seed, _RANDOM, query_keys) < per_query - whole)).astype(np.int64)
    pins = [np.zeros(0, np.int64)]
    for key, num in zip(query_keys.tolist(), num_pins.tolist(), strict=True):
        if num:
            rng = np.random.default_rng([seed, _RANDOM, key])
            pins.append(by_hash[rng.choice(len(pin_keys), num, replace=False)])
    return np.repeat(np.arange(len(query_keys)), num_pins), np.concatenate(pins)


def _query_probs(population: Population, max_queries: int, allocation: Allocation) -> Floats:
    """Probability of each query: 1 for wanted ones, else by strata of locale and frequency.

    By the root of their sizes or, with neyman too, in proportion to them: the deviations are those of pairs.
    """
    prob = np.ones(len(population.queries))
    optional = np.flatnonzero(population.boost == 0)
    if len(optional):
        names = [f"{population.locales[i]}/{population.frequency_bands[i]}" for i in optional]
        _, stratum, sizes = np.unique(names, return_inverse=True, return_counts=True)
        budget = max(max_queries - int((population.boost > 0).sum()), 0)
        prob[optional] = allocate(allocation, sizes, budget)[stratum.reshape(-1)]
    return prob


def _subset(population: Population, rows: Ints) -> Population:
    """The population of some of its queries."""
    new_row = np.full(len(population.queries), -1, np.int64)
    new_row[rows] = np.arange(len(rows))
    kept = new_row[population.pair_query] >= 0
    return replace(
        population,
        queries=[population.queries[i] for i in rows],
        locales=[population.locales[i] for i in rows],
        num_events=population.num_events[rows],
        frequency_bands=[population.frequency_bands[i] for i in rows],
        boost=population.boost[rows],
        pair_query=new_row[population.pair_query[kept]],
        pair_pin=population.pair_pin[kept],
        pair_band=population.pair_band[kept],
    )


def _target(num_pairs: int) -> float:
    """Expected size that a draw exceeds `num_pairs` from about once in a thousand times (its deviation is the root)."""
    return max(num_pairs - 3.0 * math.sqrt(num_pairs), 0.5 * num_pairs)


def _describe(population: Population, pairs: pa.Table, num_pins: int) -> list[dict[str, Any]]:
    """Size of each stratum in the population and in the sample."""
    locales, bands = population.locales, population.frequency_bands
    sizes: dict[str, int] = {}
    for name in stratum_names(locales, bands, population.pair_query, population.pair_band).tolist():
        sizes[name] = sizes.get(name, 0) + 1
    in_log = np.bincount(population.pair_query, minlength=len(locales))
    for i, (locale, band) in enumerate(zip(locales, bands, strict=True)):
        name = f"{locale}/{band}/retrieved"
        sizes[name] = sizes.get(name, 0) + num_pins - int(in_log[i])
    weights: dict[str, list[float]] = {}
    for name, prob in zip(pairs["stratum"].to_pylist(), pairs["inclusion_prob"].to_pylist(), strict=True):
        weights.setdefault(name, []).append(1.0 / prob)
    return [
        {
            "stratum": name,
            "num_pairs": size,
            "num_sampled": len(drawn := weights.get(name, [])),
            "estimated_pairs": round(float(sum(drawn)), 1),
            **describe_weights(np.array(drawn)),
        }
        for name, size in sorted(sizes.items())
    ]
