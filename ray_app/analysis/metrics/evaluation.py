"""Measure several systems on the same judged pairs, with paired bootstrap intervals.

evaluation = evaluate_systems(pairs, {"bm25": SystemScores(score=...), "student": SystemScores(score=..., probs=...)})
evaluation.difference("student", "bm25", "auroc_3")     # Interval(value, lo, hi)
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.analysis.metrics.bootstrap_result import BootstrapResult, EvaluationSettings, measure
from ray_app.analysis.metrics.corrections import holm, raised_samples
from ray_app.analysis.metrics.formatting import interval_fields, plain
from ray_app.analysis.metrics.probabilities import calibration_by_locale, detail_intervals
from ray_app.analysis.metrics.protocol import (
    AUROC_GRADES,
    JUDGED_CUTOFFS,
    KEY,
    METRICS,
    NDCG,
    PRECISION,
    JudgedPairs,
    SystemScores,
    judged_at,
    random_ranking,
    ranking_ideal,
    validate_judgments,
)
from ray_app.analysis.metrics.seen import CAUTION
from ray_app.analysis.metrics.slices import cuts_queries, in_order
from ray_app.analysis.metrics.worst import WorstSlices, worst_slices

logger = logging.getLogger(__name__)

_MAX_SLICES = 50


@dataclass(frozen=True, kw_only=True)
class Evaluation(BootstrapResult):
    """The whole result: figures, and all that the report shows beside them."""

    settings: EvaluationSettings
    pairs: JudgedPairs
    systems: dict[str, SystemScores]  # rows in the order of `pairs`
    details: dict[str, dict[str, Any]]  # system -> num_missing, judged@k, log_loss, ece_3, kappa, with _lo and _hi
    slices: list[dict[str, Any]]  # rows, with `slice` and `value`; ranking metrics null where a query is cut
    calibration: list[dict[str, Any]]  # rows by locale and system
    worst: WorstSlices | None  # of the hero
    random_order: dict[str, float]  # ranking metric -> expected value of a random order
    notes: list[str]  # what a reader must know to read the figures rightly

    def rows(self) -> list[dict[str, Any]]:
        """One row per system."""
        return [self.row(system) for system in self.systems]

    def best_baseline(self, metric: str) -> str | None:
        """The strongest baseline in that metric; None: there is none, or it is undefined for all."""
        return self._highest(metric, (b for b in self.settings.baselines if b in self.points))

    @cached_property
    def num_ndcg_queries(self) -> int:
        """Queries with something to find: those that the mean of nDCG is over."""
        return int((ranking_ideal(self.pairs) > 0).sum())

    @property
    def cautions(self) -> list[str]:
        """Notes without which the figures mislead: a report's first lines."""
        return [note for note in self.notes if note.startswith(CAUTION)]

    @property
    def primary_system(self) -> str:
        """The system that the report is about."""
        return primary_system_of(list(self.systems))

    def differences(self) -> list[dict[str, Any]]:
        """All comparisons that are shown, each pair of systems once a metric, with Holm's correction over them all.

        They are: every other system against the strongest baseline, the student against the teacher, and every system
        against the highest.
        """
        return list(self._comparisons.values())

    def significant(self, system_a: str, system_b: str, metric: str) -> bool:
        """Return True if two systems differ significantly, among all comparisons shown; False: not compared."""
        row = self._comparisons.get((frozenset((system_a, system_b)), metric))
        return row is not None and row["significant"]

    def leader(self, metric: str) -> str | None:
        """The system with the highest figure; None: it is undefined for all."""
        return self._highest(metric, self.systems)

    def _highest(self, metric: str, systems: Iterable[str]) -> str | None:
        defined = {s: self.points[s][metric] for s in systems if np.isfinite(self.points[s][metric])}
        return max(defined, key=lambda s: defined[s]) if defined else None

    @cached_property
    def _comparisons(self) -> dict[tuple[frozenset[str], str], dict[str, Any]]:
        out: dict[tuple[frozenset[str], str], dict[str, Any]] = {}
        for system in self.systems:
            for metric in METRICS:
                baselines = [] if system in self.settings.baselines else [self.best_baseline(metric)]
                baselines += ["teacher"] if system == "student" and "teacher" in self.systems else []
                for baseline in [*baselines, self.leader(metric)]:
                    key = frozenset((system, baseline or system)), metric
                    if len(key[0]) == 2 and baseline is not None and key not in out:
                        row: dict[str, Any] = {"system": system, "against": baseline, "metric": metric}
                        row |= interval_fields("difference", self.difference(system, baseline, metric))
                        out[key] = row | interval_fields("retention", self.retention(system, baseline, metric))
        p_values = [self.p_value(r["system"], r["against"], r["metric"]) for r in out.values()]
        for row, p, adjusted in zip(out.values(), p_values, holm(p_values), strict=True):
            sure = adjusted is not None and adjusted < 1.0 - self.confidence_level
            row |= {"p": plain(p), "p_adjusted": plain(adjusted), "significant": sure}
        return out

    def to_json(self, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Content of report/metrics.json; has no NaN and no infinity."""
        return {
            "rows": self.rows(),
            "differences": self.differences(),
            "details": self.details,
            "slices": self.slices,
            "worst_slices": [found.to_json() for found in self.worst.slices] if self.worst else [],
            "calibration": self.calibration,
            "random_order": {k: plain(v) for k, v in self.random_order.items()},
            "notes": self.notes,
            "protocol": {
                "num_resamples": self.num_samples,
                "confidence_level": self.settings.confidence_level,
                "seed": self.settings.seed,
                "resampled": "queries",
                "correction": f"Holm, over {len(self._comparisons)} comparisons",
                "relevant_grade": self.settings.relevant_grade,
                "calibration_grade": self.settings.calibration_grade,
                "rating_of_grade": {str(k): v for k, v in sorted(self.settings.rating_of_grade.items())},
                "num_queries": self.num_queries,
                "num_ndcg_queries": self.num_ndcg_queries,
                "num_pairs": self.num_pairs,
                "num_relevant_pairs": int((self.pairs.grade >= self.settings.relevant_grade).sum()),
                "judged_pairs": judged_hash(self.pairs),
            },
            "provenance": dict(provenance or {}),
        }

    def pair_scores(self) -> pa.Table:
        """The material of the metrics, pair by pair, so that another run can be compared with this one, query by query.

        query, locale, pin_id, grade, gain_rating; of each system `score/NAME` (null: none) and, if it predicts grades,
        `grade/NAME` (0: none).
        """
        rating = np.log2(self.pairs.gain + 1).round().astype(np.int8)
        table = self.pairs.table.select([*KEY, "grade"]).append_column("gain_rating", pa.array(rating))
        for name, scores in self.systems.items():
            table = table.append_column(f"score/{name}", pa.array(scores.score, mask=scores.missing))
            if scores.grades is not None:
                table = table.append_column(f"grade/{name}", pa.array(scores.grades.astype(np.int8)))
        return table


def primary_system_of(systems: Sequence[str]) -> str:
    """The student, else the teacher, else the last one."""
    return next((name for name in ("student", "teacher") if name in systems), systems[-1])


def judged_hash(pairs: JudgedPairs) -> str:
    """Identity of the judged pairs with their grades and gains, in whatever order they came."""
    digest = hashlib.sha256(json.dumps([pairs.table[c].to_pylist() for c in KEY]).encode())
    digest.update(pairs.grade.tobytes() + pairs.gain.tobytes())
    return digest.hexdigest()


def evaluate_systems(
    pairs: pa.Table, systems: Mapping[str, SystemScores], settings: EvaluationSettings | None = None,
    notes: Sequence[str] = (), rankings: Mapping[str, pa.Table] | None = None,
) -> Evaluation:  # fmt: skip
    """Measure every system on all judged pairs.

    Args:
        pairs: query, locale, pin_id, grade (1..5), one row per pair; optionally gain_rating and slice columns.
        systems: name -> scores, row by row as `pairs`.
        notes: What else a reader must know, such as queries that were seen in training; put before our own notes.
        rankings: System -> query, locale, pin_id, score: all that it ranks for these queries, for a system that ranks
            more than judged pairs. Only judged@k is measured on it; the other figures are of the judged pairs alone.

    Raises:
        UserError: the pairs are empty or wrong; the message names the problem.
        ValueError: there is no system, or one has another number of rows than the pairs.
    """
    if not systems:
        raise ValueError("no system to evaluate: the table would be empty")
    settings = settings or EvaluationSettings()
    judged, order = validate_judgments(pairs, settings.rating_of_grade)
    for name, scores in systems.items():
        if len(scores.score) != len(order):
            raise ValueError(f"system {name} has {len(scores.score)} scores for {len(order)} judged pairs")
    ordered = {name: scores.take(order) for name, scores in systems.items()}
    # Each metric compares a system with the highest, the best baseline, and (the student) with the teacher.
    samples = raised_samples(settings.samples, len(METRICS) * 2 * len(ordered), settings.confidence_level)
    whole = measure(judged, ordered, replace(settings, samples=samples))
    all_notes = [*notes, *_notes(judged, ordered, whole)]
    for note in all_notes:
        logger.info("evaluate: %s", note)
    primary_system = primary_system_of(list(ordered))
    rankings = rankings or {}
    return Evaluation(
        **{name: getattr(whole, name) for name in BootstrapResult.__dataclass_fields__}, settings=settings, pairs=judged,
        systems=ordered,
        details={name: _details(judged, scores, settings, rankings.get(name)) for name, scores in ordered.items()},
        slices=_slices(judged, ordered, settings), calibration=calibration_by_locale(judged, ordered, settings),
        worst=worst_slices(judged, primary_system, ordered[primary_system], settings),
        random_order=random_ranking(judged, settings.relevant_grade), notes=all_notes,
    )  # fmt: skip


def _details(
    judged: JudgedPairs, scores: SystemScores, settings: EvaluationSettings, ranking: pa.Table | None
) -> dict[str, Any]:
    out: dict[str, Any] = {"num_missing": int(scores.missing.sum())}
    for cutoff in JUDGED_CUTOFFS:
        out[f"judged@{cutoff}"] = plain(float(judged_at(judged, scores, cutoff, ranking).mean()))
    for name, found in detail_intervals(judged, scores, settings).items():
        out |= interval_fields(name, found)
    if scores.thresholds is not None and scores.probs is None:
        out["thresholds"] = [plain(t) for t in scores.thresholds.tolist()]
    return out


def _slices(
    judged: JudgedPairs, systems: Mapping[str, SystemScores], settings: EvaluationSettings
) -> list[dict[str, Any]]:
    rows = []
    for column in settings.slice_columns:
        if column not in judged.table.column_names:
            continue
        values = np.array([str(v) for v in judged.table[column].to_pylist()], dtype=object)
        names, counts = np.unique(values, return_counts=True)
        if len(names) < 2:
            continue
        # A ranking of part of a query's pins is not the query's ranking, and easier the smaller the part.
        blank = (NDCG, PRECISION) if cuts_queries(values, judged.query_index) else ()
        undefined = {f"{metric}{end}": None for metric in blank for end in ("", "_lo", "_hi")}
        for value in names[in_order(names, counts)][:_MAX_SLICES]:
            mask = values == value
            part = {name: scores.take(mask) for name, scores in systems.items()}
            measured = measure(judged.take(mask), part, settings)
            rows += [{"slice": column, "value": value} | measured.row(name) | undefined for name in systems]
    return rows


def _notes(judged: JudgedPairs, systems: Mapping[str, SystemScores], whole: BootstrapResult) -> list[str]:
    notes = []
    for grade in AUROC_GRADES:
        share = (judged.grade >= grade).mean()
        if share in (0.0, 1.0):
            which = "no" if share == 0.0 else "every"
            notes.append(f"AUROC {grade}+ is undefined: {which} judged pair has grade {grade} or better.")
    barren = int((ranking_ideal(judged) == 0).sum())
    if barren:
        verb = "query has" if barren == 1 else "queries have"
        notes.append(
            f"{barren} of {whole.num_queries} {verb} no relevant pin: nDCG@20, undefined there, is the mean of the others; "
            "P@8 counts them as 0."
        )
    if whole.num_queries == 1:
        notes.append("There is one query, so there are no intervals: they come from resampling queries.")
    for name, scores in systems.items():
        missing = int(scores.missing.sum())
        if missing:
            notes.append(f"{name} has no score for {missing:,} of {whole.num_pairs:,} pairs; they count as its worst.")
        if scores.grades is None:
            notes.append(f"{name} predicts no grades and no thresholds were fitted for it, so it has no accuracy.")
    return notes
