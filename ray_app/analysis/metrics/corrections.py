"""Multiple-comparison corrections: p-values from paired resamples, adjusted for their number.

A 95% interval misses one time in twenty, so of twenty comparisons between equal systems one is expected to look like
a difference. Words such as "significant" are therefore decided by Holm's adjusted p-values over all comparisons
that are shown together; intervals stay those of the single figure.
"""

import math
from collections.abc import Sequence

import numpy as np

MAX_RAISED = 10_000  # resamples that the correction may ask for, beyond what the settings say


def bootstrap_p(samples: np.ndarray) -> float | None:
    """Two-sided p-value of "the difference is zero": twice the share of resamples on its other side, or at zero.

    The data themselves count as one more resample, so a p-value is never 0: with n resamples the smallest one is
    2 / (n + 1), and it moves in steps of that. It is below 1 - confidence about where the percentile interval excludes
    zero.

    Args:
        samples: (n,) float64, the difference on each resample; NaN where it is undefined, which is left out.

    Returns:
        Above 0 and at most 1; None: no resample defines the difference.
    """
    defined = samples[np.isfinite(samples)]
    if defined.size == 0:
        return None
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2.0 * (side + 1) / (defined.size + 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment: below a level, at most that chance of a single false alarm among all of them.

    Valid however the comparisons depend on each other; stronger than Bonferroni. None (undefined) stays None and does
    not count as a comparison.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p))
        adjusted[i] = highest
    return adjusted


def raised_samples(asked: int, comparisons: int, confidence_level: float, times: int = 1) -> int:
    """The resamples asked for, or `times` what `enough_samples` says if that is more, up to MAX_RAISED."""
    return max(asked, min(times * enough_samples(comparisons, confidence_level), MAX_RAISED))


def enough_samples(comparisons: int, confidence_level: float) -> int:
    """Resamples with which even the strictest of Holm's steps, level / comparisons, can be passed."""
    return math.ceil(round(2 * comparisons / (1.0 - confidence_level), 6))
