"""An experiment as a table: what each arm is worth, with intervals, gains and costs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.bootstrap_result import BootstrapResult, EvaluationSettings, measure
from ray_app.analysis.metrics.formatting import LABELS, aligned, format_interval, plain
from ray_app.analysis.metrics.grading import reliability_curve
from ray_app.analysis.metrics.protocol import METRICS, NDCG, PRECISION, SystemScores, validate_judgments
from ray_app.base.locales import UNKNOWN, language_of

TABLE_METRICS = ("accuracy", "auroc_3", "auroc_4", "auroc_5", NDCG)
GAINS = ("accuracy", "auroc_3")
MIN_PAIRS = 100  # guessed: a language with fewer has intervals that say nothing

ABSENT = "–"  # what a cost is that a row does not have

Trained = Sequence[SystemScores]  # of one arm, one per seed


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentRow:
    """One line of an experiment's table."""

    name: str
    cells: list[Interval]
    marked: bool = False  # such as a language that humans labelled
    costs: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentTable:
    """One experiment."""

    key: str  # short name
    title: str  # the question that it answers
    columns: list[str]  # one label per cell of a row; the last `num_gains` are differences
    num_gains: int
    rows: list[ExperimentRow]
    """In the order in which figures are expected to rise; for `languages` in the order of their pairs."""
    verdict: str  # which of the expected steps the figures show
    about: str  # how to read it
    cost_columns: list[str] = field(default_factory=list)  # one label per cost of a row
    measured_on: str = ""  # what, if not the judged pairs of all systems

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        rows = [asdict(row) | {"cells": [[plain(value) for value in cell] for cell in row.cells]} for row in self.rows]
        return asdict(self) | {"rows": rows}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "ExperimentTable":
        """Read back what `to_json` gave."""
        rows = [ExperimentRow(**row | {"cells": [Interval(*cell) for cell in row["cells"]]}) for row in found["rows"]]
        return cls(**dict(found) | {"rows": rows})

    def with_costs(self, columns: list[str], costs: Mapping[str, list[str]]) -> "ExperimentTable":
        """The table with what each row costs, by name; columns in which no row has anything are left out."""
        told = [i for i in range(len(columns)) if any(costs[row.name][i] != ABSENT for row in self.rows)]
        rows = [replace(row, costs=[costs[row.name][i] for i in told]) for row in self.rows]
        return replace(self, rows=rows, cost_columns=[columns[i] for i in told])


def ablation_table(
    key: str, title: str, about: str, pairs: pa.Table, variants: Mapping[str, Trained], settings: EvaluationSettings,
    compare_to: str = "previous", untrained: Collection[str] = (),
) -> ExperimentTable:  # fmt: skip
    """A table of arms. Gains are differences on the same resamples; intervals cover queries and, of arms trained twice or more, seeds.

    Args:
        variants: Name for people -> scores of each seed, row by row as `pairs`.
        compare_to: `previous`: the arms are expected to rise, and each is compared with the one before it; `first`: all are
            compared with the first.
        untrained: Arms that no training has a part in, so that there is no luck of one either.
    """
    measured = _over_seeds(pairs, variants, settings)
    rows, steps = [], []
    first = before = next(iter(variants))
    num_gains = len(GAINS) + 1
    for name in variants:
        gains = [Interval(None, None, None)] * num_gains
        if name != first:
            baseline = before if compare_to == "previous" else first
            relative = measured.retention(name, first, GAINS[0])
            gains = [measured.difference(name, baseline, metric) for metric in GAINS]
            steps.append((f"{name} over {baseline}", gains))
            gains.append(Interval(*(None if value is None else value - 1.0 for value in relative)))
        rows.append(
            ExperimentRow(name=name, cells=[*(measured.interval(name, metric) for metric in TABLE_METRICS), *gains])
        )
        before = name
    over = "the row above" if compare_to == "previous" else "the first row"
    columns = [*(LABELS[m] for m in TABLE_METRICS), *(f"{LABELS[m]}, gain over {over}" for m in GAINS)]
    return ExperimentTable(
        key=key, title=title, columns=[*columns, f"{LABELS[GAINS[0]]}, relative gain over the first row"],
        num_gains=num_gains, rows=rows, verdict=_verdict(steps) if compare_to == "previous" else _differences(steps),
        about=f"{about} {_trained_once([name for name in variants if name not in untrained], variants)}".strip(),
    )  # fmt: skip


