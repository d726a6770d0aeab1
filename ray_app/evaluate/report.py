"""The evaluation as one self-contained HTML file: style and plots are inside, nothing is fetched and no script runs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.evaluate import examples, grading, plots, summary
from ray_app.evaluate.bootstrap import Interval
from ray_app.evaluate.evaluation import Evaluation
from ray_app.evaluate.lessons import LessonTable
from ray_app.evaluate.metrics import METRICS, NDCG
from ray_app.evaluate.sampling import SampleSummary
from ray_app.evaluate.table import LABELS
from ray_app.manifest import Manifest

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_SERIES = {
    "student": 0,
    "teacher": 1,
    "embedding_cosine": 2,
    "feature_student": 3,
    "bm25": 4,
    "engagement_cosine": 5,
    "graph_cosine": 6,
}

_MAX_TEXT = 160  # characters of a query or title


def render_report(
    evaluation: Evaluation,
    *,
    title: str = "Search relevance report",
    titles: Mapping[str, str] | None = None,
    lessons: Sequence[LessonTable] = (),
    picture_of: Callable[[str], str | None] = lambda pin_id: None,
    sample: SampleSummary | None = None,
    stages: Sequence[Mapping[str, Any]] = (),
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Render the report.

    Args:
        evaluation: From `evaluate_systems`.
        title: Heading of the page.
        titles: pin_id -> title, for the examples; a pin without one is shown by its id.
        lessons: Tables shown after that of all systems.
        picture_of: pin_id -> data URI, for the examples; None: no picture.
        sample: What the teacher labelled; None: no such section.
        stages: One mapping per pipeline stage, as `stage_row` makes them; empty: no stage table.
        provenance: What the figures were made from (config, versions, commit, counts); shown as is, so no secrets.

    Returns:
        HTML. All text from outside (queries, titles, provenance) is escaped.
    """
    from jinja2 import Environment, StrictUndefined

    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters["figure"] = _number
    env.filters["count"] = lambda value: "–" if value is None else f"{value:,}"
    env.filters["signed"] = summary.signed
    env.filters["cut"] = lambda text: text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
    env.filters["value"] = lambda interval, gain: _interval_cell(interval, gain)
    env.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str)
    titles = titles or {}
    hero = summary.hero(evaluation)
    graded = [name for name in ("teacher", "student") if name in evaluation.systems]
    return env.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        evaluation=evaluation,
        settings=evaluation.settings,
        names={s: summary.display_name(s) for s in evaluation.systems},
        colors=_colors(evaluation),
        metrics=LABELS,
        sentences=[s.replace("AUROC ", "AUROC\N{NO-BREAK SPACE}") for s in summary.summarise(evaluation)],
        key_figures=summary.key_figures(evaluation),
        cells={s: {m: evaluation.interval(s, m) for m in METRICS} for s in evaluation.systems},
        standings=summary.standings(evaluation),
        panels=_panels(evaluation),
        roc=_roc(evaluation),
        reliability=_reliability(evaluation, graded),
        confusions=_confusions(evaluation, graded),
        changes=_changes(evaluation, hero),
        slices=_slices(evaluation),
        hero=hero,
        hero_text=summary.in_text(hero),
        graders=[s for s in graded if evaluation.systems[s].probs is not None],
        examples=[asdict(q) for q in examples.example_queries(evaluation, hero, titles)],
        disagreements=[asdict(p) for p in examples.worst_disagreements(evaluation, hero, titles)],
        lessons=lessons,
        picture_of=picture_of,
        sample=sample,
        stages=stages,
        provenance=provenance or {},
    )


def stage_row(manifest: Manifest) -> dict[str, Any]:
    """A manifest's line in the stage table."""
    return {
        "stage": manifest.stage,
        "rows_in": manifest.counts.get("rows_in"),
        "rows_out": manifest.counts.get("rows_out"),
        "rows_quarantined": manifest.counts.get("rows_quarantined"),
        "wall_sec": manifest.wall_sec,
        "device_sec": manifest.device_sec,
        "rows_per_sec": manifest.rows_per_sec,
    }


