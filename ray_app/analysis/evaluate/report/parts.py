"""Content of the report's template: plots, tables and pairs to read, made from an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ray_app.analysis.evaluate.report import examples, plots, summary
from ray_app.analysis.evaluate.report.page import number
from ray_app.analysis.metrics import grading
from ray_app.analysis.metrics.evaluation import Evaluation
from ray_app.analysis.metrics.formatting import LABELS, read_interval
from ray_app.analysis.metrics.probabilities import calibration_curve
from ray_app.analysis.metrics.protocol import NDCG

_SERIES = (
    "student",
    "teacher",
    "embedding_cosine",
    "feature_only_student",
    "bm25",
    "engagement_cosine",
    "graph_cosine",
)
MAX_SLICE_SYSTEMS = 3  # more columns of two figures each fit on no page
EXAMPLES_OF_A_SLICE = 3


def colors_of(evaluation: Evaluation) -> dict[str, int]:
    """System -> series of the style sheet; the same system has the same colour in every report."""
    spare = iter(range(len(_SERIES), 10_000))
    return {s: _SERIES.index(s) if s in _SERIES else next(spare) % plots.SERIES for s in evaluation.systems}


def graded_systems(evaluation: Evaluation) -> list[str]:
    """Teacher and student, as far as they are there."""
    return [name for name in ("teacher", "student") if name in evaluation.systems]


def panels(evaluation: Evaluation) -> list[dict[str, str]]:
    """One plot of all systems per metric."""
    colors = _named_colors(evaluation)
    out = []
    for metric, label in LABELS.items():
        intervals = {summary.display_name(s): evaluation.interval(s, metric) for s in evaluation.systems}
        spoken = "; ".join(f"{name} {number(i.value)}" for name, i in intervals.items())
        svg = plots.interval_plot(intervals, colors)
        out.append({"label": label, "svg": svg, "spoken": f"{label}: {spoken}"})
    return out


def roc(evaluation: Evaluation) -> str | None:
    """ROC curves of all systems; None: one class is absent."""
    positive = evaluation.pairs.grade >= evaluation.settings.calibration_grade
    if positive.all() or not positive.any():
        return None
    of = evaluation.systems
    curves = {summary.display_name(s): plots.roc_points(of[s].order_score, positive) for s in of}
    return plots.roc_plot(curves, _named_colors(evaluation))


def reliability(evaluation: Evaluation) -> dict[str, Any] | None:
    """Calibration curves of teacher and student, ECE 3+ and the curves' points as tables; None: neither has probabilities."""
    found = {}
    for name in graded_systems(evaluation):
        probs = evaluation.systems[name].probs
        if probs is not None:
            found[name] = calibration_curve(evaluation.pairs, probs, evaluation.settings)
    if not found:
        return None
    curves = {summary.display_name(name): points for name, points in found.items()}
    locales: dict[str, dict[str, Any]] = {}
    for row in evaluation.calibration:
        if row["system"] in found:
            line = locales.setdefault(row["locale"], {"num_queries": row["num_queries"], "num_pairs": row["num_pairs"]})
            line[row["system"]] = read_interval(row, evaluation.settings.ece)
    return {
        "svg": plots.reliability_plot(curves, _named_colors(evaluation)),
        "systems": list(found),
        "all": {name: read_interval(evaluation.details[name], evaluation.settings.ece) for name in found},
        "locales": locales,
        "curves": curves,
    }