def by_language(
    key: str, title: str, about: str, pairs: pa.Table, human_only: Trained, distilled: Trained,
    labelled: Sequence[str], settings: EvaluationSettings,
) -> ExperimentTable:  # fmt: skip
    """The distilled student against the one on human labels, per language.

    Args:
        human_only: Scores of the student on human labels only, one per seed.
        distilled: Of the student on the teacher's labels.
        labelled: Locales with human labels.
    """
    languages = np.array([language_of(locale) for locale in pairs["locale"].to_pylist()])
    known = {language_of(locale) for locale in labelled} - {UNKNOWN}  # UNKNOWN is neither labelled nor unlabelled
    names, counts = np.unique(languages, return_counts=True)
    found = [str(name) for name in names[np.argsort(-counts, kind="stable")] if (languages == name).sum() >= MIN_PAIRS]
    unlabelled = ~np.isin(languages, [*known, UNKNOWN])
    masks = {name: languages == name for name in found}
    if unlabelled.any():
        masks["all without labels"] = unlabelled
    rows, steps = [], []
    both: dict[str, Trained] = {"human": human_only, "distilled": distilled}
    for name, mask in masks.items():
        part = {who: [s.take(mask) for s in trained] for who, trained in both.items()}
        measured = _over_seeds(pairs.filter(pa.array(mask)), part, settings)
        cells, gains = [], []
        for metric in GAINS:
            gains.append(measured.difference("distilled", "human", metric))
            cells += [measured.interval("human", metric), measured.interval("distilled", metric)]
        rows.append(ExperimentRow(name=name, cells=[*cells, *gains], marked=name in known))
        if name not in known | {UNKNOWN}:
            steps.append((name, gains))
    columns = [f"{LABELS[m]}, {who}" for m in GAINS for who in ("human labels only", "distilled")]
    left_out = (
        f"Human labels are {', '.join(labelled) or 'absent'}; languages with fewer than {MIN_PAIRS} pairs are left out."
    )
    return ExperimentTable(
        key=key, title=title, columns=[*columns, *(f"{LABELS[m]}, gain" for m in GAINS)], num_gains=len(GAINS), rows=rows,
        verdict=_verdict(steps), about=f"{about} {left_out} {_trained_once(list(both), both)}".strip(),
    )  # fmt: skip


def table_text(table: ExperimentTable) -> str:
    """The table for a terminal: accuracy and AUROC 3+ only, with the gains' verdict."""
    heads = tuple(LABELS[metric] for metric in GAINS)
    shown = [i for i, column in enumerate(table.columns) if column.startswith(heads) and "relative" not in column]
    shown = shown or list(range(len(table.columns)))
    cells = [["", *(table.columns[i] for i in shown)]]
    cells += [[row.name, *(format_interval(row.cells[i]) for i in shown)] for row in table.rows]
    return "\n".join([table.title, *(f"  {line}" for line in aligned(cells)), f"  {table.verdict}"])


def deviation_over_seeds(pairs: pa.Table, trained: Trained) -> float | None:
    """Standard deviation of an arm's accuracy over its seeds; None: it has one, or no accuracy."""
    if len(trained) < 2 or any(scores.grades is None for scores in trained):
        return None
    grade = pairs["grade"].to_numpy()
    return float(np.std([np.mean(scores.grades == grade) for scores in trained], ddof=1))


