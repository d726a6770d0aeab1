"""The two tables of the simulation, for people (Markdown) and programs (CSV, JSON)."""

from collections.abc import Sequence
from typing import Any

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.formatting import csv_text, interval_fields, markdown_table, plain, short, with_bounds
from ray_app.analysis.simulate.by_country import COMPARED, SearchSlice
from ray_app.analysis.simulate.outcome import CLICKS, FULFILLED, LONG_CLICKS, NDCG, PRECISION
from ray_app.analysis.simulate.trade_off import TRADED, TradeOff

LABELS = {
    NDCG: "nDCG@20", PRECISION: "P@8", CLICKS: "clicks", LONG_CLICKS: "long clicks", FULFILLED: "fulfilled",
}  # fmt: skip
_LABELLED = {True: "yes", False: "no", None: ""}

_REPORT_NOTE = (
    "fulfilled: share of searches with a long click or a save. The picture: what uses of the score together with "
    "engagement give and cost, where some pins are clicked whatever they show (docs/simulation.md)."
)


def country_rows(slices: Sequence[SearchSlice]) -> list[dict[str, Any]]:
    """One flat row per slice; gains are relative, .01 is one percent."""
    rows = []
    for part in slices:
        row: dict[str, Any] = {
            "slice": part.name, "is_country": part.is_country, "has_labels": part.has_labels,
            "searches": part.num_searches, "queries": part.num_queries,
        }  # fmt: skip
        for metric in COMPARED:
            found, apart = part.gains[metric], part.unpaired[metric]
            row |= {f"{metric}_control": plain(found.control), f"{metric}_treatment": plain(found.treatment)}
            row |= interval_fields(f"{metric}_gain", found.gain)
            row |= {f"{metric}_p": plain(found.p), f"{metric}_holm_p": plain(found.p_adjusted)}
            row |= {f"{metric}_unpaired_lo": plain(apart.lo), f"{metric}_unpaired_hi": plain(apart.hi)}
        rows.append(row)
    return rows


def trade_rows(points: Sequence[TradeOff]) -> list[dict[str, Any]]:
    """One flat row per use and strength; gains are relative to relevance alone."""
    rows = []
    for point in points:
        row: dict[str, Any] = {"use": point.use, "strength": point.strength}
        for metric in TRADED:
            row |= interval_fields(metric, point.metrics[metric])
            row |= interval_fields(f"{metric}_gain", point.gains[metric])
        rows.append(row)
    return rows


def country_markdown(slices: Sequence[SearchSlice], settings: EvaluationSettings) -> str:
    """The table of the experiment: gains of the treatment over the control."""
    lines = [["", "labels", "searches", "queries"]]
    for metric in COMPARED:
        lines[0] += [LABELS[metric], "gain"]
    level = 1.0 - settings.confidence_level
    for part in slices:
        cells = [part.name, _LABELLED[part.has_labels], f"{part.num_searches:,}", f"{part.num_queries:,}"]
        for metric in COMPARED:
            found = part.gains[metric]
            star = "*" if found.p_adjusted is not None and found.p_adjusted < level else ""
            cells += [short(found.control), _percent(found.gain) + star]
        lines.append(cells)
    countries = sum(part.is_country for part in slices)
    everyone = next(iter(slices)).unpaired[FULFILLED]
    notes = [
        (
            f"Control: the feature-only student, whose figures are shown. Gains of the student over it, with "
            f"{settings.confidence_level:.0%} intervals ({settings.samples:,} resamples of the queries; the same people meet "
            "both). fulfilled: share of searches with a long click or a save."
        ),
        (
            f"\\* significant at {level:.0%} over all {countries} countries together, by Holm's correction of a "
            "sign-flip test, figure by figure. The intervals are those of each row alone."
        ),
    ]
    if everyone.lo is not None and everyone.hi is not None:
        notes.append(
            f"If the arms had met other queries and people, the interval of all searches' gain in fulfilment would be "
            f"[{everyone.lo * 100:+.1f}, {everyone.hi * 100:+.1f}]."
        )
    return "\n\n".join(["\n".join(markdown_table(lines)), *notes]) + "\n"


def trade_markdown(points: Sequence[TradeOff], settings: EvaluationSettings, has_clickbait: bool) -> str:
    """The table of the trade-off."""
    lines = [
        ["use", "strength", *(LABELS[m] for m in TRADED), *(f"{LABELS[m]}, gain" for m in (NDCG, CLICKS, FULFILLED))]
    ]
    for point in points:
        cells = [point.use, "" if point.strength is None else f"{point.strength:g}"]
        cells += ["-" if (value := point.metrics[metric].value) is None else short(value) for metric in TRADED]
        cells += [_percent(point.gains[metric]) for metric in (NDCG, CLICKS, FULFILLED)]
        lines.append(cells)
    who = (
        "Some pins have appeal: they are clicked whatever they show."
        if has_clickbait
        else "No pin has appeal (simulate.clickbait is null): people act by relevance alone."
    )
    note = (
        f"Clicks and long clicks per search. Gains over the student's score alone, with {settings.confidence_level:.0%} "
        f"intervals of each figure by itself; the same people meet all rows. {who}"
    )
    return "\n".join([*markdown_table(lines), "", note, ""])


def report_section(slices: Sequence[SearchSlice], settings: EvaluationSettings, picture: str) -> dict[str, Any]:
    """Make the report's section on the experiment, all searches first; gains are relative. `picture`: SVG of the trade-off."""
    columns = ["", "human labels", "searches", "queries"]
    columns += [name for m in COMPARED for name in (f"{LABELS[m]}, control", f"{LABELS[m]}, relative gain")]
    rows: list[list[Any]] = []
    for part in slices:
        rows.append([part.name, _LABELLED[part.has_labels], part.num_searches, part.num_queries])
        for found in (part.gains[metric] for metric in COMPARED):
            rows[-1] += [plain(found.control), [plain(value) for value in found.gain]]
    return {
        "title": "What would an online experiment show?",
        "about": "A simulation: people of the demo dataset search, and click as its log was made. Control reranks by the "
        "feature-only student, treatment by the student; the same people meet both.",
        "caption": f"Gains of the treatment by country, with {settings.confidence_level:.0%} intervals of each row alone",
        "columns": columns,
        "rows": rows,
        "svg": picture[picture.index("<svg") :],
        "notes": [_REPORT_NOTE],
    }


def rows_as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV, under their names."""
    return csv_text([rows[0], *(row.values() for row in rows)])


def _percent(gain: Interval) -> str:
    return with_bounds(gain, "+.1f", ".1f", percent=True)