def _interval_cell(interval: Interval, gain: bool) -> dict[str, Any]:
    """What a lesson's cell shows: the figure, its bounds, and whether a gain is above zero beyond chance."""
    if interval.value is None:
        return {"text": "–", "bounds": "", "sure": False}
    figure: Callable[[float], str] = summary.signed if gain else _number
    if interval.lo is None or interval.hi is None:
        return {"text": figure(interval.value), "bounds": "", "sure": False}
    bounds = f"{figure(interval.lo)}–{figure(interval.hi)}"
    return {
        "text": figure(interval.value),
        "bounds": bounds,
        "sure": gain and interval.lo is not None and interval.lo > 0,
    }


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _colors(evaluation: Evaluation) -> dict[str, int]:
    spare = iter(range(len(_SERIES), 10_000))
    return {s: _SERIES[s] if s in _SERIES else next(spare) % plots.SERIES for s in evaluation.systems}


def _panels(evaluation: Evaluation) -> list[dict[str, str]]:
    colors = {summary.display_name(s): c for s, c in _colors(evaluation).items()}
    out = []
    for metric, label in LABELS.items():
        intervals: dict[str, Interval] = {
            summary.display_name(s): evaluation.interval(s, metric) for s in evaluation.systems
        }
        svg = plots.interval_plot(intervals, colors)
        spoken = "; ".join(f"{name} {_number(i.value)}" for name, i in intervals.items())
        out.append({"label": label, "svg": svg, "spoken": f"{label}: {spoken}"})
    return out


def _roc(evaluation: Evaluation) -> str | None:
    positive = evaluation.pairs.grade >= evaluation.settings.calibration_grade
    if positive.all() or not positive.any():
        return None
    colors = {summary.display_name(s): c for s, c in _colors(evaluation).items()}
    curves = {
        summary.display_name(name): plots.roc_points(scores.order_score, positive)
        for name, scores in evaluation.systems.items()
    }
    return plots.roc_plot(curves, colors)


def _reliability(evaluation: Evaluation, graded: Sequence[str]) -> str | None:
    found = {}
    for name in graded:
        probs = evaluation.systems[name].probs
        if probs is not None:
            at_least = evaluation.settings.calibration_grade
            found[summary.display_name(name)] = grading.calibrate(probs, evaluation.pairs.grade, at_least)
    colors = {summary.display_name(s): c for s, c in _colors(evaluation).items()}
    return plots.reliability_plot(found, colors) if found else None


def _confusions(evaluation: Evaluation, graded: Sequence[str]) -> list[dict[str, Any]]:
    """Confusion tables with the share of each cell in its row, which is what the shade shows."""
    out = []
    for name in graded:
        predicted = evaluation.systems[name].grades
        if predicted is None:
            continue
        table = grading.confusion(predicted, evaluation.pairs.grade)
        columns = [c for c in range(table.shape[1]) if c > 0 or table[:, 0].any()]
        total = np.maximum(table.sum(axis=1, keepdims=True), 1)
        share = table / total
        rows = [
            {"grade": g, "cells": [(int(table[g - 1, c]), float(share[g - 1, c]), c == g) for c in columns]}
            for g in range(1, 6)
        ]
        heads = ["none" if c == 0 else str(c) for c in columns]
        out.append({"name": summary.display_name(name), "heads": heads, "rows": rows})
    return out


def _changes(evaluation: Evaluation, hero: str) -> dict[str, Any] | None:
    rival = evaluation.best_baseline(NDCG)
    if rival is None or rival == hero:
        return None
    difference = evaluation.per_query[hero][NDCG] - evaluation.per_query[rival][NDCG]
    gained, lost = examples.query_changes(evaluation, hero, rival)
    colors = _colors(evaluation)
    return {
        "rival": summary.in_text(rival),
        "svg": plots.difference_plot(difference, "difference in nDCG@20", colors[hero], colors[rival]),
        "better": int((difference > 1e-9).sum()),
        "equal": int((np.abs(difference) <= 1e-9).sum()),
        "worse": int((difference < -1e-9).sum()),
        "gained": gained,
        "lost": lost,
    }


def _slices(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One table per slice column: a line per value, AUROC 3+ and nDCG@20 of every system."""
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for row in evaluation.slices:
        line = tables.setdefault(row["slice"], {}).setdefault(
            row["value"], {"num_queries": row["num_queries"], "num_pairs": row["num_pairs"], "systems": {}}
        )
        line["systems"][row["system"]] = row
    return [{"column": column.replace("_", " "), "lines": lines} for column, lines in tables.items()]
