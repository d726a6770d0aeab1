"""The steps of sampling, over buckets of pins and parts of queries: what each reads and leaves for the next."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from ray_app.base.config import SampleConfig
from ray_app.base.hashing import bucket_of
from ray_app.base.schemas import PAIRS
from ray_app.cluster.buckets import map_buckets, shuffle
from ray_app.features.bm25 import CatalogueMatch
from ray_app.stages.sample.allocation import allocate
from ray_app.stages.sample.draw import (
    RANDOM_PAIRS,
    DrawPlan,
    PartDraw,
    draw_random,
    expected_pairs,
    find_factor,
)
from ray_app.stages.sample.pair_sources import (
    CANDIDATES,
    PinBucket,
    RankedPart,
    count_strata,
    depth_of_bucket,
    find_candidates,
    rank_candidates,
)
from ray_app.stages.sample.pilot import Deviations
from ray_app.stages.sample.population import (
    QUERY_ROWS,
    Bands,
    QuerySummary,
    band_queries,
    gather_queries,
    parts_of,
    public_queries_of,
    query_keys,
    query_rates,
    select_queries,
)
from ray_app.stages.sample.scratch import Scratch
from ray_app.stages.sample.trending import Trending

Result = TypeVar("Result")


class PinSource(Protocol):
    """Pins and the log of what users did with them, by bucket. Picklable."""

    @property
    def num_buckets(self) -> int:
        """Number of buckets."""

    @property
    def num_pins(self) -> int:
        """Number of pins of all buckets."""

    def log(self, number: int) -> pa.Table:
        """Events to be sampled, of a bucket's pins: query, locale, pin_id, position, action."""

    def pin_ids(self, number: int) -> list[str]:
        """Of a bucket, rising."""

    def bucket(self, number: int, selected: pa.Table) -> PinBucket:
        """A bucket, to be searched for the selected queries."""


