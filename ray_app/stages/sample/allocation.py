"""Allocation of the sample to strata, and the factor that makes the expected total meet the target."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Allocation = Literal["sqrt", "proportional", "neyman"]


def allocate(allocation: Allocation, sizes: NDArray, target: float, deviations: Floats | None = None) -> Floats:
    """Sampling rate of each stratum such that about `target` units are drawn.

    Args:
        allocation: `sqrt`: see `sqrt_rates`; `proportional`: one rate for all; `neyman`: rates like the deviations.
        sizes: (num_strata,) units of each; 0 is allowed.
        target: Units wanted over all strata.
        deviations: (num_strata,) above 0, of what will be estimated, within each stratum; None: equal ones, with which
            neyman is proportional. Not used by the other two.

    Returns:
        (num_strata,) float64 in [0, 1]; all 1 where there are no more than `target` units.
    """
    if allocation == "sqrt":
        return sqrt_rates(sizes, target)
    equal = np.ones(len(sizes))
    return weighted_rates(sizes, deviations if allocation == "neyman" and deviations is not None else equal, target)


def weighted_rates(sizes: NDArray, weights: Floats, target: float) -> Floats:
    """Sampling rates in proportion to `weights` (num_strata,), all above 0; otherwise as `allocate`.

    With the deviations as weights this is Neyman's optimum for the sum over strata of size x mean of the drawn units:
    Neyman, "On the two different aspects of the representative method", J. Royal Statistical Society 97 (1934).
    """
    sizes = np.asarray(sizes, np.float64)
    if sizes.sum() <= target:
        return np.ones(len(sizes))
    assert weights.min() > 0, "a stratum of rate 0 is never seen, and no weight makes up for that"
    factor = solve_factor(lambda f: float(sizes @ np.minimum(1.0, f * weights)), target, highest=1.0 / weights.min())
    return np.minimum(1.0, factor * weights)


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
