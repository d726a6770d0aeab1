"""Figures of several systems on one set of judged pairs, with the resamples that their intervals come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_app.analysis.metrics.bootstrap import Interval, QueryAuroc, percentile_interval, ratio, resample_queries
from ray_app.analysis.metrics.corrections import bootstrap_p
from ray_app.analysis.metrics.formatting import interval_fields
from ray_app.analysis.metrics.protocol import (
    AUROC_GRADES,
    METRICS,
    NDCG,
    PRECISION,
    JudgedPairs,
    SystemScores,
    ranking_ideal,
    ranking_metrics,
)
from ray_app.analysis.metrics.slices import SLICE_COLUMNS

BASELINES = ("bm25", "embedding_cosine", "engagement_cosine", "graph_cosine", "feature_only_student")
GRADE_AS_RATING = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}


def rating_of_grade(grade_map: Mapping[int, int] | None) -> dict[int, int]:
    """Ratings of nDCG from a source's grade_map (rating -> grade): its inverse; grades it never makes get the next lower.

    Chorus's {0: 1, 1: 3, 2: 4, 3: 5} gives {1: 0, 2: 0, 3: 1, 4: 2, 5: 3}. None: grade - 1.
    """
    if grade_map is None:
        return dict(GRADE_AS_RATING)
    return {
        grade: max((rating for rating, made in grade_map.items() if made <= grade), default=0) for grade in range(1, 6)
    }


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings that decide the metrics besides the pairs and scores."""

    samples: int = 1000
    """Resamples at least; the whole is drawn more often where the correction for several comparisons needs it."""
    confidence_level: float = 0.95
    seed: int = 17
    relevant_grade: int = 4
    """A pin of this grade or better counts as relevant in P@8: grade 3 is only marginally relevant."""
    calibration_grade: int = 3
    """The reliability diagram and ECE 3+ are about the probability of this grade or better, as AUROC 3+ is."""
    rating_of_grade: Mapping[int, int] = field(default_factory=lambda: dict(GRADE_AS_RATING))
    """grade -> rating of nDCG's gain 2^rating - 1; `rating_of_grade` makes it from a source's grade_map."""
    baselines: Sequence[str] = BASELINES
    slice_columns: Sequence[str] = SLICE_COLUMNS
    """Columns of the pairs to slice by; those that are absent or have one value are left out."""

    @property
    def ece(self) -> str:
        """Key of the calibration error of `calibration_grade`, such as `ece_3`.

        It is another figure than the one in a model's manifest (`ray_app.models.calibration`): that is of the likeliest grade.
        """
        return f"ece_{self.calibration_grade}"


@dataclass(frozen=True, kw_only=True)
class BootstrapResult:
    """Figures of all systems on one set of pairs."""

    num_queries: int
    num_pairs: int
    points: dict[str, dict[str, float]]  # system -> metric -> value, NaN: undefined
    samples: dict[str, dict[str, np.ndarray]]  # system -> metric -> (samples,), NaN where undefined
    per_query: dict[str, dict[str, np.ndarray]]  # system -> ranking metric -> (num_queries,)
    confidence_level: float

    @property
    def num_samples(self) -> int:
        """Resamples that were drawn."""
        return next(len(drawn) for of in self.samples.values() for drawn in of.values())

    def interval(self, system: str, metric: str) -> Interval:
        """The metric of a system."""
        return self._interval(self.points[system][metric], self.samples[system][metric])

    def difference(self, system_a: str, system_b: str, metric: str) -> Interval:
        """System a minus system b, on the same resamples."""
        a, b = self.points[system_a][metric], self.points[system_b][metric]
        return self._interval(a - b, self.samples[system_a][metric] - self.samples[system_b][metric])

    def retention(self, system_a: str, system_b: str, metric: str) -> Interval:
        """The share of system b's figure that system a keeps, on the same resamples."""
        a, b = self.points[system_a][metric], self.points[system_b][metric]
        kept = ratio(self.samples[system_a][metric], self.samples[system_b][metric])
        return self._interval(a / b if b > 0 else np.nan, kept)

    def p_value(self, system_a: str, system_b: str, metric: str) -> float | None:
        """Chance of such a difference between equal systems, two-sided, uncorrected; None: undefined, or one query."""
        if self.num_queries == 1:
            return None
        return bootstrap_p(self.samples[system_a][metric] - self.samples[system_b][metric])

    def row(self, system: str) -> dict[str, Any]:
        """The system's figures, each with `_lo` and `_hi`; null where undefined."""
        row: dict[str, Any] = {"system": system}
        for metric in METRICS:
            row |= interval_fields(metric, self.interval(system, metric))
        return row | {"num_queries": self.num_queries, "num_pairs": self.num_pairs}

    def _interval(self, value: float, samples: np.ndarray) -> Interval:
        return percentile_interval(value, samples, self.confidence_level, self.num_queries)


def measure(judged: JudgedPairs, systems: Mapping[str, SystemScores], settings: EvaluationSettings) -> BootstrapResult:
    """Measure systems whose rows are in the order of `judged`."""
    num_queries, num_pairs = len(judged.queries), len(judged.grade)
    size = np.bincount(judged.query_index).astype(np.float64)
    per_query = {name: ranking_metrics(judged, scores, settings.relevant_grade) for name, scores in systems.items()}
    # Where nothing is relevant every order is as good: nDCG is 0/0 there, and such a query is left out of its mean.
    counted = {NDCG: (ranking_ideal(judged) > 0).astype(np.float64), PRECISION: np.ones(num_queries)}
    # All metrics but AUROC are ratios of sums over queries: numerator and denominator by query.
    ratios: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    aurocs: dict[str, dict[str, QueryAuroc]] = {}
    for name, scores in systems.items():
        ratios[name] = {metric: (values, counted[metric]) for metric, values in per_query[name].items()}
        grades = scores.grades
        right = np.full(num_pairs, np.nan) if grades is None else (grades == judged.grade).astype(np.float64)
        ratios[name]["accuracy"] = (np.bincount(judged.query_index, weights=right), size)

        aurocs[name] = {
            f"auroc_{g}": QueryAuroc(scores.order_score, judged.grade >= g, judged.query_index, num_queries)
            for g in AUROC_GRADES
        }

    def figures(counts: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        return {
            name: {metric: auroc(counts) for metric, auroc in aurocs[name].items()}
            | {metric: ratio(counts @ top, counts @ below) for metric, (top, below) in ratios[name].items()}
            for name in systems
        }

    points = figures(np.ones((1, num_queries)))
    blocks = [figures(c) for c in resample_queries(num_queries, settings.samples, settings.seed, num_pairs)]
    return BootstrapResult(
        num_queries=num_queries,
        num_pairs=num_pairs,
        points={s: {m: float(points[s][m][0]) for m in METRICS} for s in systems},
        samples={s: {m: np.concatenate([b[s][m] for b in blocks]) for m in METRICS} for s in systems},
        per_query=per_query,
        confidence_level=settings.confidence_level,
    )