@dataclass(frozen=True, kw_only=True)
class SampleRules:
    """What decides a sample besides log and catalogue."""

    cfg: SampleConfig
    seed: int
    excluded_groups: frozenset[str] = frozenset()  # `query_group` of held-out queries, which are not sampled
    boosts: Mapping[tuple[str, str], float]
    """(normalised query, locale) that is sampled for whether or not the log has it -> how much more retrieved pairs it gets than
    a query of the log."""
    min_clients: int = 1  # of a query that may be shown to others
    with_trends: bool = False  # there is a time before the window
    trending: frozenset[tuple[str, str]] | None = None  # those queries; None: those whose searches grew
    deviations: Deviations | None = None  # for `allocation: neyman`; None: taken as equal


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The queries that are sampled."""

    queries: pa.Table  # SELECTED; by part, then by query and locale
    part: np.ndarray  # (num_queries,) int64 of each
    trending: list[Trending]  # highest score first
    num_types: int  # product types among them


@dataclass(frozen=True, kw_only=True)
class _PartSums:
    """Of the ranked candidates of a part."""

    in_log: Counter[str]  # pairs of the log by stratum
    population: Counter[str]  # all pairs by stratum; estimated where queries were drawn
    weight: float  # summed


@dataclass(frozen=True, kw_only=True)
class DrawnPairs:
    """What was drawn."""

    written: list[Any]  # what `write` returned for each bucket
    num_queries: int  # distinct, whatever their locales
    population: Counter[str]  # all pairs by stratum


@dataclass(frozen=True)
class Sampler:
    """Samples pairs.

    Args:
        source: Pins and log.
        scratch: For the tables between steps.
        rules: What is drawn.
        num_parts: Over which queries are spread, by their text: a power of two. One holds the candidates of its queries.
    """

    source: PinSource
    scratch: Scratch
    rules: SampleRules
    num_parts: int = 1

    # --- queries ---

    def select(self, rows_of: Callable[[int], pa.Table]) -> Selection:
        """Count the queries, and draw those that are sampled.

        Args:
            rows_of: Bucket -> what is counted of its queries (QUERY_ROWS). Runs in a task.
        """
        cfg, rules, parts = self.rules.cfg, self.rules, range(self.num_parts)
        split = partial(_by_query, rows_of, self.num_parts)
        summaries = shuffle(range(self.source.num_buckets), split, self._gather, self.num_parts, QUERY_ROWS)
        # As many as half of the queries: with a large catalogue they would leave no place for what users ask for.
        bands = Bands.of(summaries, max_types=cfg.max_queries // 2, with_trends=rules.with_trends)
        banded = map_buckets(partial(self._band, bands), parts)
        optional: Counter[str] = sum((found for found, _, _, _ in banded), Counter())
        num_asked = sum(asked for _, asked, _, _ in banded)
        rates = query_rates(optional, num_asked, cfg.max_queries, cfg.allocation)
        counts = map_buckets(partial(self._select, rates), parts)
        tables = [self.scratch.read(f"selected-{number}") for number in parts]
        told = sorted((row for _, _, rows, _ in banded for row in rows), key=lambda t: (-t[0], t[1], t[2]))
        return Selection(
            queries=pa.concat_tables(tables),
            part=np.repeat(np.arange(self.num_parts), counts),
            trending=[
                Trending(query=query, locale=locale, num_searches=num, growth=growth, score=score)
                for score, query, locale, num, growth in told
            ],
            num_types=sum(types for _, _, _, types in banded),
        )

    def public_queries(self, number: int) -> pa.Table:
        """Queries of a part that several clients searched: query, num_clients, sorted by query; after `select`."""
        return self.scratch.read(f"public-{number}")

    def _gather(self, number: int, rows: pa.Table) -> QuerySummary:
        rules = self.rules
        extra = list(rules.boosts)
        place = parts_of([query for query, _ in extra], self.num_parts)
        own = [extra[i] for i in np.flatnonzero(place == number)]
        counts, summary = gather_queries(rows, rules.excluded_groups, own, max(1, rules.cfg.product_type_min_pins))
        self.scratch.write(f"queries-{number}", counts)
        self.scratch.write(f"public-{number}", public_queries_of(rows, rules.min_clients))
        return summary

    def _band(
        self, bands: Bands, number: int
    ) -> tuple[Counter[str], int, list[tuple[float, str, str, int, float]], int]:
        rules, counts = self.rules, self.scratch.read(f"queries-{number}")
        found = band_queries(counts, bands, rules.boosts, rules.cfg.product_type_boost, rules.trending)
        self.scratch.write(f"banded-{number}", found.table)
        num_types = int((counts["num_type_pins"].to_numpy() >= bands.least_type_pins).sum())
        return found.optional, int(found.table["query_prob"].to_numpy().sum()), found.trending, num_types

    def _select(self, rates: Mapping[str, float], number: int) -> int:
        selected = select_queries(self.scratch.read(f"banded-{number}"), rates, self.rules.seed)
        self.scratch.write(f"selected-{number}", selected)
        return int(selected.num_rows)

    # --- pairs ---

    def draw(self, selection: Selection, write: Callable[[int, pa.Table], Result]) -> DrawnPairs:
        """Draw pairs of the selected queries.

        Args:
            selection: Of `select`.
            write: (number of a bucket, its pairs, by query, locale and pin) -> something small. Runs in a task.
        """
        parts = range(self.num_parts)
        self.scratch.write("selected", selection.queries.append_column("part", pa.array(selection.part, pa.int64())))
        if not selection.queries.num_rows or not self.source.num_pins:
            return DrawnPairs(
                written=map_buckets(lambda number: write(number, PAIRS.empty_table()), range(self.source.num_buckets)),
                num_queries=0,
                population=Counter(),
            )
        sums = shuffle(range(self.source.num_buckets), self._find, self._rank, self.num_parts, CANDIDATES)
        plan = self._plan(selection, sums)
        expected = partial(self._expected, plan)
        # There even the last rank of the least query is certain, and random pins have all of their share.
        least = min(map_buckets(partial(self._least_share, plan), parts))
        highest = max(1.0 / least, plan.target / plan.num_queries)
        factor = find_factor(
            lambda factors: np.sum(map_buckets(partial(expected, factors), parts), axis=0), plan.target, highest
        )
        random_prob = np.concatenate(map_buckets(partial(self._random_probs, plan, factor), parts))
        num_queries = shuffle(
            range(self.source.num_buckets),
            partial(self._random, random_prob),
            partial(self._draw, plan, factor),
            self.num_parts,
            RANDOM_PAIRS,
        )
        written = shuffle(parts, self._drawn, partial(_sorted, write), self.source.num_buckets, PAIRS)
        population: Counter[str] = sum((part.population for part in sums), Counter())
        return DrawnPairs(written=written, num_queries=sum(num_queries), population=population)

    def matches(
        self, number: int, vectors_of: Callable[[list[str]], np.ndarray]
    ) -> tuple[list[str], np.ndarray, CatalogueMatch]:
        """Distinct selected queries of a part, sorted, their vectors, and how well the catalogue matches each; after `draw`."""
        if not self.scratch.has(f"weights-{number}"):  # nothing was drawn
            nothing = np.zeros(0)
            return [], vectors_of([]), CatalogueMatch(nothing, nothing.astype(np.int64))
        weights = self.scratch.read(f"weights-{number}")
        every = np.array(self._selected["query"].take(weights["query_row"]).to_pylist(), object)
        queries, first = np.unique(every, return_index=True)
        best, num_full = (weights[name].to_numpy()[first] for name in ("best_title_score", "num_full_matches"))
        return queries.tolist(), vectors_of(queries.tolist()), CatalogueMatch(best, num_full)

    @cached_property
    def _selected(self) -> pa.Table:
        return self.scratch.read("selected")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_selected"}

    def _find(self, number: int) -> tuple[pa.Table, np.ndarray]:
        depth = depth_of_bucket(self.rules.cfg.depth, self.source.num_buckets)
        bucket, log = self.source.bucket(number, self._selected), self.source.log(number)
        found = find_candidates(bucket, log, self._selected, depth)
        return found, self._selected["part"].to_numpy()[found["query_row"].to_numpy()]

    def _rank(self, number: int, candidates: pa.Table) -> _PartSums:
        rows, cfg = np.flatnonzero(self._selected["part"].to_numpy() == number), self.rules.cfg
        part = rank_candidates(candidates, rows, self._selected, cfg.depth, cfg)
        self.scratch.write(f"candidates-{number}", part.pairs)
        self.scratch.write(f"weights-{number}", part.queries)
        in_log, population = count_strata(part, self._selected, self.source.num_pins)
        weight = float(part.queries["weight"].to_numpy().sum())
        return _PartSums(in_log=in_log, population=population, weight=weight)

    def _plan(self, selection: Selection, sums: Sequence[_PartSums]) -> DrawPlan:
        cfg, target = self.rules.cfg, expected_pairs(self.rules.cfg.num_pairs)
        in_log: Counter[str] = sum((part.in_log for part in sums), Counter())
        names = sorted(in_log)
        sizes = np.array([in_log[name] for name in names], np.float64)
        deviations = self.rules.deviations.of(names) if self.rules.deviations else None
        rates = allocate(cfg.allocation, sizes, target * cfg.log_fraction, deviations) if names else np.zeros(0)
        num_queries = selection.queries.num_rows
        return DrawPlan(
            cfg=cfg, num_pins=self.source.num_pins, num_queries=num_queries, target=target,
            mean_weight=sum(part.weight for part in sums) / num_queries,
            log_rates=dict(zip(names, rates.tolist(), strict=True)),
        )  # fmt: skip

    def _part(self, plan: DrawPlan, number: int) -> PartDraw:
        pairs, queries = (self.scratch.read(f"{name}-{number}") for name in ("candidates", "weights"))
        return PartDraw(RankedPart(pairs=pairs, queries=queries), self._selected, plan)

    def _least_share(self, plan: DrawPlan, number: int) -> float:
        return self._part(plan, number).least_share

    def _expected(self, plan: DrawPlan, factors: list[float], number: int) -> np.ndarray:
        part = self._part(plan, number)
        return np.array([part.expected(factor) for factor in factors])

    def _random_probs(self, plan: DrawPlan, factor: float, number: int) -> np.ndarray:
        return self._part(plan, number).probs(factor)[1]

    def _random(self, random_prob: np.ndarray, number: int) -> tuple[pa.Table, np.ndarray]:
        queries = self._selected
        keys = query_keys(queries["query"].to_pylist(), queries["locale"].to_pylist())
        found = draw_random(self.source.pin_ids(number), keys, random_prob, number, self.rules.seed)
        return found, queries["part"].to_numpy()[found["query_row"].to_numpy()]

    def _draw(self, plan: DrawPlan, factor: float, number: int, random_pairs: pa.Table) -> int:
        drawn = self._part(plan, number).draw(factor, random_pairs, self.rules.seed)
        self.scratch.write(f"drawn-{number}", drawn)
        return len(drawn["query"].unique())

    def _drawn(self, number: int) -> tuple[pa.Table, np.ndarray]:
        pairs = self.scratch.read(f"drawn-{number}")
        return pairs, bucket_of(pairs["pin_id"].to_pylist(), self.source.num_buckets)


def _by_query(rows_of: Callable[[int], pa.Table], num_parts: int, number: int) -> tuple[pa.Table, np.ndarray]:
    rows = rows_of(number)
    return rows, parts_of(rows["query"].to_pylist(), num_parts)


def _sorted(write: Callable[[int, pa.Table], Result], number: int, pairs: pa.Table) -> Result:
    return write(number, pairs.sort_by([("query", "ascending"), ("locale", "ascending"), ("pin_id", "ascending")]))
