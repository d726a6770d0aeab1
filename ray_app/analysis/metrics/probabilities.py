"""Intervals of what is said about grades and probabilities: ECE 3+, log loss, kappa, and the points of calibration curves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_app.analysis.metrics import grading
from ray_app.analysis.metrics.bootstrap import Interval, percentile_interval, ratio, resample_queries
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.formatting import interval_fields
from ray_app.analysis.metrics.protocol import JudgedPairs, SystemScores
from ray_app.base.schemas import NUM_GRADES

BINS = 10
MIN_PAIRS = 50  # guessed: with fewer, ten bins are filled by chance and ECE says nothing
_LEVELS = NUM_GRADES + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One bin of a calibration curve: what was predicted, and the share of its pairs that was so."""

    predicted: float
    observed: Interval
    num_pairs: int


def detail_intervals(judged: JudgedPairs, scores: SystemScores, settings: EvaluationSettings) -> dict[str, Interval]:
    """`ece_3`, `log_loss` and `kappa` of a system, on the same resamples of queries as all other figures.

    What the system cannot have (no probabilities, no grades) is undefined. ECE is a mean of distances, which resampling
    makes larger: its interval is moved back by as much as the resamples lie above the figure on average, not below 0.
    """
    num_queries, at_least = len(judged.queries), settings.calibration_grade
    # The figure, and how it is made of how often each query was drawn, from sums by query.
    figures: dict[str, tuple[float | None, Callable[[np.ndarray], np.ndarray]]] = {}
    if scores.probs is not None:
        size = np.bincount(judged.query_index, minlength=num_queries).astype(np.float64)
        chance, place = grading.grade_chances(scores.probs, at_least, BINS)
        surplus = _by_query(judged, place, BINS, chance - (judged.grade >= at_least))
        losses = grading.log_losses(scores.probs, judged.grade)
        loss = np.bincount(judged.query_index, weights=losses, minlength=num_queries)
        error = grading.reliability_curve(scores.probs, judged.grade, at_least).error
        figures[settings.ece] = error, lambda counts: np.abs(counts @ surplus).sum(axis=1) / (counts @ size)
        figures["log_loss"] = (
            grading.log_loss(scores.probs, judged.grade),
            lambda counts: counts @ loss / (counts @ size),
        )
    if scores.grades is not None:
        cell = scores.grades * _LEVELS + judged.grade
        table = _by_query(judged, cell, _LEVELS**2, np.ones(len(judged.grade)))
        kappa = grading.linear_kappa(scores.grades, judged.grade)
        figures["kappa"] = kappa, lambda counts: grading.linear_kappas((counts @ table).reshape(-1, _LEVELS, _LEVELS))
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in figures}
    for counts in resample_queries(num_queries, settings.samples, settings.seed, _LEVELS**2) if figures else ():
        for name, (_, of) in figures.items():
            blocks[name].append(of(counts))
    out = dict.fromkeys((settings.ece, "log_loss", "kappa"), Interval(None, None, None))
    for name, (value, _) in figures.items():
        if value is not None:
            drawn = np.concatenate(blocks[name])
            if name == settings.ece:
                drawn = np.maximum(drawn - max(0.0, drawn.mean() - value), 0.0)
            out[name] = percentile_interval(value, drawn, settings.confidence_level, num_queries)
    return out


def calibration_curve(judged: JudgedPairs, probs: np.ndarray, settings: EvaluationSettings) -> list[CurvePoint]:
    """Probability of `calibration_grade` or better against the share of pairs that were so; empty bins left out."""
    chance, place = grading.grade_chances(probs, settings.calibration_grade, BINS)
    found = grading.reliability_curve(probs, judged.grade, settings.calibration_grade, BINS)
    used = np.unique(place)
    positive = _by_query(judged, place, BINS, judged.grade >= settings.calibration_grade)[:, used]
    size = _by_query(judged, place, BINS, np.ones(len(chance)))[:, used]
    blocks = []
    for counts in resample_queries(len(judged.queries), settings.samples, settings.seed, 2 * BINS):
        blocks.append(ratio(counts @ positive, counts @ size))
    drawn = np.concatenate(blocks)
    return [
        CurvePoint(
            predicted=float(found.predicted[i]),
            observed=percentile_interval(
                float(found.observed[i]), drawn[:, i], settings.confidence_level, len(judged.queries)
            ),
            num_pairs=int(found.count[i]),
        )
        for i in range(len(used))
    ]


def calibration_by_locale(
    judged: JudgedPairs, systems: Mapping[str, SystemScores], settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """A row per locale and system with probabilities: `ece_3` with its interval, queries and pairs; largest locale first.

    Locales with fewer than MIN_PAIRS pairs are left out; there is no row if only one locale is judged.
    """
    locales = np.array(judged.table["locale"].to_pylist(), dtype=object)
    names, counts = np.unique(locales, return_counts=True)
    rows: list[dict[str, Any]] = []
    for locale in names[np.argsort(-counts, kind="stable")] if len(names) > 1 else []:
        mask = locales == locale
        if mask.sum() < MIN_PAIRS:
            continue
        part = judged.take(mask)
        for name, scores in systems.items():
            if scores.probs is None:
                continue
            found = detail_intervals(part, scores.take(mask), settings)[settings.ece]
            row = {
                "locale": str(locale), "system": name, "num_queries": len(part.queries), "num_pairs": int(mask.sum()),
            }  # fmt: skip
            rows.append(row | interval_fields(settings.ece, found))
    return rows


def _by_query(judged: JudgedPairs, place: np.ndarray, width: int, value: np.ndarray) -> np.ndarray:
    """Sums of a value by query and place, float64 (num_queries, width)."""
    flat = np.bincount(judged.query_index * width + place, weights=value, minlength=len(judged.queries) * width)
    return flat.reshape(len(judged.queries), width)
