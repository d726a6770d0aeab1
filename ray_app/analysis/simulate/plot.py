"""The trade-off as a picture of its own, with a white ground."""

import io
from collections.abc import Sequence

from ray_app.analysis.simulate.outcome import CLICKS, FULFILLED, NDCG
from ray_app.analysis.simulate.policies import ENGAGEMENT, RELEVANCE, USES
from ray_app.analysis.simulate.trade_off import TradeOff

_COLORS = ("#0065b3", "#c24e00", "#00795a", "#a34d86")  # of the report, light theme
_INK = "#1d1f21"


def trade_off_svg(points: Sequence[TradeOff]) -> str:
    """Engagement, and fulfilment, over relevance: a line per use, both scores alone as marks.

    The numbers are the strengths; the second panel has the points of the first.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none", "svg.hashsalt": "simulate", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    alone = {point.use: point for point in points if point.use in (RELEVANCE, ENGAGEMENT)}
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(9.0, 3.8), layout="constrained")
        panels = figure.subplots(1, 2)
        labels = {CLICKS: "clicks per search", FULFILLED: "searches fulfilled"}
        for ax, (metric, label) in zip(panels, labels.items(), strict=True):
            for use, color in zip(USES, _COLORS, strict=True):
                found = [point for point in points if point.use == use]
                x, y = ([point.metrics[name].value for point in found] for name in (NDCG, metric))
                ax.plot(x, y, "o-", color=color, markersize=4, linewidth=1.5, label=use)
                if metric == CLICKS:
                    for point in found:
                        at, text = (point.metrics[NDCG].value, point.metrics[metric].value), f"{point.strength:g}"
                        ax.annotate(text, at, (4, 4), textcoords="offset points", fontsize=7, color=color)
            for name, mark in ((RELEVANCE, "*"), (ENGAGEMENT, "X")):
                place = [[alone[name].metrics[figure].value] for figure in (NDCG, metric)]
                ax.plot(*place, mark, color=_INK, markersize=9, label=f"{name} alone")
            ax.set_xlabel("nDCG@20")
            ax.set_ylabel(label)
            ax.grid(color="#dddddd", linewidth=0.8)
            ax.set_axisbelow(True)
        panels[0].legend(frameon=False, fontsize=8)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
