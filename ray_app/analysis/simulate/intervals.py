"""Gains of one arm over the other, with intervals and a test over queries.

Searches of one query see the same page, so queries are resampled, with all of their searches.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ray_app.analysis.metrics.bootstrap import Interval, percentile_interval, ratio, resample_queries
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.demo.facts import Codes, Numbers

FLIPS = 4000  # of the signs: the smallest p value is below .05 / 16 countries by a factor of ten
_FLIP_CELLS = 4_000_000


class Resamples:
    """Figures of some searches with percentile intervals, all on the same resamples of their queries."""

    def __init__(self, cluster: Codes, settings: EvaluationSettings) -> None:
        """`cluster`: (num_searches,) the query of each search."""
        self.settings = settings
        self._place = np.unique(cluster, return_inverse=True)[1]
        self._searches = np.bincount(self._place).astype(np.float64)
        self._times = self._draw(settings.seed)

    @property
    def num_queries(self) -> int:
        """Distinct queries."""
        return len(self._searches)

    def mean(self, values: Numbers) -> Interval:
        """Mean over searches, (num_searches,) values."""
        total = self._sums(values)
        return self._interval(float(values.mean()), (self._times @ total) / (self._times @ self._searches))

    def gain(self, control: Numbers, treatment: Numbers, *, paired: bool = True) -> Interval:
        """Mean of the treatment over mean of the control, (num_searches,) each, minus 1; undefined where that is 0.

        `paired`: both arms met the same people. False: the interval as if each had met queries and people of its own,
        which a test on a real site is nearer to.
        """
        a, b = self._sums(control), self._sums(treatment)
        value = float(ratio(b.sum(), a.sum())) - 1.0
        if paired:
            return self._interval(value, ratio(self._times @ b, self._times @ a) - 1.0)
        below, top = (
            (times @ sums) / (times @ self._searches) for times, sums in ((self._times, a), (self._others, b))
        )
        return self._interval(value, ratio(top, below) - 1.0)

    def p_value(self, control: Numbers, treatment: Numbers) -> float:
        """Chance of a difference this large if the arms were alike: then each query's might as well have the other sign.

        A randomisation test over queries, two-sided. It holds for few queries too, where bootstrap intervals are too
        narrow.
        """
        differences = self._sums(treatment - control)
        differences = differences[differences != 0]
        least = abs(differences.sum()) * (1 - 1e-9)  # equal sums in another order of adding must count as equal
        rng = np.random.default_rng(self.settings.seed)
        as_large, block = 0, max(1, _FLIP_CELLS // max(len(differences), 1))
        for start in range(0, FLIPS, block):
            signs = rng.integers(0, 2, (min(block, FLIPS - start), len(differences)), np.int8) * 2.0 - 1.0
            as_large += int((np.abs(signs @ differences) >= least).sum())
        return (1 + as_large) / (1 + FLIPS)

    @cached_property
    def _others(self) -> NDArray[np.float64]:
        return self._draw(self.settings.seed + 1)

    def _draw(self, seed: int) -> NDArray[np.float64]:
        """Draw the number of times that each query occurs in each resample, (samples, num_queries)."""
        size = self.num_queries
        return np.concatenate(list(resample_queries(size, self.settings.samples, seed, row_cells=size)))

    def _sums(self, values: Numbers) -> NDArray[np.float64]:
        return np.asarray(np.bincount(self._place, weights=values), np.float64)

    def _interval(self, value: float, samples: NDArray[np.float64]) -> Interval:
        return percentile_interval(value, samples, self.settings.confidence_level)
