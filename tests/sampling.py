"""Samples of small catalogues in this process, by the sampler of the stage."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_app.base.config import EnrichConfig, SampleConfig
from ray_app.base.text import normalize_query, query_group
from ray_app.features.bm25 import Bm25Index
from ray_app.features.search_events import client_of
from ray_app.stages.sample.effective_size import WeightSums
from ray_app.stages.sample.pair_sources import NearestPins, PinBucket
from ray_app.stages.sample.population import (
    SEARCHES,
    SEARCHES_BEFORE,
    count_events,
    distinct_clients,
    distinct_searches,
    public_queries_of,
)
from ray_app.stages.sample.sampler import Sampler, SampleRules
from ray_app.stages.sample.scratch import Scratch
from ray_app.stages.sample.stage import describe_strata
from ray_app.stages.sample.trending import Trending, impressions


@dataclass(frozen=True)
class OneBucket:
    """All pins in one bucket."""

    events: pa.Table
    ids: list[str]
    bm25: Bm25Index
    nearest: NearestPins | None
    num_buckets = 1

    @property
    def num_pins(self):
        return len(self.ids)

    def log(self, number):
        return self.events

    def pin_ids(self, number):
        return self.ids

    def bucket(self, number, selected):
        return PinBucket(pin_ids=self.ids, bm25=self.bm25, nearest=self.nearest)


def sample_pairs(
    log, pin_ids, bm25, neighbors, cfg: SampleConfig, seed, excluded_queries=(), extra_queries=None, trending=(),
    deviations=None,
) -> tuple[pa.Table, list[dict[str, Any]]]:  # fmt: skip
    """Pairs, and the strata as the manifest describes them."""
    boosts: dict[tuple[str, str], float] = {}
    for (query, locale), boost in (extra_queries or {}).items():
        key = normalize_query(query), locale
        boosts[key] = max(boost, boosts.get(key, 0.0))
    rules = SampleRules(
        cfg=cfg, seed=seed % 2**64, excluded_groups=frozenset(map(query_group, excluded_queries)), boosts=boosts,
        trending=frozenset(trending), deviations=deviations,
    )  # fmt: skip
    sampler = Sampler(OneBucket(log, list(pin_ids), bm25, neighbors), Scratch(None, None), rules)
    selection = sampler.select(lambda _: count_events(log))
    drawn = sampler.draw(selection, lambda _, pairs: pairs)
    (pairs,) = drawn.written
    weights: dict[str, list[float]] = {}
    for row in pairs.to_pylist():
        weights.setdefault(row["stratum"], []).append(1 / row["inclusion_prob"])
    sums = {name: WeightSums.of(values) for name, values in weights.items()}
    assert Counter(pairs["stratum"].to_pylist()) == {name: found.num for name, found in sums.items()}
    return pairs, describe_strata(drawn.population, [sums])


def find_trending(inside: pa.Table, before: pa.Table) -> list[Trending]:
    """Trending queries of two logs, highest score first."""
    if all(impressions(log).num_rows for log in (inside, before)):
        inside, before = impressions(inside), impressions(before)
    rows = [count_events(inside), distinct_searches(inside, SEARCHES), distinct_searches(before, SEARCHES_BEFORE)]
    rules = SampleRules(cfg=SampleConfig(), seed=0, boosts={}, with_trends=True)
    sampler = Sampler(OneBucket(inside, [], Bm25Index.build([]), None), Scratch(None, None), rules)
    return sampler.select(lambda _: pa.concat_tables(rows)).trending


def public_queries(log: pa.Table, cfg: EnrichConfig) -> list[dict[str, Any]]:
    """Queries of a log that others may be shown."""
    return public_queries_of(distinct_clients(log["query"], client_of(log, cfg)), cfg.min_clients).to_pylist()
