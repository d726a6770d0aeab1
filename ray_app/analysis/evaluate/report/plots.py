"""The report's plots, as inline SVG whose colours are CSS variables, so that they follow the page's light or dark theme."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.probabilities import CurvePoint

# matplotlib knows no CSS variables: it draws in these stand-ins, which are replaced in its output.
_STAND_INS = {"#0a0001": "var(--ink)", "#0a0002": "var(--muted)", "#0a0003": "var(--line)"}
INK, MUTED, LINE = _STAND_INS
_MAX_MARKS = 400  # bars or points of one line: more cannot be seen, and make the file heavy
SERIES = 8  # --s0 .. --s7 in the style sheet
_STAND_INS |= {f"#0b000{i}": f"var(--s{i})" for i in range(SERIES)}


def series_color(index: int) -> str:
    """Stand-in of the index-th series colour."""
    return f"#0b000{index % SERIES}"


def interval_plot(intervals: Mapping[str, Interval], colors: Mapping[str, int]) -> str:
    """A dot and whisker per system, first on top.

    Args:
        intervals: Displayed name -> figure; an undefined one keeps its line and says so.
    """
    names = list(intervals)
    with _figure(3.5, 0.5 + 0.27 * len(names)) as (ax, out):
        for y, name in enumerate(names):
            value, lo, hi = intervals[name]
            if value is None:
                ax.text(0.5, y, "undefined", color=MUTED, va="center", ha="center", transform=ax.get_yaxis_transform())
                continue
            if lo is not None and hi is not None:
                ax.plot([lo, hi], [y, y], color=series_color(colors[name]), linewidth=2, solid_capstyle="round")
            ax.plot([value], [y], "o", color=series_color(colors[name]), markersize=6)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color=LINE, linewidth=0.8)
        ax.spines["left"].set_visible(False)
        ax.locator_params(axis="x", nbins=5)
    return _inline(out)


def roc_plot(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], colors: Mapping[str, int]) -> str:
    """ROC curves: name -> (false positive rate, true positive rate)."""
    with _figure(4.4, 3.9) as (ax, out):
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for name, (fpr, tpr) in curves.items():
            fpr, tpr = _thin(fpr), _thin(tpr)
            ax.plot(fpr, tpr, color=series_color(colors[name]), linewidth=1.8, label=name)
        _square(ax, "share of irrelevant pairs let through", "share of relevant pairs found")
        _legend(ax, "lower right")
    return _inline(out)


def reliability_plot(curves: Mapping[str, Sequence[CurvePoint]], colors: Mapping[str, int]) -> str:
    """Observed against predicted share, with intervals; the area of a dot is its share of the pairs."""
    with _figure(4.4, 3.9) as (ax, out):
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for name, points in curves.items():
            color = series_color(colors[name])
            predicted, observed = [p.predicted for p in points], [p.observed.value for p in points]
            ax.plot(predicted, observed, color=color, linewidth=1.5, label=name)
            for point in points:
                if point.observed.lo is not None:
                    ends = [point.observed.lo, point.observed.hi]
                    ax.plot([point.predicted] * 2, ends, color=color, linewidth=1.2, alpha=0.8)
            total = sum(p.num_pairs for p in points)
            sizes = [10 + 250 * p.num_pairs / total for p in points]
            ax.scatter(predicted, observed, s=sizes, color=color, alpha=0.55, linewidths=0)
        _square(ax, "predicted probability", "observed share")
        _legend(ax, "upper left")
    return _inline(out)


def difference_plot(differences: np.ndarray, ylabel: str, win: int, loss: int) -> str:
    """One bar per query, largest gain first; `win` and `loss` are series of the bars above and below zero."""
    ordered = _thin(np.sort(differences)[::-1])
    many = len(ordered) < len(differences)
    with _figure(5.4, 2.3) as (ax, out):
        colors = [series_color(win) if value > 0 else series_color(loss) for value in ordered]
        ax.bar(np.arange(1, len(ordered) + 1), ordered, width=0.8, color=colors)
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.set_xlabel(
            "a sample of the queries, from most gained to most lost" if many else "queries, most gained first"
        )
        ax.set_ylabel(ylabel)
        ax.set_xlim(0.2, len(ordered) + 0.8)
        ax.grid(axis="y", color=LINE, linewidth=0.8)
        ax.spines["bottom"].set_visible(False)
        ax.tick_params(axis="x", length=0)
    return _inline(out)


def roc_points(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate at each distinct score, from (0, 0) to (1, 1); -inf is the lowest score.

    Raises:
        ValueError: one class is absent.
    """
    if positive.all() or not positive.any():
        raise ValueError("a ROC curve needs both classes")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(scores[order][1:] != scores[order][:-1], True)
    tpr = np.cumsum(positive[order])[ends] / positive.sum()
    fpr = np.cumsum(~positive[order])[ends] / (~positive).sum()
    return np.insert(fpr, 0, 0.0), np.insert(tpr, 0, 0.0)


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, io.StringIO]]:
    """Axes of the given inches in the report's style, and where the drawing is put at the end, as SVG.

    Made without pyplot, so no global state is touched.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",  # real text: small, sharp, selectable, in the page's own font
        "svg.hashsalt": "report",  # ids that do not change from run to run
        "text.parse_math": False,
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "xtick.color": MUTED,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(style):
        fig = Figure(figsize=(width, height), layout="constrained")
        fig.patch.set_alpha(0.0)
        ax = fig.add_subplot()
        ax.patch.set_alpha(0.0)
        out = io.StringIO()
        yield ax, out
        fig.savefig(out, format="svg", metadata={"Date": None})


def _thin(values: np.ndarray) -> np.ndarray:
    """At most _MAX_MARKS of the values, evenly spaced, the first and last among them."""
    if len(values) <= _MAX_MARKS:
        return values
    return values[np.linspace(0, len(values) - 1, _MAX_MARKS).round().astype(int)]


def _square(ax: Any, xlabel: str, ylabel: str) -> None:
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(color=LINE, linewidth=0.8)


def _legend(ax: Any, place: str) -> None:
    ax.legend(loc=place, frameon=False, handlelength=1.4, labelspacing=0.3)


# The page sizes it: keep the shape (viewBox) and drop the points.
_PARTS = (
    (r"<metadata>.*?</metadata>", ""),
    *((rf'(<svg[^>]*?) {side}="[^"]*"', r"\1") for side in ("width", "height")),
)


def _inline(out: io.StringIO) -> str:
    """The <svg> element alone, with CSS variables for colours."""
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for pattern, new in _PARTS:
        text = re.sub(pattern, new, text, count=1, flags=re.DOTALL)
    return re.sub("|".join(_STAND_INS), lambda found: _STAND_INS[found.group()], text)
