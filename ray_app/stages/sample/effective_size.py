"""Kish's effective sample size: how many pairs drawn alike would estimate as well as pairs of unequal weights.

(sum of w)^2 / (sum of w^2) with w = 1 / inclusion_prob (Kish, "Survey Sampling", 1965). The number of pairs over it is
the design effect of weighting, at least 1: a mean's variance is about so many times that of as many pairs drawn alike.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def effective_size(weights: NDArray) -> float:
    """Effective size of units with `weights` (num_units,), all above 0; 0 where there are none."""
    return float(np.sum(weights) ** 2 / np.sum(np.square(weights))) if len(weights) else 0.0


def pooled_effective_size(totals: Sequence[float], sizes: Sequence[float]) -> float:
    """Effective size of several strata together; it is not the sum of theirs.

    Args:
        totals: (num_strata,) sum of the weights in each stratum.
        sizes: (num_strata,) effective size of each; 0: nothing was drawn there.
    """
    drawn = [(total, size) for total, size in zip(totals, sizes, strict=True) if size > 0]
    squares = sum(total**2 / size for total, size in drawn)
    return sum(total for total, _ in drawn) ** 2 / squares if drawn else 0.0


def describe_weights(weights: NDArray) -> dict[str, float | None]:
    """`effective_size` of pairs with `weights` (num_sampled,), and `design_effect`; None where there are no pairs."""
    size = effective_size(weights)
    return {
        "effective_size": round(size, 1),
        "design_effect": round(len(weights) / size, 3) if len(weights) else None,
    }
