"""How many pairs each stratum gives, and the one factor that makes the expected total meet the target."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def sqrt_rates(sizes: NDArray, target: float) -> Floats:
    """Sampling rate of each stratum such that about `target` units are drawn, proportionally to the root of its size.

    Between equal shares (which waste the budget on tiny strata) and proportional ones (which leave the tail out).
    A stratum that is asked for more than it has gives all, and the others share the rest.

    Args:
        sizes: (num_strata,) units of each; 0 is allowed.
        target: Units wanted over all strata.

    Returns:
        (num_strata,) float64 in [0, 1]; all 1 where there are no more than `target` units.
    """
    sizes = np.asarray(sizes, np.float64)
    if sizes.sum() <= target:
        return np.ones(len(sizes))
    root = np.sqrt(np.maximum(sizes, 1.0))
    factor = solve_factor(lambda f: float(np.minimum(sizes, f * root).sum()), target, highest=float(root.max()))
    return np.minimum(1.0, factor / root)


def solve_factor(total: Callable[[float], float], target: float, highest: float) -> float:
    """The factor in [0, highest] at which the growing function `total` reaches `target`; `highest` if it never does."""
    if total(highest) <= target:
        return highest
    low, high = 0.0, highest
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) <= target else (low, middle)
    return low
