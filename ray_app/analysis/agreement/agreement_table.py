"""Agreement of raters with each other, and teacher and student with raters, overall and in slices.

tables = agreement_tables(labels, {"teacher": scores, "student": scores})
tables[0].row("teacher").metrics["kappa"]               # Interval(value, lo, hi), over all pairs

The protocol, for every row alike:
- Raters against raters: every two raters of a pair are compared, and all of that pooled. No rater comes first, so both
  orders count; kappa is that of the table made symmetric.
- A system against raters: its likeliest grade is compared with every rater's grade of the pair. Where it has none it
  agrees with nobody (grade 0 in kappa), as in the evaluation; alpha leaves such a pair to the raters.
- Alpha is Krippendorff's, over the raters' grades, for a system with its grade as one more rater's.
- Intervals come from resampling queries, the same resamples in every row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ray_app.analysis.agreement.coefficients import (
    AGREEMENT_METRICS,
    LEVELS,
    agreement_metrics,
    both_orders,
    coincidences_of,
)
from ray_app.analysis.agreement.rater_counts import RaterCounts
from ray_app.analysis.metrics.bootstrap import Interval, percentile_interval, resample_queries
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.formatting import interval_fields, read_interval
from ray_app.sources.sheets import is_adjudicator

RATERS = "raters"
_NUMBERS = ("num_pairs", "num_comparisons", "num_missing")


class HasGrades(Protocol):
    """The part of a system that is needed here; `SystemScores` is one."""

    @property
    def grades(self) -> np.ndarray | None:
        """(num_pairs,) int, the likeliest grade 1..5, 0 where missing; None: the system predicts no grades."""


@dataclass(frozen=True, kw_only=True)
class AgreementRow:
    """The raters with each other, or one system with the raters."""

    subject: str  # `raters`, or the system
    num_pairs: int  # with something to compare
    num_comparisons: int  # of two grades each
    num_missing: int  # pairs that the system has no grade for
    metrics: dict[str, Interval]  # by AGREEMENT_METRICS
    above_raters: dict[str, Interval]  # the system's figure minus the raters', on the same resamples; empty for raters
    undefined: dict[str, str]  # figure -> why it has no value
    confusion: list[list[int]]
    """(6, 5): comparisons by the subject's grade (row, 0 = none) and the rater's (column, 1..5); for raters both orders."""


@dataclass(frozen=True, kw_only=True)
class AgreementTable:
    """Agreement on one slice of the labelled pairs."""

    column: str | None  # that the slice is by; None: all pairs
    value: str | None
    num_pairs: int
    num_queries: int
    num_raters: int  # adjudicators are none
    rows: list[AgreementRow]  # the raters first
    notes: list[str]  # what a reader must know to read the figures rightly

    @property
    def title(self) -> str:
        """Such as `locale de-DE`."""
        return "all pairs" if self.column is None else f"{self.column} {self.value}"

    def row(self, subject: str) -> AgreementRow:
        """The row of `raters` or a system."""
        return next(row for row in self.rows if row.subject == subject)

    def to_json(self) -> dict[str, Any]:
        """All of it, without NaN; an interval is `metric`, `figure_lo`, `figure_hi`."""
        rows: list[dict[str, Any]] = []
        for row in self.rows:
            numbers = {name: getattr(row, name) for name in _NUMBERS}
            metrics = _flat(row.metrics) | {"above_raters": _flat(row.above_raters)}
            told = {"undefined": row.undefined, "confusion": row.confusion}
            rows.append({"subject": row.subject, **numbers, **metrics, **told})
        numbers = {"num_pairs": self.num_pairs, "num_queries": self.num_queries, "num_raters": self.num_raters}
        return {"slice": self.column, "value": self.value, **numbers, "rows": rows, "notes": self.notes}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "AgreementTable":
        """Read back what `to_json` gave."""
        rows = []
        for row in found["rows"]:
            same = {name: row[name] for name in ("subject", *_NUMBERS, "undefined", "confusion")}
            rows.append(AgreementRow(**same, metrics=_intervals(row), above_raters=_intervals(row["above_raters"])))
        numbers = {name: found[name] for name in ("num_pairs", "num_queries", "num_raters")}
        return cls(column=found["slice"], value=found["value"], **numbers, rows=rows, notes=found["notes"])


def agreement_tables(
    labels: pa.Table, systems: Mapping[str, HasGrades], settings: EvaluationSettings | None = None
) -> list[AgreementTable]:
    """Measure agreement over all pairs, and for each value of each slice column.

    Args:
        labels: HUMAN_LABELS in any order, maybe with more columns to slice by.
        systems: name -> predictions for the distinct pairs of `labels` sorted by query, locale, pin_id: the order of
            `combine_raters` and `LabelledPairs`. Those that predict no grades are left out.

    Raises:
        UserError: the labels are empty or wrong, see `RaterCounts.of`.
        ValueError: a system has another number of grades than there are pairs.
    """
    settings = settings or EvaluationSettings()
    counts = RaterCounts.of(labels)
    grades = {name: found for name, system in systems.items() if (found := system.grades) is not None}
    for name, found in grades.items():
        if name == RATERS or len(found) != len(counts.keys):
            raise ValueError(f"system {name!r} has {len(found)} grades for {len(counts.keys)} labelled pairs")
    whole = np.ones(len(counts.keys), dtype=bool)
    out = [_measure(counts, grades, whole, settings, notes=_notes(counts))]
    for column in settings.slice_columns:
        if column not in labels.column_names:
            continue
        values = counts.column(labels[column].to_pylist())
        names = sorted(set(values))
        if len(names) > 1:
            out += [_measure(counts, grades, values == name, settings, column, name) for name in names]
    return out


def _measure(
    counts: RaterCounts, grades: Mapping[str, np.ndarray], mask: np.ndarray, settings: EvaluationSettings,
    column: str | None = None, value: str | None = None, notes: Sequence[str] = (),
) -> AgreementTable:  # fmt: skip
    """The table of the pairs under a mask."""
    places = np.flatnonzero(mask)
    given = counts.given[places]
    query_index = np.unique([f"{query}\0{locale}" for query, locale, _ in counts.keys], return_inverse=True)[1]
    query_index = np.unique(query_index[places], return_inverse=True)[1]
    num_queries = int(query_index.max()) + 1

    def by_query(cells: np.ndarray) -> np.ndarray:
        out = np.zeros((num_queries, *cells.shape[1:]))
        np.add.at(out, query_index, cells)
        return out

    # Sums over a query's pairs: every figure is made of them, so a resample is a product with its counts.
    tables = {RATERS: by_query(np.pad(both_orders(given), ((0, 0), (1, 0), (1, 0))))}
    pairings = {RATERS: by_query(coincidences_of(given))}
    for name, found in grades.items():
        said = np.eye(LEVELS)[found[places]]
        tables[name] = by_query(said[:, :, None] * np.pad(given, ((0, 0), (1, 0)))[:, None, :])
        pairings[name] = by_query(coincidences_of(given + said[:, 1:]))

    def metrics(times: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        sums = {name: (np.tensordot(times, tables[name], 1), np.tensordot(times, pairings[name], 1)) for name in tables}
        return {name: agreement_metrics(*of) for name, of in sums.items()}

    points = metrics(np.ones((1, num_queries)))
    drawn = resample_queries(num_queries, settings.samples, settings.seed, LEVELS**2 * len(tables))
    blocks = [metrics(times) for times in drawn]
    samples = {name: {f: np.concatenate([b[name][f] for b in blocks]) for f in AGREEMENT_METRICS} for name in tables}

    def interval(point: np.ndarray, resampled: np.ndarray) -> Interval:
        return percentile_interval(float(point[0]), resampled, settings.confidence_level, num_queries)

    num_shared = int((given.sum(axis=1) > 1).sum())
    rows = []
    for name in tables:
        table, of_raters = tables[name].sum(axis=0), name == RATERS
        own = {f: interval(points[name][f], samples[name][f]) for f in AGREEMENT_METRICS}
        above = {
            f: interval(points[name][f] - points[RATERS][f], samples[name][f] - samples[RATERS][f])
            for f in AGREEMENT_METRICS if not of_raters
        }  # fmt: skip
        row = AgreementRow(
            subject=name, num_pairs=num_shared if of_raters else len(given),
            num_comparisons=int(table.sum()) // (2 if of_raters else 1),
            num_missing=0 if of_raters else int((grades[name][places] == 0).sum()), metrics=own, above_raters=above,
            undefined=_reasons(own, table.sum(), pairings[name].sum()), confusion=table[:, 1:].astype(int).tolist(),
        )  # fmt: skip
        rows.append(row)
    return AgreementTable(
        column=column, value=value, num_pairs=len(given), num_queries=num_queries,
        num_raters=sum(not is_adjudicator(rater) for rater in frozenset().union(*(counts.raters[i] for i in places))),
        rows=rows, notes=list(notes),
    )  # fmt: skip


def _reasons(metrics: Mapping[str, Interval], num_compared: float, num_paired: float) -> dict[str, str]:
    """Why figures are undefined, by how many grades kappa and alpha had to go by."""
    out = {}
    for name in (name for name, interval in metrics.items() if interval.value is None):
        lonely = (num_paired if name.startswith("alpha") else num_compared) == 0
        out[name] = "no pair has two grades to compare" if lonely else "only one grade was given: chance alone agrees"
    return out


def _notes(counts: RaterCounts) -> list[str]:
    notes = []
    if num_final := int(counts.has_final.sum()):
        notes.append(f"{num_final:,} pairs have a final grade beside their raters' grades; it is no rater here.")
    if num_adjudicated := int(counts.is_adjudicated.sum()):
        notes.append(
            f"{num_adjudicated:,} pairs were adjudicated. Their raters, who disagreed most, are no longer compared, and "
            "models had a say in which pairs were: agreement looks better than it was."
        )
    return notes


def _flat(metrics: Mapping[str, Interval]) -> dict[str, float | None]:
    return {key: value for name, interval in metrics.items() for key, value in interval_fields(name, interval).items()}


def _intervals(flat: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: read_interval(flat, name) for name in AGREEMENT_METRICS if name in flat}
