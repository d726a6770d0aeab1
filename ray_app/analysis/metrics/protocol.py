"""Measurement on judged pairs: the protocol is decided here, once, for every system.

- Only judged pairs are ranked, so judged@k is 1 for a system that scores them all. For one that ranks more, judged@k is
  measured on its own ranking (`judged_at`), and nDCG and P are those of its judged pins alone.
- Ties are broken as in trec_eval, by pin_id, descending, before any ranking metric sees them.
- A pair that a system did not score stays in: not retrieved (no gain), below every scored pair in AUROC, and a wrong
  grade in accuracy. It is counted as `num_missing`.
- nDCG has exponential gain 2^rating - 1 (`ray_app.analysis.metrics.dcg`); P is over k places even if fewer pins are judged. A query
  without a pin of gain counts in P and in everything else; the mean of nDCG leaves it out, and how many these are is said.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.analysis.metrics.dcg import dcg, discounts, ideal_dcg, ndcg, places
from ray_app.analysis.metrics.grading import scores_to_grades
from ray_app.base.errors import UserError
from ray_app.base.schemas import NUM_GRADES

NDCG_CUTOFF = 20
PRECISION_CUTOFF = 8
JUDGED_CUTOFFS = (PRECISION_CUTOFF, NDCG_CUTOFF)
AUROC_GRADES = (3, 4, 5)
METRICS = ("auroc_3", "auroc_4", "auroc_5", "accuracy", f"ndcg@{NDCG_CUTOFF}", f"p@{PRECISION_CUTOFF}")
NDCG, PRECISION = METRICS[4], METRICS[5]
KEY = ("query", "locale", "pin_id")
_MAX_RATING = 20  # ratings beyond it would be grades of another scale; trec_eval's gains are int32


@dataclass(frozen=True, kw_only=True)
class SystemScores:
    """One system's view of the judged pairs, row by row."""

    score: np.ndarray
    """(n,) float64, higher is more relevant, on one scale for all queries; NaN: the system has no score."""
    probs: np.ndarray | None = None
    """(n, 5) probability of grade 1..5, rows sum to 1, a row of NaN where there is no score. None: the system does not
    predict grades."""
    thresholds: np.ndarray | None = None
    """(4,) from `fit_grade_thresholds`, for a system without probs. None: no accuracy for it."""

    def __post_init__(self) -> None:
        if self.score.ndim != 1 or np.isinf(self.score).any():
            raise ValueError(f"score must be (n,) without infinities, got shape {self.score.shape}; missing is NaN")
        if self.probs is None:
            return
        if self.probs.shape != (len(self.score), NUM_GRADES):
            raise ValueError(f"probs must be ({len(self.score)}, {NUM_GRADES}), got {self.probs.shape}")
        given = self.probs[~np.isnan(self.probs).any(axis=1)]
        if (given < 0).any() or (np.abs(given.sum(axis=1) - 1.0) > 1e-3).any():
            raise ValueError("probs must be at least 0 and sum to 1 in each row; were logits passed?")

    def take(self, rows: np.ndarray) -> "SystemScores":
        """The given rows (indices or a mask), in that order."""
        probs = None if self.probs is None else self.probs[rows]
        return SystemScores(score=self.score[rows], probs=probs, thresholds=self.thresholds)

    @property
    def missing(self) -> np.ndarray:
        """(n,) bool, where there is no score."""
        return np.isnan(self.score)

    @property
    def order_score(self) -> np.ndarray:
        """(n,) float64: the score, and -inf where it is missing."""
        return np.where(self.missing, -np.inf, self.score)

    @property
    def grades(self) -> np.ndarray | None:
        """(n,) int64 predicted grade, the likeliest one (the lower of two equally likely); 0 where missing."""
        if self.probs is not None:
            absent = np.isnan(self.probs).any(axis=1)
            return np.where(absent, 0, np.argmax(np.where(absent[:, None], 0.0, self.probs), axis=1) + 1)
        if self.thresholds is not None:
            return np.where(self.missing, 0, scores_to_grades(self.score, self.thresholds))
        return None