def confusions(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Confusion tables with the share of each cell in its row, which is what the shade shows."""
    out = []
    for name in graded_systems(evaluation):
        predicted = evaluation.systems[name].grades
        if predicted is None:
            continue
        table = grading.confusion(predicted, evaluation.pairs.grade)
        columns = [c for c in range(table.shape[1]) if c > 0 or table[:, 0].any()]
        share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        rows = [
            {"grade": g, "cells": [(int(table[g - 1, c]), float(share[g - 1, c]), c == g) for c in columns]}
            for g in range(1, 6)
        ]
        heads = ["none" if c == 0 else str(c) for c in columns]
        out.append({"name": summary.display_name(name), "heads": heads, "rows": rows})
    return out


def changes(evaluation: Evaluation) -> dict[str, Any] | None:
    """The hero against the baseline with the highest nDCG@20, query by query; None: there is none."""
    primary_system, baseline = evaluation.primary_system, evaluation.best_baseline(NDCG)
    if baseline is None or baseline == primary_system:
        return None
    difference = evaluation.per_query[primary_system][NDCG] - evaluation.per_query[baseline][NDCG]
    gained, lost = examples.query_changes(evaluation, primary_system, baseline)
    colors = colors_of(evaluation)
    return {
        "baseline": summary.in_text(baseline),
        "svg": plots.difference_plot(difference, "difference in nDCG@20", colors[primary_system], colors[baseline]),
        "better": int((difference > 1e-9).sum()), "equal": int((np.abs(difference) <= 1e-9).sum()),
        "worse": int((difference < -1e-9).sum()), "gained": gained, "lost": lost,
    }  # fmt: skip


def slices(evaluation: Evaluation) -> dict[str, Any]:
    """One table per slice column: a line per value, two metrics of the systems that matter most.

    The second metric is nDCG@20, or accuracy where slices hold parts of queries.
    """
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for row in evaluation.slices:
        line = tables.setdefault(row["slice"], {}).setdefault(
            row["value"], {"num_queries": row["num_queries"], "num_pairs": row["num_pairs"], "systems": {}}
        )
        line["systems"][row["system"]] = row
    out = []
    for column, lines in tables.items():
        ranked = any(row[NDCG] is not None for line in lines.values() for row in line["systems"].values())
        metrics = ["auroc_3", NDCG if ranked else "accuracy"]
        for line in lines.values():
            line["cells"] = {
                s: [read_interval(row, metric) for metric in metrics] for s, row in line["systems"].items()
            }
        labels = [LABELS[metric] for metric in metrics]
        out.append({"column": column.replace("_", " "), "lines": lines, "labels": labels, "parts": not ranked})
    return {"tables": out, "systems": _slice_systems(evaluation)}


def worst(evaluation: Evaluation, titles: Mapping[str, str]) -> dict[str, Any] | None:
    """The hero's lowest slices, and pairs of each to read; None: no slice is large enough."""
    found = evaluation.worst
    if found is None:
        return None
    rows, blocks = [], {}
    for part in found.slices:
        name = ", ".join(f"{c.replace('_', ' ')} {v}" for c, v in zip(part.columns, part.values, strict=True))
        rows.append({"name": name, "label": LABELS[part.metric], "part": part})
        if name not in blocks:
            pairs = examples.worst_disagreements(evaluation, found.system, titles, EXAMPLES_OF_A_SLICE, 1, part.mask)
            blocks[name] = [asdict(pair) for pair in pairs]
    return {"search": found, "rows": rows, "examples": {name: pairs for name, pairs in blocks.items() if pairs}}


def _slice_systems(evaluation: Evaluation) -> list[str]:
    """All systems, or of many: student, teacher, and the strongest of the others."""
    if len(evaluation.systems) <= MAX_SLICE_SYSTEMS:
        return list(evaluation.systems)
    chosen = graded_systems(evaluation)[::-1]
    others = [name for name in evaluation.systems if name not in chosen]
    others.sort(key=lambda name: -np.nan_to_num(evaluation.points[name]["auroc_3"], nan=-1.0))
    return [*chosen, *others[: MAX_SLICE_SYSTEMS - len(chosen)]]


def _named_colors(evaluation: Evaluation) -> dict[str, int]:
    return {summary.display_name(s): c for s, c in colors_of(evaluation).items()}


def agreement_blocks(tables: Sequence[Any]) -> list[dict[str, Any]]:
    """Agreement tables grouped for the page: all pairs first, then one block per slice column."""
    blocks: dict[str, dict[str, Any]] = {}
    for table in tables:
        column = "all pairs" if table.column is None else f"by {table.column.replace('_', ' ')}"
        block = blocks.setdefault(column, {"title": column, "tables": [], "whole": table.column is None})
        block["tables"].append(table)
    return list(blocks.values())
