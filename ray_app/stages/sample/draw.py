"""Draw the pairs that the teacher labels, with exact inclusion probabilities.

Two phases. First queries (all of them, unless there are more than `max_queries`). Then, given the queries, pairs from
four independent sources: the log by strata, BM25 and embedding ranks, and random pins. Every draw is made with a known
probability, so weighting a pair by 1 / inclusion_prob gives unbiased totals over all pairs of the queries with the
catalogue (Horvitz-Thompson), and over those of any subset, such as the log's.

A pair is drawn if its own number is below its probability, so nothing is compared or sorted over all pairs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import binom

from ray_app.base.config import SampleConfig
from ray_app.base.hashing import Keys, text_keys, uniform
from ray_app.base.schemas import PAIRS
from ray_app.stages.sample.pair_sources import RETRIEVED, SOURCES, RankedPart, stratum_names
from ray_app.stages.sample.population import query_keys

_RANDOM = SOURCES.index("random")
_RANDOM_OF_BUCKET = 5  # salt; 0 to 3 are the sources', 4 that of queries
_GRID, _ROUNDS = 32, 4  # so the factor is found to 0.1% or better
_SMALLEST = 1e-9  # of the highest factor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RANDOM_PAIRS = pa.schema([("query_row", pa.int64()), ("pin_id", pa.string())])


@dataclass(frozen=True, kw_only=True)
class DrawPlan:
    """What all parts have in common."""

    cfg: SampleConfig
    num_pins: int  # of the catalogue
    num_queries: int  # selected ones
    target: float  # expected pairs
    mean_weight: float  # of the queries' shares of the retrieval budget
    log_rates: Mapping[str, float]  # by stratum


def expected_pairs(num_pairs: int) -> float:
    """Expected size that a draw exceeds `num_pairs` from about once in a thousand times (its deviation is the root)."""
    return max(num_pairs - 3.0 * math.sqrt(num_pairs), 0.5 * num_pairs)


class PartDraw:
    """The probabilities of a part's pairs, by source.

    The log's share is drawn by strata. Retrieval fills what is left, by the queries' weights and rank; random pins never
    exceed their share, for nothing is learnt from a sample full of them.
    """

    def __init__(self, part: RankedPart, selected: pa.Table, plan: DrawPlan) -> None:
        self._part, self._selected, self._plan = part, selected, plan
        cfg, band = plan.cfg, part.pairs["band"].to_numpy()
        rows = part.queries["query_row"].to_numpy()
        self.query = np.searchsorted(rows, part.pairs["query_row"].to_numpy())  # (num_pairs,) into the part's queries
        weight = part.queries["weight"].to_numpy() / plan.mean_weight
        self._names = stratum_names(selected.take(part.pairs["query_row"]), band)
        self._log_prob = np.zeros(len(band))
        in_log = np.flatnonzero(band != RETRIEVED)
        self._log_prob[in_log] = [plan.log_rates[self._names[i]] for i in in_log]
        shares = [(part.pairs["bm25_share"], cfg.bm25_fraction), (part.pairs["cosine_share"], cfg.embedding_fraction)]
        self._share = np.column_stack([column.to_numpy() * part_of * weight[self.query] for column, part_of in shares])
        self._random_fraction = cfg.random_fraction * weight / max(plan.num_pins, 1)
        self._num_others = plan.num_pins - part.queries["num_candidates"].to_numpy()

    @property
    def least_share(self) -> float:
        """The smallest share of a retrieved pair that is not 0; 1 without one."""
        return float(self._share[self._share > 0].min(initial=1.0))

    def probs(self, factor: float) -> tuple[Floats, Floats]:
        """Probabilities of each pair by log, BM25 and embedding, (num_pairs, 3), and of random ones by query."""
        # The weights' mean is 1, so `target / num_queries` is the factor at which random pins have their share.
        most = min(factor, self._plan.target / self._plan.num_queries)
        random_prob = np.minimum(1.0, most * self._random_fraction)
        return np.column_stack([self._log_prob, np.minimum(1.0, factor * self._share)]), random_prob

    def expected(self, factor: float) -> float:
        """Expected number of pairs."""
        prob, random_prob = self.probs(factor)
        missed = np.prod(1.0 - prob, axis=1) * (1.0 - random_prob[self.query])
        return float((1.0 - missed).sum() + self._num_others @ random_prob)

    def draw(self, factor: float, random_pairs: pa.Table, seed: int) -> pa.Table:
        """The drawn pairs (PAIRS).

        Args:
            factor: Of retrieval.
            random_pairs: Random pins of the part's queries (`draw_random`), of which candidates are left out: they are drawn
                as random ones by their own number.
            seed: Of the run.
        """
        pairs, selected = self._part.pairs, self._selected
        prob, random_prob = self.probs(factor)
        own = selected.take(self._part.queries["query_row"])
        keys = query_keys(own["query"].to_pylist(), own["locale"].to_pylist())
        pin_keys = text_keys(pairs["pin_id"].to_pylist(), "pin")
        every = np.column_stack([prob, random_prob[self.query]])
        numbers = [uniform(seed, source, keys[self.query], pin_keys) for source in range(len(SOURCES))]
        drawn = np.stack(numbers, axis=1) < every
        chosen = np.flatnonzero(drawn.any(axis=1))
        missed = np.prod(1.0 - every[chosen], axis=1)
        found = _pairs_table(
            selected, pairs["query_row"].to_numpy()[chosen], pairs["pin_id"].take(pa.array(chosen)),
            [self._names[i] for i in chosen], 1.0 - missed, drawn[chosen].argmax(axis=1),
        )  # fmt: skip
        fresh = _without_candidates(random_pairs, pairs)
        rows = fresh["query_row"].to_numpy()
        place = np.searchsorted(self._part.queries["query_row"].to_numpy(), rows)
        names = stratum_names(selected.take(fresh["query_row"]), np.full(len(rows), RETRIEVED))
        others = _pairs_table(selected, rows, fresh["pin_id"], names, random_prob[place], np.full(len(rows), _RANDOM))
        return pa.concat_tables([found, others])


def _without_candidates(random_pairs: pa.Table, pairs: pa.Table) -> pa.Table:
    key = ["query_row", "pin_id"]
    return random_pairs.join(pairs.select(key), key, join_type="left anti").select(RANDOM_PAIRS.names)


def _pairs_table(
    selected: pa.Table, rows: Ints, pin_ids: pa.ChunkedArray, names: list[str], prob: Floats, source: Ints
) -> pa.Table:
    queries = selected.take(pa.array(rows, pa.int64()))
    return pa.Table.from_arrays(
        [
            queries["query"], queries["locale"], pin_ids, pa.array(names, pa.string()),
            pa.array(prob * queries["query_prob"].to_numpy()), pa.array([SOURCES[s] for s in source], pa.string()),
        ], schema=PAIRS,
    )  # fmt: skip


def draw_random(pin_ids: Sequence[str], keys: Keys, random_prob: Floats, bucket: int, seed: int) -> pa.Table:
    """Pins of a bucket for each query (RANDOM_PAIRS), each with the query's probability, whatever else is drawn.

    The draw depends on the number of buckets, which decides what is in one.

    Args:
        pin_ids: Of the bucket.
        keys: (num_queries,) of the selected queries.
        random_prob: (num_queries,).
        bucket: Its number.
        seed: Of the run.
    """
    num_pins = len(pin_ids)
    numbers = uniform(seed, _RANDOM_OF_BUCKET, keys, bucket)
    # Pins are drawn one by one with equal probability: their number is binomial, and given it any so many are as likely.
    counts = binom.ppf(numbers, num_pins, random_prob).astype(np.int64) if num_pins else np.zeros(len(keys), np.int64)
    by_hash = np.argsort(text_keys(pin_ids, "pin"), kind="stable")
    rows = np.flatnonzero(counts > 0)
    pins = [np.zeros(0, np.int64)]
    for row in rows.tolist():
        rng = np.random.default_rng([seed, _RANDOM_OF_BUCKET, int(keys[row]), bucket])
        pins.append(by_hash[rng.choice(num_pins, counts[row], replace=False)])
    ids = pa.array(list(pin_ids), pa.string()).take(pa.array(np.concatenate(pins)))
    return pa.Table.from_arrays([pa.array(np.repeat(rows, counts[rows]), pa.int64()), ids], schema=RANDOM_PAIRS)


def find_factor(expected: Callable[[list[float]], Floats], target: float, highest: float) -> float:
    """The factor in [0, highest] at which the growing function `expected` reaches `target`, to 0.1%; `highest` if it never does.

    Args:
        expected: Factors -> values; each call is a round over all parts.
    """
    low, high = highest * _SMALLEST, highest
    for number in range(_ROUNDS):
        grid = np.geomspace(low, high, _GRID)
        values = expected(grid.tolist())
        if number == 0 and values[-1] <= target:
            return highest
        place = int(np.searchsorted(values, target, side="right"))
        if place == 0:  # it is smaller still
            low, high = low * _SMALLEST, low
        else:
            low, high = float(grid[place - 1]), float(grid[min(place, _GRID - 1)])
    return low
