"""Intervals of what is said about grades and probabilities: ECE 3+, log loss, kappa, and the points of calibration curves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_app.analysis.metrics import grading
from ray_app.analysis.metrics.bootstrap import Interval, percentile_interval, resample_queries
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings, plain
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
    num_queries = len(judged.queries)
    ece = settings.ece
    out = {name: Interval(None, None, None) for name in (ece, "log_loss", "kappa")}
    parts: dict[str, np.ndarray] = {}  # sums by query
    size = np.bincount(judged.query_index, minlength=num_queries).astype(np.float64)
    if scores.probs is not None:
        out[ece] = Interval(grading.calibrate(scores.probs, judged.grade, settings.calibration_grade).error, None, None)
        out["log_loss"] = Interval(grading.log_loss(scores.probs, judged.grade), None, None)
        chance, place = _chances(scores.probs, settings.calibration_grade)
        surplus = chance - (judged.grade >= settings.calibration_grade)
        parts["surplus"] = _by_query(judged, place, BINS, surplus)
        losses = np.array([grading.log_loss(scores.probs[[i]], judged.grade[[i]]) for i in range(len(chance))])
        parts["loss"] = np.bincount(judged.query_index, weights=losses, minlength=num_queries)
    if scores.grades is not None:
        out["kappa"] = Interval(grading.linear_kappa(scores.grades, judged.grade), None, None)
        parts["table"] = _by_query(
            judged, scores.grades * _LEVELS + judged.grade, _LEVELS**2, np.ones(len(judged.grade))
        )
    if num_queries == 1 or not parts:
        return out
    samples: dict[str, list[np.ndarray]] = {name: [] for name in out}
    for counts in resample_queries(num_queries, settings.samples, settings.seed, _LEVELS**2):
        total = counts @ size
        if "surplus" in parts:
            samples[ece].append(np.abs(counts @ parts["surplus"]).sum(axis=1) / total)
            samples["log_loss"].append(counts @ parts["loss"] / total)
        if "table" in parts:
            samples["kappa"].append(grading.linear_kappas((counts @ parts["table"]).reshape(-1, _LEVELS, _LEVELS)))
    for name, blocks in samples.items():
        value = out[name].value
        if value is not None and blocks:
            drawn = np.concatenate(blocks)
            if name == ece:
                drawn = np.maximum(drawn - max(0.0, drawn.mean() - value), 0.0)
            out[name] = percentile_interval(value, drawn, settings.confidence)
    return out


def calibration_curve(judged: JudgedPairs, probs: np.ndarray, settings: EvaluationSettings) -> list[CurvePoint]:
    """Probability of `calibration_grade` or better against the share of pairs that were so; empty bins left out."""
    chance, place = _chances(probs, settings.calibration_grade)
    found = grading.calibrate(probs, judged.grade, settings.calibration_grade, BINS)
    used = np.unique(place)
    positive = _by_query(judged, place, BINS, judged.grade >= settings.calibration_grade)[:, used]
    size = _by_query(judged, place, BINS, np.ones(len(chance)))[:, used]
    blocks = []
    for counts in resample_queries(len(judged.queries), settings.samples, settings.seed, 2 * BINS):
        top, below = counts @ positive, counts @ size
        blocks.append(np.divide(top, below, out=np.full(top.shape, np.nan), where=below > 0))
    drawn = np.concatenate(blocks)
    if len(judged.queries) == 1:
        drawn = np.full_like(drawn, np.nan)
    return [
        CurvePoint(
            predicted=float(found.predicted[i]),
            observed=percentile_interval(float(found.observed[i]), drawn[:, i], settings.confidence),
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
                "locale": str(locale),
                "system": name,
                "num_queries": len(part.queries),
                "num_pairs": int(mask.sum()),
            }
            values = {"": found.value, "_lo": found.lo, "_hi": found.hi}
            rows.append(row | {f"{settings.ece}{end}": plain(value) for end, value in values.items()})
    return rows


def _chances(probs: np.ndarray, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability of `at_least` or better, and its bin, as `grading.calibrate` has them."""
    absent = np.isnan(probs).any(axis=1)
    filled = np.where(absent[:, None], 1.0 / NUM_GRADES, probs)
    chance = filled[:, at_least - 1 :].sum(axis=1).clip(0.0, 1.0)
    return chance, np.minimum((chance * BINS).astype(np.int64), BINS - 1)


def _by_query(judged: JudgedPairs, place: np.ndarray, width: int, value: np.ndarray) -> np.ndarray:
    """Sums of a value by query and place, float64 (num_queries, width)."""
    flat = np.bincount(judged.query_index * width + place, weights=value, minlength=len(judged.queries) * width)
    return flat.reshape(len(judged.queries), width)
