"""The result in plain words, for readers who will look at nothing else."""

from typing import NamedTuple

import numpy as np

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.evaluation import Evaluation
from ray_app.analysis.metrics.formatting import LABELS
from ray_app.analysis.metrics.protocol import METRICS, NDCG

NAMES = {
    "bm25": "BM25", "embedding_cosine": "Embedding cosine", "engagement_cosine": "Engagement cosine",
    "graph_cosine": "Graph cosine", "feature_only_student": "Feature-only student", "teacher": "Teacher",
    "student": "Student",
}  # fmt: skip
HEADLINE = ("auroc_3", NDCG)


class KeyMetric(NamedTuple):
    """One metric with its caption."""

    value: str
    caption: str
    bounds: str  # empty: no interval


def display_name(system: str) -> str:
    """The system's name for people."""
    return NAMES.get(system, system)


def in_text(system: str) -> str:
    """The system's name inside a sentence."""
    if system not in NAMES:
        return system
    return NAMES[system] if system == "bm25" else f"the {NAMES[system].lower()}"


def significance_note(evaluation: Evaluation) -> str:
    """One sentence, said once in the report and in the table."""
    level, number = f"{1 - evaluation.confidence_level:.2g}", len(evaluation.differences())
    return (
        f'"Significant": p-value below {level} after Holm\'s correction over all {number} comparisons of systems shown '
        f"here; p-values come from {evaluation.num_samples:,} resamples. Intervals are those of each figure alone."
    )


def summarize(evaluation: Evaluation) -> list[str]:
    """A few sentences: who is best, by how much, whether that could be chance, what the student keeps."""
    sentences = []
    leaders = {metric: leader for metric in HEADLINE if (leader := evaluation.leader(metric))}
    figures = {m: f"{LABELS[m]} {_figure(evaluation.interval(s, m))}" for m, s in leaders.items()}
    if len(set(leaders.values())) == 1:
        best = next(iter(leaders.values()))
        sentences.append(f"Highest on these queries: {in_text(best)}, with {' and '.join(figures.values())}.")
    elif leaders:
        parts = [f"{in_text(system)} in {figures[metric]}" for metric, system in leaders.items()]
        sentences.append(f"Highest on these queries: {' and '.join(parts)}.")
    for system in ("student", "teacher"):
        if system in evaluation.systems:
            sentences.append(_against_baselines(evaluation, system))
    if {"teacher", "student"} <= set(evaluation.systems):
        sentences.append(_kept(evaluation))
    return [s for s in sentences if s]


def key_metrics(evaluation: Evaluation) -> list[KeyMetric]:
    """Metrics that stand in large type at the top."""
    system = evaluation.primary_system
    shown = [(evaluation.interval(system, m), ".3f", f"{display_name(system)}, {LABELS[m]}") for m in HEADLINE]
    baseline = evaluation.best_baseline("auroc_3")
    if baseline is not None and system != baseline:
        caption = f"AUROC 3+ against the best baseline, {display_name(baseline)}"
        shown.append((evaluation.difference(system, baseline, "auroc_3"), "+.3f", caption))
    if {"teacher", "student"} <= set(evaluation.systems):
        caption = "of the teacher's AUROC 3+ is kept by the student"
        shown.append((evaluation.retention("student", "teacher", "auroc_3"), ".1%", caption))
    return [
        KeyMetric(_written(found.value, form), caption, _bounds(found, form))
        for found, form, caption in shown
        if found.value is not None
    ]


def standings(evaluation: Evaluation) -> dict[str, dict[str, str]]:
    """Marks by system and metric: `best`, `tied` (the difference from the best may be chance) or nothing."""
    out: dict[str, dict[str, str]] = {system: {} for system in evaluation.systems}
    for metric in METRICS:
        best = evaluation.leader(metric)
        if best is None:
            continue
        for system in evaluation.systems:
            if system == best:
                out[system][metric] = "best"
            elif np.isfinite(evaluation.points[system][metric]) and not evaluation.significant(system, best, metric):
                out[system][metric] = "tied"
    return out


def _against_baselines(evaluation: Evaluation, system: str) -> str:
    parts: list[str] = []
    last: str | None = None
    for metric in HEADLINE:
        baseline = evaluation.best_baseline(metric)
        gap = evaluation.difference(system, baseline, metric) if baseline is not None else None
        if baseline is None or gap is None or gap.value is None:
            continue
        side, who = "above" if gap.value >= 0 else "below", "it" if baseline == last else in_text(baseline)
        last = baseline
        text = f"{abs(gap.value):.3f} {side} {who} in {LABELS[metric]}"
        if gap.lo is not None and gap.hi is not None:
            sure = evaluation.significant(system, baseline, metric)
            verdict = "significant" if sure else "not significant"
            text += f" ({_bounds(gap, '+.3f')}, {verdict})"
        parts.append(text)
    return f"Against the strongest baseline, the {system} is {' and '.join(parts)}." if parts else ""


def _kept(evaluation: Evaluation) -> str:
    ratios = {metric: evaluation.retention("student", "teacher", metric) for metric in HEADLINE}
    parts = [
        f"{kept.value:.1%} of the teacher's {LABELS[metric]}"
        + (f" ({bounds})" if (bounds := _bounds(kept, ".1%")) else "")
        for metric, kept in ratios.items()
        if kept.value is not None
    ]
    return f"The student keeps {' and '.join(parts)}." if parts else ""


def _figure(interval: Interval) -> str:
    bounds = _bounds(interval)
    return f"{interval.value:.3f}" + (f" ({bounds})" if bounds else "")


def _bounds(interval: Interval, form: str = ".3f") -> str:
    if interval.lo is None or interval.hi is None:
        return ""
    return f"{_written(interval.lo, form)} to {_written(interval.hi, form)}"


def _written(value: float, form: str) -> str:
    return f"{value:{form}}".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """Three decimals, always with a sign."""
    return _written(value, "+.3f")
