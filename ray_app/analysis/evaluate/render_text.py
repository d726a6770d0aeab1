"""The evaluation as plain text for terminals and logs: one line a system."""

from ray_app.analysis.metrics.evaluation import Evaluation
from ray_app.analysis.metrics.formatting import LABELS, aligned, format_interval, with_bounds
from ray_app.analysis.metrics.protocol import METRICS, NDCG


def render_table(evaluation: Evaluation) -> str:
    """Aligned text of about 120 columns: cautions, a heading, one line a system, what the student keeps, and the notes."""
    settings = evaluation.settings
    cells = [[s, *(format_interval(evaluation.interval(s, m)) for m in METRICS)] for s in evaluation.systems]
    lines = aligned([["system", *column_labels(evaluation).values()], *cells])
    heading = (
        f"{evaluation.num_pairs:,} judged pairs of {evaluation.num_queries:,} queries; only judged pairs are ranked; "
        f"[{settings.confidence_level:.0%} interval, {evaluation.num_samples:,} bootstrap samples of the queries]"
    )
    rule = "-" * max(map(len, lines))
    body = [heading, "", lines[0], rule, *lines[1:], rule]
    kept = retention_text(evaluation)
    gaps = difference_lines(evaluation)
    notes = [f"note: {note}" for note in evaluation.notes if note not in evaluation.cautions]
    return "\n".join([*evaluation.cautions, *body, *gaps, *([kept] if kept else []), *notes])


def column_labels(evaluation: Evaluation) -> dict[str, str]:
    """LABELS, and beside nDCG how many queries it is the mean of, if those are not all."""
    number = evaluation.num_ndcg_queries
    if number == evaluation.num_queries:
        return LABELS
    return LABELS | {NDCG: f"{LABELS[NDCG]} (of {number:,} {'query' if number == 1 else 'queries'})"}


def difference_lines(evaluation: Evaluation) -> list[str]:
    """Student and teacher against the strongest baseline, and whether that is significant; judged@k where below 1."""
    lines = []
    for system in ("student", "teacher"):
        parts = []
        for metric in ("auroc_3", NDCG):
            baseline = evaluation.best_baseline(metric)
            gap = evaluation.difference(system, baseline, metric) if baseline and system in evaluation.systems else None
            if gap is None or gap.value is None:
                continue
            verdict = "significant" if evaluation.significant(system, baseline or "", metric) else "not significant"
            parts.append(f"{LABELS[metric]} {gap.value:+.3f} over {baseline} ({verdict})")
        if parts:
            lines.append(f"{system}: {', '.join(parts)}")
    if lines:
        lines.append(
            f"significant: p below {1 - evaluation.confidence_level:.2g}, Holm over {len(evaluation.differences())} comparisons"
        )
    for system, details in evaluation.details.items():
        judged = {name: value for name, value in details.items() if name.startswith("judged@") and value < 1}
        if judged:
            lines.append(f"{system}: {', '.join(f'{name} {value:.3f}' for name, value in judged.items())}")
    return lines


def retention_text(evaluation: Evaluation) -> str | None:
    """The share of the teacher that the student keeps, as text; None: one of them is not there."""
    if not {"teacher", "student"} <= set(evaluation.systems):
        return None
    parts = []
    for metric in ("auroc_3", NDCG):
        kept = evaluation.retention("student", "teacher", metric)
        if kept.value is not None:
            parts.append(f"{with_bounds(kept, '.1f', percent=True)} of the teacher's {LABELS[metric]}")
    return f"student keeps {' and '.join(parts)}" if parts else None
