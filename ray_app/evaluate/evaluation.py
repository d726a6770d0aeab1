"""Measure several systems on the same judged pairs, with paired bootstrap intervals.

evaluation = evaluate_systems(pairs, {"bm25": SystemScores(score=...), "student": SystemScores(score=..., probs=...)})
evaluation.rows()                                       # one dict per system, as the evaluate command prints them
evaluation.difference("student", "bm25", "auroc_3")     # Interval(value, lo, hi)
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.evaluate import grading
from ray_app.evaluate.measured import EvaluationSettings, Measured, measure, plain
from ray_app.evaluate.metrics import (
    AUROC_GRADES,
    METRICS,
    JudgedPairs,
    SystemScores,
    judge,
    random_ranking,
    ranking_ideal,
)

logger = logging.getLogger(__name__)

_MAX_SLICES = 50


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measured):
    """The whole result: figures, and all that the report shows beside them."""

    settings: EvaluationSettings
    pairs: JudgedPairs
    systems: dict[str, SystemScores]  # rows in the order of `pairs`
    details: dict[str, dict[str, Any]]  # system -> num_missing, log_loss, ece, kappa
    slices: list[dict[str, Any]]  # rows, with `slice` and `value`
    random_order: dict[str, float]  # ranking metric -> expected value of a random order
    notes: list[str]  # what a reader must know to read the figures rightly

    def rows(self) -> list[dict[str, Any]]:
        """One row per system."""
        return [self.row(system) for system in self.systems]

    def best_baseline(self, metric: str) -> str | None:
        """The strongest baseline in that metric; None: there is none, or it is undefined for all."""
        found = {b: self.points[b][metric] for b in self.settings.baselines if b in self.points}
        defined = {b: value for b, value in found.items() if np.isfinite(value)}
        return max(defined, key=lambda b: defined[b]) if defined else None

    def differences(self) -> list[dict[str, Any]]:
        """Every other system against the strongest baseline of each metric, and the student against the teacher."""
        out = []
        for system in self.systems:
            for metric in METRICS:
                rivals = [] if system in self.settings.baselines else [self.best_baseline(metric)]
                rivals += ["teacher"] if system == "student" and "teacher" in self.systems else []
                for rival in rivals:
                    if rival is not None:
                        out.append(self._difference_row(system, rival, metric))
        return out

    def json_line(self) -> str:
        """The one line that the evaluate command ends with."""
        return json.dumps({"rows": self.rows()}, allow_nan=False)

    def to_json(self, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Content of report/metrics.json; has no NaN and no infinity."""
        return {
            "rows": self.rows(),
            "differences": self.differences(),
            "details": self.details,
            "slices": self.slices,
            "random_order": {k: plain(v) for k, v in self.random_order.items()},
            "notes": self.notes,
            "protocol": {
                "bootstrap_samples": self.settings.samples,
                "confidence": self.settings.confidence,
                "seed": self.settings.seed,
                "resampled": "queries",
                "relevant_grade": self.settings.relevant_grade,
                "calibration_grade": self.settings.calibration_grade,
                "rating_of_grade": {str(k): v for k, v in sorted(self.settings.rating_of_grade.items())},
                "num_relevant_pairs": int((self.pairs.grade >= self.settings.relevant_grade).sum()),
            },
            "provenance": dict(provenance or {}),
        }

    def _difference_row(self, system: str, rival: str, metric: str) -> dict[str, Any]:
        difference, kept = self.difference(system, rival, metric), self.ratio(system, rival, metric)
        row: dict[str, Any] = {"system": system, "against": rival, "metric": metric}
        for name, interval in (("difference", difference), ("ratio", kept)):
            row |= {name: plain(interval.value), f"{name}_lo": plain(interval.lo), f"{name}_hi": plain(interval.hi)}
        return row


def evaluate_systems(
    pairs: pa.Table,
    systems: Mapping[str, SystemScores],
    settings: EvaluationSettings | None = None,
    notes: Sequence[str] = (),
) -> Evaluation:
    """Measure every system on all judged pairs.

    Args:
        pairs: query, locale, pin_id, grade (1..5), one row per pair; optionally gain_rating and slice columns.
        systems: name -> scores, row by row as `pairs` (see `align_scores` for tables in another order).
        settings: None: the defaults.
        notes: What else a reader must know, such as queries that were seen in training; put before our own notes.

    Raises:
        UserError: the pairs are empty or wrong; the message names the problem.
        ValueError: there is no system, or one has another number of rows than the pairs.
    """
    if not systems:
        raise ValueError("no system to evaluate: the table would be empty")
    settings = settings or EvaluationSettings()
    judged, order = judge(pairs, settings.rating_of_grade)
    for name, scores in systems.items():
        if len(scores.score) != len(order):
            raise ValueError(f"system {name} has {len(scores.score)} scores for {len(order)} judged pairs")
    ordered = {name: scores.take(order) for name, scores in systems.items()}
    whole = measure(judged, ordered, settings)
    all_notes = [*notes, *_notes(judged, ordered, whole)]
    for note in all_notes:
        logger.info("evaluate: %s", note)
    return Evaluation(
        **{name: getattr(whole, name) for name in Measured.__dataclass_fields__},
        settings=settings,
        pairs=judged,
        systems=ordered,
        details={name: _details(judged, scores, settings) for name, scores in ordered.items()},
        slices=_slices(judged, ordered, settings),
        random_order=random_ranking(judged, settings.relevant_grade),
        notes=all_notes,
    )


def _details(judged: JudgedPairs, scores: SystemScores, settings: EvaluationSettings) -> dict[str, Any]:
    out: dict[str, Any] = {"num_missing": int(scores.missing.sum()), "log_loss": None, "ece": None, "kappa": None}
    if scores.probs is not None:
        out["log_loss"] = plain(grading.log_loss(scores.probs, judged.grade))
        out["ece"] = plain(grading.calibrate(scores.probs, judged.grade, settings.calibration_grade).error)
    if scores.grades is not None:
        out["kappa"] = plain(grading.linear_kappa(scores.grades, judged.grade))
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
        for value in names[np.argsort(-counts, kind="stable")][:_MAX_SLICES]:
            mask = values == value
            part = {name: scores.take(mask) for name, scores in systems.items()}
            measured = measure(judged.take(mask), part, settings)
            rows += [{"slice": column, "value": value} | measured.row(name) for name in systems]
    return rows


def _notes(judged: JudgedPairs, systems: Mapping[str, SystemScores], whole: Measured) -> list[str]:
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
