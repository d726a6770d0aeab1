"""Two reports side by side, for people: a few sentences, an HTML page, a table for the terminal."""

from ray_app.analysis.evaluate.report import summary
from ray_app.analysis.evaluate.report.diff import ReportDiff
from ray_app.analysis.evaluate.report.page import environment
from ray_app.analysis.metrics.formatting import LABELS, aligned, read_interval, with_bounds

_LABELS = LABELS | {"ece_3": "ECE 3+", "kappa": "kappa", "log_loss": "log loss"}
_MAX_LINE, _MAX_CHANGES = 200, 12  # characters; lines of a heading on a terminal


def summarize_diff(diff: ReportDiff) -> list[str]:
    """A few sentences for readers who will look at nothing else."""
    out = []
    if not diff.rows:
        out.append("No system is in both reports.")
    elif diff.unpaired is not None:
        out.append(f"These figures cannot be paired: {diff.unpaired} Differences have no interval, and may be chance.")
    else:
        tested = [row for row in diff.rows if row["p_adjusted"] is not None]
        same = all(not row["difference"] for row in diff.rows)
        if same:
            out.append("All figures are equal.")
        else:
            moved = diff.moved()
            rose = sum(row["difference"] > 0 for row in moved)
            level = f"{1 - diff.confidence_level:.2g}"
            out.append(
                f"Of {len(tested)} figures, {rose} rose and {len(moved) - rose} fell significantly (p below {level} "
                f"after Holm's correction over all {len(tested)}; the same {diff.num_samples:,} resamples of the same queries)."
            )
        if diff.equal and not same:
            out.append(f"Scores are equal, pair by pair: {', '.join(map(summary.display_name, diff.equal))}.")
    for names, where in ((diff.only_before, "before"), (diff.only_after, "after")):
        if names:
            out.append(f"Only {where}: {', '.join(map(summary.display_name, names))}.")
    changed = {heading: len(found) for heading, found in diff.changes.items() if found}
    listed = ", ".join(f"{heading} ({count})" for heading, count in changed.items())
    out.append(f"Not the same: {listed}." if changed else "Config, data, versions and counts are the same.")
    return out


def render_diff(diff: ReportDiff, title: str = "Two reports compared") -> str:
    """One self-contained HTML page; all text from outside is escaped."""
    return (
        environment()
        .get_template("diff.html.jinja")
        .render(
            title=title,
            diff=diff,
            sentences=summarize_diff(diff),
            names={row["system"]: summary.display_name(row["system"]) for row in diff.rows},
            labels=_LABELS,
        )
    )


def diff_text(diff: ReportDiff) -> str:
    """For a terminal: the sentences, and a line per system and metric."""
    lines = [["system", "metric", "before", "after", "difference", "p, corrected"]]
    for row in diff.rows:
        if row["system"] in diff.equal:
            continue
        gap = with_bounds(read_interval(row, "difference"), "+.4f", "+.3f")
        p = "-" if row["p_adjusted"] is None else f"{row['p_adjusted']:.3f}{' *' if row['significant'] else ''}"
        figures = ["-" if row[side] is None else f"{row[side]:.4f}" for side in ("before", "after")]
        lines.append([row["system"], _LABELS[row["metric"]], *figures, gap, p])
    blocks = [[f"before: {diff.before}", f"after:  {diff.after}"], aligned(lines) if len(lines) > 1 else []]
    for heading, found in diff.changes.items():
        shown = [f"{heading}: {c.name}: {c.before} -> {c.after}"[:_MAX_LINE] for c in found[:_MAX_CHANGES]]
        rest = len(found) - len(shown)
        blocks.append([*shown, f"{heading}: {rest} more in diff.html"] if rest else shown)
    return "\n\n".join("\n".join(block) for block in [*blocks, summarize_diff(diff)] if block)
