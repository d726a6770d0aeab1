"""The four lessons as tables: models, text features, numbers of labels, languages that nobody labelled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_app.evaluate.bootstrap import Interval
from ray_app.evaluate.measured import EvaluationSettings, Measured, measure
from ray_app.evaluate.metrics import NDCG, SystemScores, judge
from ray_app.evaluate.summary import display_name
from ray_app.evaluate.table import LABELS, format_interval

FIGURES = ("accuracy", "auroc_3", "auroc_4", "auroc_5", NDCG)
GAINS = ("accuracy", "auroc_3")
SYSTEMS = ("bm25", "feature_student", "student", "teacher")  # each is expected to beat the one before
MIN_PAIRS = 100  # guessed: a language with fewer has intervals that say nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class LessonRow:
    """One line of a lesson's table."""

    name: str
    cells: list[Interval]
    marked: bool = False  # such as a language that humans labelled


@dataclass(frozen=True, kw_only=True, slots=True)
class LessonTable:
    """One lesson.

    Args:
        key: Short name.
        title: The question that it answers.
        columns: One label per cell of a row; the last `num_gains` are differences.
        rows: In the order in which figures are expected to rise; for `languages` in the order of their pairs.
        verdict: Which of the expected steps the figures show.
        about: How to read it.
    """

    key: str
    title: str
    columns: list[str]
    num_gains: int
    rows: list[LessonRow]
    verdict: str
    about: str

    def to_json(self) -> dict[str, object]:
        """For metrics.json."""
        rows = [{"name": row.name, "cells": [list(cell) for cell in row.cells]} for row in self.rows]
        return {"key": self.key, "title": self.title, "columns": self.columns, "rows": rows, "verdict": self.verdict}


def ladder(
    key: str, title: str, about: str, pairs: pa.Table, systems: Mapping[str, SystemScores], settings: EvaluationSettings
) -> LessonTable:
    """A table whose rows are expected to rise: each row's gain is over the row before, on the same resamples.

    Args:
        key: Short name.
        title: The question.
        about: How to read it.
        pairs: As for `evaluate_systems`.
        systems: In the expected order, lowest first; keys are names for people.
        settings: Samples and confidence.
    """
    measured = _measure(pairs, systems, settings)
    rows, steps = [], []
    before = None
    for name in systems:
        gains = [Interval(None, None, None)] * len(GAINS)
        if before is not None:
            gains = [measured.difference(name, before, metric) for metric in GAINS]
            steps.append((f"{name} over {before}", gains))
        rows.append(LessonRow(name=name, cells=[*(measured.interval(name, metric) for metric in FIGURES), *gains]))
        before = name
    columns = [*(LABELS[m] for m in FIGURES), *(f"{LABELS[m]}, gain over the row above" for m in GAINS)]
    return LessonTable(
        key=key, title=title, columns=columns, num_gains=len(GAINS), rows=rows, verdict=_verdict(steps), about=about
    )


def by_language(
    pairs: pa.Table,
    human_only: SystemScores,
    distilled: SystemScores,
    labelled: Sequence[str],
    settings: EvaluationSettings,
) -> LessonTable:
    """The distilled student against the one on human labels, per language.

    Args:
        pairs: With `locale`.
        human_only: Scores of the student on human labels only.
        distilled: Of the student on the teacher's labels.
        labelled: Locales with human labels.
        settings: Samples and confidence.
    """
    languages = np.array([locale.split("-")[0] for locale in pairs["locale"].to_pylist()])
    known = {locale.split("-")[0] for locale in labelled}
    names, counts = np.unique(languages, return_counts=True)
    found = [str(name) for name in names[np.argsort(-counts, kind="stable")] if (languages == name).sum() >= MIN_PAIRS]
    unlabelled = ~np.isin(languages, sorted(known))
    masks = {name: languages == name for name in found}
    if unlabelled.any():
        masks["all that nobody labelled"] = unlabelled
    rows, steps = [], []
    for name, mask in masks.items():
        both = {"human": human_only.take(mask), "distilled": distilled.take(mask)}
        measured = _measure(pairs.filter(pa.array(mask)), both, settings)
        cells, gains = [], []
        for metric in GAINS:
            gains.append(measured.difference("distilled", "human", metric))
            cells += [measured.interval("human", metric), measured.interval("distilled", metric)]
        rows.append(LessonRow(name=name, cells=[*cells, *gains], marked=name in known))
        if name not in known:
            steps.append((name, gains))
    columns = [f"{LABELS[m]}, {who}" for m in GAINS for who in ("human labels only", "distilled")]
    return LessonTable(
        key="languages",
        title="Does the student get better in languages that nobody labelled?",
        columns=[*columns, *(f"{LABELS[m]}, gain" for m in GAINS)],
        num_gains=len(GAINS),
        rows=rows,
        verdict=_verdict(steps),
        about=f"Human labels are {', '.join(labelled) or 'absent'}; languages with fewer than {MIN_PAIRS} pairs are left out.",
    )


def lesson_text(table: LessonTable) -> str:
    """The table for a terminal: accuracy and AUROC 3+ only, with the gains' verdict."""
    shown = [i for i, column in enumerate(table.columns) if column.startswith((LABELS["accuracy"], LABELS["auroc_3"]))]
    cells = [["", *(table.columns[i] for i in shown)]]
    cells += [[row.name, *(format_interval(row.cells[i]) for i in shown)] for row in table.rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([table.title, *(f"  {line}" for line in lines), f"  {table.verdict}"])


def ladder_of_systems(
    pairs: pa.Table, systems: Mapping[str, SystemScores], settings: EvaluationSettings
) -> LessonTable:
    """Lesson 1: do language models predict relevance better, and what does the small student keep?"""
    chosen = {display_name(name): systems[name] for name in SYSTEMS if name in systems}
    about = (
        "The teacher reads query and pin together; the student compares two vectors. Features: text match, "
        "and cosines of vectors learned from behaviour where those are switched on."
    )
    return ladder("systems", "How good are teacher, student and baselines?", about, pairs, chosen, settings)


def _measure(pairs: pa.Table, systems: Mapping[str, SystemScores], settings: EvaluationSettings) -> Measured:
    judged, order = judge(pairs, settings.rating_of_grade)
    return measure(judged, {name: scores.take(order) for name, scores in systems.items()}, settings)


def _verdict(steps: Sequence[tuple[str, Sequence[Interval]]]) -> str:
    """Which steps are gains beyond chance in each of GAINS."""
    weak = []
    for name, gains in steps:
        missed = [
            f"{LABELS[metric]} {format_interval(gain)}"
            for metric, gain in zip(GAINS, gains, strict=True)
            if gain.lo is None or gain.lo <= 0
        ]
        if missed:
            weak.append(f"{name} ({', '.join(missed)})")
    if not steps:
        return "Nothing to compare."
    if not weak:
        return "Shown: every gain is above zero with its whole interval."
    return f"{len(steps) - len(weak)} of {len(steps)} gains are above zero with their whole intervals; not shown: {'; '.join(weak)}."
