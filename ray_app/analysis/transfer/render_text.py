"""A table of what the student's vectors add to those of the encoder that they come from."""

from collections.abc import Mapping, Sequence

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.formatting import with_bounds
from ray_app.analysis.transfer.transfer_metrics import NDCG_CUTOFF, TransferMetrics

STUDENT = "student"
KEY = "embeddings"
TITLE = "Are the student's vectors good for other tasks?"


def transfer_table(
    results: TransferMetrics, systems: Sequence[str], base: str, student: str, recall_at: int, marks: Mapping[str, str]
) -> dict[str, object]:
    """The table as plain data, as `ExperimentTable.from_json` reads it.

    Args:
        base: The system that gains are over.
        marks: System -> why it is no fair comparison, shown behind its name.
    """
    tasks = [task for task in results.num_queries if results.num_queries[task]]
    # One pin is wanted next, several otherwise.
    metrics = {task: "MRR" if task == "next save" else f"nDCG@{NDCG_CUTOFF}" for task in tasks}
    recall = f"recall@{recall_at}"
    columns = [f"{task}: {metric}" for task in tasks for metric in (recall, metrics[task])]
    columns += [f"{task}: {metrics[task]}, gain over the {base}" for task in tasks]
    rows = []
    for system in systems:
        cells = [results.interval(system, task, metric) for task in tasks for metric in (recall, metrics[task])]
        if system == base:
            cells += [Interval(None, None, None)] * len(tasks)
        else:
            cells += [results.difference(system, base, task, metrics[task]) for task in tasks]
        name = f"{system} ({marks[system]})" if system in marks else system
        rows.append({"name": name, "cells": [list(cell) for cell in cells]})
    gains = {task: results.difference(student, base, task, metrics[task]) for task in tasks}
    return {
        "key": KEY, "title": TITLE, "columns": columns, "num_gains": len(tasks), "rows": rows,
        "verdict": verdict(gains, student, base), "about": _about(results, tasks), "measured_on": "Held-out boards",
    }  # fmt: skip


def verdict(gains: Mapping[str, Interval], student: str, base: str) -> str:
    """In which tasks the student gains or loses significantly."""
    if not gains:
        return "Nothing to compare."
    unsure = "neither significantly better nor worse"
    groups: dict[str, list[str]] = {"better": [], "worse": [], unsure: []}
    for task, gain in gains.items():
        kind = unsure
        if gain.lo is not None and gain.hi is not None:
            kind = "better" if gain.lo > 0 else "worse" if gain.hi < 0 else kind
        groups[kind].append(f"{task} ({with_bounds(gain, '+.3f')})")
    said = [f"{kind} in {', '.join(found)}" for kind, found in groups.items() if found]
    return f"The {student}'s vectors against the {base}'s: {'; '.join(said)}."


def _about(results: TransferMetrics, tasks: Sequence[str]) -> str:
    sizes = [f"{task} {results.num_queries[task]:,} queries of {results.num_boards[task]:,} boards" for task in tasks]
    return (
        f"Boards are held out: no text that is read here has their titles. {'; '.join(sizes)}. All pins are ranked; "
        "a board counts once, and boards are what is resampled. The student learned which pins fit searches, nothing of "
        "boards. `saves on other boards` gives every query the same order: what popularity alone is worth."
    )
