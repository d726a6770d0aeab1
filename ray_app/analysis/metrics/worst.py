"""Worst slices of a system: slices of the judged pairs below its overall value, with example pairs.

Looked at are the values of each slice column, and two columns crossed where there are pairs enough. That is many looks
at one set of pairs, of which some are low by chance: Holm's correction counts them all, also those not shown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from ray_app.analysis.metrics.bootstrap import Interval, QueryAuroc, percentile_interval, ratio, resample_queries
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.corrections import bootstrap_p, holm, raised_samples
from ray_app.analysis.metrics.formatting import interval_fields, plain
from ray_app.analysis.metrics.protocol import JudgedPairs, SystemScores

METRICS = ("auroc_3", "accuracy")
MIN_QUERIES, MIN_PAIRS, MIN_OF_CLASS = 10, 50, 10  # guessed: below, an interval from resampled queries says little
CROSSED_QUERIES, CROSSED_PAIRS = 20, 200  # of two columns crossed, of which there are many more
MAX_SLICES = 60  # looked at, the largest: each look makes the correction stricter
MAX_SHOWN = 4  # of each metric
_MIN_GRADE = 3  # of AUROC 3+


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    columns: tuple[str, ...]
    values: tuple[str, ...]
    mask: np.ndarray  # (num_pairs of the whole,) bool
    num_queries: int


@dataclass(frozen=True, kw_only=True)
class WorstSlice(_Candidate):
    """One slice whose metric lies below that of all pairs."""

    metric: str
    num_pairs: int
    figure: Interval  # in the slice
    difference: Interval  # minus that of all pairs, of which the slice is a part
    p_adjusted: float | None
    significant: bool

    @property
    def gap(self) -> float:
        """By how much the figure lies below that of all pairs, negative; 0: undefined."""
        return self.difference.value or 0.0

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        row: dict[str, Any] = {"slice": dict(zip(self.columns, self.values, strict=True)), "metric": self.metric}
        row |= {"num_queries": self.num_queries, "num_pairs": self.num_pairs, "p_adjusted": plain(self.p_adjusted)}
        row |= interval_fields("figure", self.figure) | interval_fields("difference", self.difference)
        return row | {"significant": self.significant}


@dataclass(frozen=True, kw_only=True)
class WorstSlices:
    """The lowest slices of one system."""

    system: str
    num_slices: int  # looked at
    num_tests: int  # figures among them that are defined
    samples: int
    slices: list[WorstSlice]  # by metric, lowest first


def worst_slices(
    judged: JudgedPairs, system: str, scores: SystemScores, settings: EvaluationSettings
) -> WorstSlices | None:
    """The lowest slices of a system in AUROC 3+ and accuracy, compared with all pairs.

    Args:
        judged: With the columns of `settings.slice_columns`; those that are absent or have one value are left out.
        settings: Samples (drawn more often if the correction needs it), confidence, seed.

    Returns:
        None: there is nothing to compare, as no slice is large enough.
    """
    found = _candidates(judged, settings.slice_columns)
    if not found or len(judged.queries) == 1:
        return None
    tests = len(found) * len(METRICS)
    # Four times what is enough, so that a verdict does not hang on one resample.
    samples = raised_samples(settings.samples, tests, settings.confidence_level, times=4)
    num_queries = len(judged.queries)
    whole = _SliceMetrics(judged, scores, np.ones(len(judged.grade), dtype=bool))
    parts = [_SliceMetrics(judged, scores, candidate.mask) for candidate in found]
    once = np.ones((1, num_queries))
    blocks = [
        (whole(counts), [part(counts) for part in parts])
        for counts in resample_queries(num_queries, samples, settings.seed, len(judged.grade))
    ]
    rows: list[WorstSlice] = []
    p_values = []
    for metric in METRICS:
        all_drawn = np.concatenate([block[0][metric] for block in blocks])
        for i, candidate in enumerate(found):
            value, base = float(parts[i](once)[metric][0]), float(whole(once)[metric][0])
            if not np.isfinite(value - base):
                continue
            drawn = np.concatenate([block[1][i][metric] for block in blocks])
            rows.append(
                WorstSlice(
                    **vars(candidate), metric=metric, num_pairs=int(candidate.mask.sum()), p_adjusted=None, significant=False,
                    figure=percentile_interval(value, drawn, settings.confidence_level),
                    difference=percentile_interval(value - base, drawn - all_drawn, settings.confidence_level),
                )
            )  # fmt: skip
            p_values.append(bootstrap_p(drawn - all_drawn))
    rows = [
        replace(row, p_adjusted=p, significant=p is not None and p < 1.0 - settings.confidence_level)
        for row, p in zip(rows, holm(p_values), strict=True)
    ]
    out: list[WorstSlice] = []
    for metric in METRICS:
        of_metric = [row for row in rows if row.metric == metric]
        gaps = {(row.columns, row.values): row.gap for row in of_metric}
        low = [row for row in of_metric if row.gap < 0 and _says_more(row, gaps)]
        out += sorted(low, key=lambda row: row.gap)[:MAX_SHOWN]
    return WorstSlices(system=system, num_slices=len(found), num_tests=len(rows), samples=samples, slices=out)


def _says_more(row: WorstSlice, gaps: dict[tuple[tuple[str, ...], tuple[str, ...]], float]) -> bool:
    """Return True if two columns crossed are lower than each alone; else the one alone is what is shown."""
    if len(row.columns) == 1:
        return True
    alone = [gaps.get(((c,), (v,))) for c, v in zip(row.columns, row.values, strict=True)]
    return all(gap is None or row.gap < gap for gap in alone)


def _candidates(judged: JudgedPairs, columns: Sequence[str]) -> list[_Candidate]:
    """Slices that are large enough, largest first; of those with equal pairs the first, so that none is shown twice."""
    out: dict[bytes, _Candidate] = {}
    for names, values, mask in _cuts(judged, columns):
        num_queries = len(np.unique(judged.query_index[mask]))
        crossed = len(names) > 1
        if num_queries < (CROSSED_QUERIES if crossed else MIN_QUERIES):
            continue
        if not (CROSSED_PAIRS if crossed else MIN_PAIRS) <= mask.sum() < len(mask):
            continue
        candidate = _Candidate(columns=names, values=values, mask=mask, num_queries=num_queries)
        out.setdefault(np.packbits(mask).tobytes(), candidate)
    return sorted(out.values(), key=lambda c: (len(c.columns), -int(c.mask.sum()), c.columns, c.values))[:MAX_SLICES]


def _cuts(judged: JudgedPairs, columns: Sequence[str]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], np.ndarray]]:
    present = [c for c in columns if c in judged.table.column_names]
    text = {c: np.array([str(v) for v in judged.table[c].to_pylist()], dtype=object) for c in present}
    masks = {c: {str(v): text[c] == v for v in np.unique(text[c])} for c in present}
    for column in present:
        for value, mask in masks[column].items():
            yield (column,), (value,), mask
    for a, b in combinations(present, 2):
        for value_a, mask_a in masks[a].items():
            for value_b, mask_b in masks[b].items():
                yield (a, b), (value_a, value_b), mask_a & mask_b


class _SliceMetrics:
    """METRICS of some of the pairs under weightings of the queries; NaN where undefined or of too few pairs."""

    def __init__(self, judged: JudgedPairs, scores: SystemScores, mask: np.ndarray) -> None:
        self._queries, index = np.unique(judged.query_index[mask], return_inverse=True)
        num_queries, grade, predicted = len(self._queries), judged.grade[mask], scores.grades
        positive = grade >= _MIN_GRADE
        enough = min(int(positive.sum()), int((~positive).sum())) >= MIN_OF_CLASS
        self._auroc = QueryAuroc(scores.order_score[mask], positive, index, num_queries) if enough else None
        right = np.full(len(grade), np.nan) if predicted is None else (predicted[mask] == grade).astype(np.float64)
        self._right = np.bincount(index, weights=right, minlength=num_queries)
        self._size = np.bincount(index, minlength=num_queries).astype(np.float64)

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        counts = counts[:, self._queries]
        auroc = np.full(len(counts), np.nan) if self._auroc is None else self._auroc(counts)
        return {"auroc_3": auroc, "accuracy": ratio(counts @ self._right, counts @ self._size)}