@dataclass(frozen=True, kw_only=True)
class JudgedPairs:
    """The ground truth, sorted by query, locale, pin_id, so that nothing depends on the order of the rows."""

    table: pa.Table
    grade: np.ndarray  # (n,) int64, 1..5
    gain: np.ndarray  # (n,) int64, 2^rating - 1
    query_index: np.ndarray  # (n,) int64, into `queries`, ascending
    queries: list[tuple[str, str]]  # query, locale

    def take(self, mask: np.ndarray) -> "JudgedPairs":
        """The pairs under a boolean mask, with only their queries."""
        kept, index = np.unique(self.query_index[mask], return_inverse=True)
        return JudgedPairs(
            table=self.table.filter(pa.array(mask)), grade=self.grade[mask], gain=self.gain[mask], query_index=index,
            queries=[self.queries[i] for i in kept],
        )  # fmt: skip


def validate_judgments(pairs: pa.Table, rating_of_grade: Mapping[int, int]) -> tuple[JudgedPairs, np.ndarray]:
    """Check and sort judged pairs.

    Args:
        pairs: query, locale, pin_id, grade (1..5), optionally gain_rating (overrides the mapping where not null).
        rating_of_grade: grade -> rating of the gain 2^rating - 1.

    Returns:
        The pairs, and the (n,) permutation that sorted them.

    Raises:
        UserError: no pairs, a column is missing, a grade off the scale, or a pair judged twice.
    """
    missing = [c for c in (*KEY, "grade") if c not in pairs.column_names]
    if missing:
        raise UserError(f"evaluate: the judged pairs lack the columns {', '.join(missing)}")
    if pairs.num_rows == 0:
        raise UserError("evaluate: there are no judged pairs; check evaluate.human_labels, or that its pins are known")
    if any(pairs[c].null_count for c in (*KEY, "grade")):
        raise UserError("evaluate: a judged pair has a null query, locale, pin_id or grade; remove it")
    order = pc.sort_indices(pairs, sort_keys=[(c, "ascending") for c in KEY]).to_numpy()
    table = pairs.take(pa.array(order)).combine_chunks()
    query, locale, pin = (np.asarray(table[c].to_pylist(), dtype=object) for c in KEY)
    new_query = np.concatenate([[True], (query[1:] != query[:-1]) | (locale[1:] != locale[:-1])])
    twice = np.flatnonzero(~new_query[1:] & (pin[1:] == pin[:-1]))
    if twice.size:
        at = twice[0]
        raise UserError(f"evaluate: query {query[at]!r}, pin {pin[at]!r} is judged twice; combine the raters first")
    grade = table["grade"].to_numpy().astype(np.int64)
    if grade.min() < 1 or grade.max() > NUM_GRADES:
        raise UserError(
            f"evaluate: grades must be 1..{NUM_GRADES}, found {grade.min()}..{grade.max()}; set a grade_map"
        )
    starts = np.flatnonzero(new_query)
    judged = JudgedPairs(
        table=table, grade=grade, gain=2 ** _ratings(table, grade, rating_of_grade) - 1,
        query_index=np.cumsum(new_query) - 1, queries=[(query[i], locale[i]) for i in starts],
    )  # fmt: skip
    return judged, order


def ranking_metrics(judged: JudgedPairs, system: SystemScores, relevant_grade: int) -> dict[str, np.ndarray]:
    """nDCG@20 and P@8 of each query, as ir_measures computes them (tested).

    Returns:
        metric -> float64 (num_queries,); nDCG is 0 where nothing brings gain, see `ranking_ideal`.
    """
    rows, num_queries = rank_rows(judged, system), len(judged.queries)
    query = judged.query_index[rows]
    place = places(query)
    found = dcg(judged.gain[rows], place, query, num_queries, NDCG_CUTOFF)
    hit = (place < PRECISION_CUTOFF) & (judged.grade[rows] >= relevant_grade)
    hits = np.bincount(query, weights=hit, minlength=num_queries)
    return {NDCG: np.nan_to_num(ndcg(found, ranking_ideal(judged))), PRECISION: hits / PRECISION_CUTOFF}


