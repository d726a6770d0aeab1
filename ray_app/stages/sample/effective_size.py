"""Kish's effective sample size: how many pairs drawn alike would estimate as well as pairs of unequal weights.

(sum of w)^2 / (sum of w^2) with w = 1 / inclusion_prob (Kish, "Survey Sampling", 1965). The number of pairs over it is
the design effect of weighting, at least 1: a mean's variance is about so many times that of as many pairs drawn alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSums:
    """Sums over weights, of which their effective size follows."""

    num: int
    total: float
    squares: float

    @classmethod
    def of(cls, weights: Sequence[float]) -> "WeightSums":
        """Add up weights, all above 0."""
        values = np.asarray(weights, np.float64)
        return cls(num=len(values), total=float(values.sum()), squares=float((values**2).sum()))

    @classmethod
    def merged(cls, parts: Sequence["WeightSums"]) -> "WeightSums":
        """Of all parts."""
        return cls(
            num=sum(part.num for part in parts), total=math.fsum(part.total for part in parts),
            squares=math.fsum(part.squares for part in parts),
        )  # fmt: skip

    @property
    def described(self) -> dict[str, float | None]:
        """`effective_size`, and `design_effect`; None where there are no pairs."""
        size = self.total**2 / self.squares if self.num else 0.0
        return {"effective_size": round(size, 1), "design_effect": round(self.num / size, 3) if self.num else None}
