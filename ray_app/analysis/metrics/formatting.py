"""Values and confidence intervals in rows and as text; lines of cells as aligned text, Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.protocol import METRICS

LABELS = dict(zip(METRICS, ("AUROC 3+", "AUROC 4+", "AUROC 5+", "accuracy", "nDCG@20", "P@8"), strict=True))
_ENDS = ("", "_lo", "_hi")


def plain(value: float | None) -> float | None:
    """A JSON number of six decimals, or null for what is undefined."""
    return None if value is None or not np.isfinite(value) else round(float(value), 6)


def interval_fields(name: str, interval: Interval) -> dict[str, float | None]:
    """NAME, NAME_lo and NAME_hi of a row, plain."""
    return {f"{name}{end}": plain(value) for end, value in zip(_ENDS, interval, strict=True)}


def read_interval(row: Mapping[str, Any], name: str) -> Interval:
    """The interval that a row holds as NAME, NAME_lo, NAME_hi."""
    return Interval(*(row[f"{name}{end}"] for end in _ENDS))


def format_interval(interval: Interval) -> str:
    """Such as `.889 [.84, .93]`; with a digit more where a bound would round to 0; a dash where undefined."""
    if interval.value is None:
        return "-"
    if interval.lo is None or interval.hi is None:
        return short(interval.value)
    digits = 2 if min(abs(interval.lo), abs(interval.hi)) >= 0.005 else 3
    return f"{short(interval.value)} [{short(interval.lo, digits)}, {short(interval.hi, digits)}]"


def with_bounds(interval: Interval, spec: str, bounds: str | None = None, *, percent: bool = False) -> str:
    """`value [lo, hi]` in the given formats, the bounds' as the value's by default; a dash where undefined.

    with_bounds(Interval(0.0031, 0.001, 0.005), "+.3f")                          # +0.003 [+0.001, +0.005]
    with_bounds(Interval(0.0312, 0.01, 0.05), "+.1f", ".1f", percent=True)       # +3.1% [1.0, 5.0]
    """
    if interval.value is None:
        return "-"
    value, lo, hi = (v if v is None or not percent else v * 100 for v in interval)
    text = f"{value:{spec}}" + ("%" if percent else "")
    return text if lo is None or hi is None else f"{text} [{lo:{bounds or spec}}, {hi:{bounds or spec}}]"


def short(value: float, digits: int = 3) -> str:
    """Without the 0 before the point."""
    sign = "-" if round(value, digits) < 0 else ""
    return sign + f"{abs(value):.{digits}f}".removeprefix("0")


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells with their columns one under the other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def markdown_table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the first one is the head."""
    head, *body = (f"| {' | '.join(line)} |".replace("\n", " ") for line in lines)
    return [head, f"|{'---|' * len(lines[0])}", *body]


def csv_text(lines: Iterable[Iterable[object]]) -> str:
    """CSV with line feeds; what is undefined is empty."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