def rank_rows(judged: JudgedPairs, system: SystemScores) -> np.ndarray:
    """Scored rows, query after query, best first, ties by pin_id descending; int64 (num_scored,)."""
    order = np.lexsort((-np.arange(len(judged.grade)), -system.order_score, judged.query_index))
    return order[~system.missing[order]]


def judged_at(judged: JudgedPairs, system: SystemScores, cutoff: int, ranking: pa.Table | None = None) -> np.ndarray:
    """Share of a system's first places that hold a judged pin, by query; float64 (num_queries,), 0..1.

    A query has `cutoff` places, or as many as there are pins in its ranking or judged for it, if those are fewer. So a
    judged pin that the system did not score leaves a place empty.

    Args:
        system: Its scores of the judged pairs, which are its ranking if `ranking` is None.
        ranking: query, locale, pin_id, score: all that the system ranks for these queries; pairs with a null or NaN
            score, and other queries, are left out.
    """
    judged_sizes = np.bincount(judged.query_index, minlength=len(judged.queries))
    if ranking is None:
        ranked = judged.query_index[~system.missing]
        found = np.minimum(np.bincount(ranked, minlength=len(judged.queries)), cutoff)
        return found / np.minimum(judged_sizes, cutoff)
    query_of = {key: i for i, key in enumerate(judged.queries)}
    known = set(zip(judged.query_index.tolist(), judged.table["pin_id"].to_pylist(), strict=True))
    lists: list[list[tuple[float, str]]] = [[] for _ in judged.queries]  # highest is first, as in trec_eval
    for query, locale, pin_id, score in zip(*(ranking[c].to_pylist() for c in (*KEY, "score")), strict=True):
        index = query_of.get((query, locale))
        if index is not None and score is not None and not np.isnan(score):
            lists[index].append((score, pin_id))
    out = np.zeros(len(lists))
    for index, pins in enumerate(lists):
        places = min(cutoff, max(len(pins), int(judged_sizes[index])))
        out[index] = sum((index, pin_id) in known for _, pin_id in sorted(pins, reverse=True)[:cutoff]) / places
    return out


def random_ranking(judged: JudgedPairs, relevant_grade: int) -> dict[str, float]:
    """Expected nDCG@20 and P@8 of a random order: the floor that a system is read against."""
    discount = np.cumsum(discounts(NDCG_CUTOFF))
    size = np.bincount(judged.query_index)
    relevant = np.bincount(judged.query_index, weights=judged.grade >= relevant_grade)
    mean_gain = np.bincount(judged.query_index, weights=judged.gain) / size
    ideal = ranking_ideal(judged)
    expected = ndcg(mean_gain * discount[np.minimum(size, NDCG_CUTOFF) - 1], ideal)
    precision = relevant / size * np.minimum(size, PRECISION_CUTOFF) / PRECISION_CUTOFF
    mean = float(expected[ideal > 0].mean()) if (ideal > 0).any() else float("nan")
    return {NDCG: mean, PRECISION: float(precision.mean())}


def ranking_ideal(judged: JudgedPairs) -> np.ndarray:
    """DCG@20 of the best order of each query, float64 (num_queries,); 0: nothing to find."""
    return ideal_dcg(judged.gain, judged.query_index, len(judged.queries), NDCG_CUTOFF)


def _ratings(table: pa.Table, grade: np.ndarray, rating_of_grade: Mapping[int, int]) -> np.ndarray:
    unknown = sorted(set(np.unique(grade).tolist()) - set(rating_of_grade))
    if unknown:
        raise UserError(f"evaluate: no gain rating for grade {unknown[0]}; the mapping has {sorted(rating_of_grade)}")
    rating = np.array([rating_of_grade[g] for g in grade.tolist()], dtype=np.int64)
    if "gain_rating" in table.column_names:
        given = np.array([np.nan if r is None else r for r in table["gain_rating"].to_pylist()], dtype=np.float64)
        rating = np.where(np.isnan(given), rating, np.nan_to_num(given)).astype(np.int64)
    if rating.min() < 0 or rating.max() > _MAX_RATING:
        raise UserError(f"evaluate: gain ratings must be 0..{_MAX_RATING}, found {rating.min()}..{rating.max()}")
    return rating
