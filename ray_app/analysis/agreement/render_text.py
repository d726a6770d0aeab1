"""Agreement as plain text for terminals."""

from collections.abc import Iterable

from ray_app.analysis.agreement.agreement_table import RATERS, AgreementRow, AgreementTable
from ray_app.analysis.agreement.coefficients import AGREEMENT_METRICS
from ray_app.analysis.metrics.formatting import aligned, format_interval

_HEADS = ("exact", "within one", "linear kappa", "alpha, ordinal", "alpha, interval")


def render_agreement(tables: Iterable[AgreementTable]) -> str:
    """One block per table: a line per subject, why a figure is not there, and, for all pairs, who took what for what."""
    blocks = []
    for table in tables:
        lines = [["", "pairs", "compared", *_HEADS]]
        for row in table.rows:
            metrics = [format_interval(row.metrics[name]) for name in AGREEMENT_METRICS]
            lines.append([row.subject, f"{row.num_pairs:,}", f"{row.num_comparisons:,}", *metrics])
        about = f"{table.num_pairs:,} pairs of {table.num_queries:,} queries, {table.num_raters:,} raters"
        block = [f"{table.title}: {about}", *aligned(lines)]
        for row in table.rows:
            block += [f"note: {row.subject}: {why}" for why in dict.fromkeys(row.undefined.values())]
            if row.num_missing:
                block.append(
                    f"note: {row.subject} has no grade for {row.num_missing:,} pairs; they count as disagreement"
                )
        blocks.append("\n".join([*block, *(f"note: {note}" for note in table.notes)]))
        if table.column is None:
            blocks += [_confusion(row) for row in table.rows if row.num_comparisons]
    return "\n\n".join(blocks)


def _confusion(row: AgreementRow) -> str:
    """Counts by the subject's grade and the rater's; the line of missing grades only if there are any."""
    against = "another rater's grade" if row.subject == RATERS else "rater's grade"
    lines = [[f"{row.subject} \\ {against}", "1", "2", "3", "4", "5"]]
    for grade, counts in enumerate(row.confusion):
        if grade or any(counts):
            lines.append([str(grade) if grade else "none", *(f"{count:,}" for count in counts)])
    return "\n".join(aligned(lines))
