"""Values and confidence intervals as text."""

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.protocol import METRICS

LABELS = dict(zip(METRICS, ("AUROC 3+", "AUROC 4+", "AUROC 5+", "accuracy", "nDCG@20", "P@8"), strict=True))


def format_interval(interval: Interval) -> str:
    """Such as `.889 [.84, .93]`; with a digit more where a bound would round to 0; a dash where undefined."""
    if interval.value is None:
        return "-"
    if interval.lo is None or interval.hi is None:
        return _short(interval.value, 3)
    digits = 2 if min(abs(interval.lo), abs(interval.hi)) >= 0.005 else 3
    return f"{_short(interval.value, 3)} [{_short(interval.lo, digits)}, {_short(interval.hi, digits)}]"


def _short(value: float, digits: int) -> str:
    sign = "-" if round(value, digits) < 0 else ""
    return sign + f"{abs(value):.{digits}f}".removeprefix("0")