def calibration_error(pairs: pa.Table, trained: Trained, settings: EvaluationSettings) -> float | None:
    """Expected calibration error of the probability of `calibration_grade` or better, mean over the seeds; None: no probabilities."""
    grade = pairs["grade"].to_numpy()
    found = [
        reliability_curve(s.probs, grade, settings.calibration_grade).error for s in trained if s.probs is not None
    ]
    return float(np.mean(found)) if found else None


def _over_seeds(pairs: pa.Table, variants: Mapping[str, Trained], settings: EvaluationSettings) -> BootstrapResult:
    """Figures of each arm, the mean over its trainings; each resample draws queries, and trainings of each arm anew.

    Drawing k of k trainings anew has (k - 1) / k of the variance of a mean over k: their weights are spread by as much. Of
    one training nothing is known of what another would be.
    """
    judged, order = validate_judgments(pairs, settings.rating_of_grade)
    single = {f"{name}\n{i}": s.take(order) for name, trained in variants.items() for i, s in enumerate(trained)}
    found = measure(judged, single, settings)
    rng = np.random.default_rng(settings.seed)
    points: dict[str, dict[str, float]] = {}
    samples: dict[str, dict[str, np.ndarray]] = {}
    per_query: dict[str, dict[str, np.ndarray]] = {}
    for name, trained in variants.items():
        parts, seeds = [f"{name}\n{i}" for i in range(len(trained))], len(trained)
        share = rng.multinomial(seeds, [1.0 / seeds] * seeds, size=found.num_samples).T / seeds  # (seeds, samples)
        if seeds > 1:
            share = 1.0 / seeds + (share - 1.0 / seeds) * (seeds / (seeds - 1)) ** 0.5
        weighted = list(zip(parts, share, strict=True))
        points[name] = {m: float(np.mean([found.points[p][m] for p in parts])) for m in METRICS}
        samples[name] = {m: np.sum([found.samples[p][m] * w for p, w in weighted], axis=0) for m in METRICS}
        per_query[name] = {m: np.mean([found.per_query[p][m] for p in parts], axis=0) for m in (NDCG, PRECISION)}
    return replace(found, points=points, samples=samples, per_query=per_query)


def _trained_once(names: Sequence[str], variants: Mapping[str, Trained]) -> str:
    """Return the caution on arms whose intervals cannot cover the luck of a training; "": there are none."""
    once = [name for name in names if len(variants[name]) == 1]
    if not once:
        return ""
    who = "Every arm was" if len(once) == len(names) else f"{', '.join(once)}: each"
    return (
        f"{who} trained once, so the intervals cover the draw of the queries and no variance between trainings (seeds)."
    )


def _verdict(steps: Sequence[tuple[str, Sequence[Interval]]]) -> str:
    """Name the steps that are significant gains in each of GAINS."""
    weak = []
    for name, gains in steps:
        both = zip(GAINS, gains[: len(GAINS)], strict=True)
        missed = [f"{LABELS[m]} {format_interval(gain)}" for m, gain in both if gain.lo is None or gain.lo <= 0]
        if missed:
            weak.append(f"{name} ({', '.join(missed)})")
    if not steps:
        return "Nothing to compare."
    if not weak:
        return "Shown: every gain is above zero with its whole interval."
    return f"{len(steps) - len(weak)} of {len(steps)} gains are above zero with their whole intervals; not shown: {'; '.join(weak)}."


def _differences(steps: Sequence[tuple[str, Sequence[Interval]]]) -> str:
    """Name the arms that differ significantly from the first in accuracy; several are compared, so one in twenty would by luck."""
    found = []
    for name, gains in steps:
        gain = gains[0]
        if gain.value is not None and gain.lo is not None and gain.hi is not None and gain.lo * gain.hi > 0:
            side = "better" if gain.value > 0 else "worse"
            found.append(f"{name.split(' over ')[0]} ({side}, {format_interval(gain)})")
    if not found:
        return "No arm differs significantly from the first in accuracy."
    several = f" of {len(steps)} compared" if len(steps) > 1 else ""
    return f"Differ from the first in accuracy with their whole interval, {len(found)}{several}: {'; '.join(found)}."
