"""The number of queries that humans must label to see a change, and their spread over the strata."""

from dataclasses import dataclass

import numpy as np

from ray_app.analysis.measurement.prediction_powered import MIN_PER_STRATUM, StrataSummary
from ray_app.stages.sample.allocation import weighted_rates
from ray_app.stages.sample.pilot import LEAST_DEVIATION

_ROUNDING = 1e-6  # deviations below are those of a teacher that is always right


@dataclass(frozen=True, kw_only=True)
class StudyDesign:
    """Expected precision of a study of so many human-labelled queries."""

    num_labelled: int  # queries that humans label
    by_stratum: np.ndarray  # (num_strata,) int64, how they are spread
    std_error: float  # expected
    mde: float  # the least change that would be found with the wanted power (MDE)


def design_study(
    pilot: StrataSummary, num_labelled: int, *, power: float = 0.8, confidence_level: float = 0.95
) -> StudyDesign:
    """Predict what `num_labelled` human-labelled queries can show, if the strata are as in the pilot.

    Args:
        pilot: `summarize` of figures at hand; of the differences between two rankings to compare them.
        num_labelled: Wanted; at most as many as there are queries, at least MIN_PER_STRATUM in each stratum.
    """
    from scipy import stats

    by_stratum = _spread(pilot, num_labelled)
    error = float(np.sum(pilot.drawn(by_stratum) + pilot.floor)) ** 0.5
    total = int(by_stratum.sum())
    df = max(total - len(by_stratum), 1)
    reach = float(stats.t.ppf((1 + confidence_level) / 2, df) + stats.t.ppf(power, df))
    return StudyDesign(num_labelled=total, by_stratum=by_stratum, std_error=error, mde=reach * error)


def required_queries(
    pilot: StrataSummary, mde: float, *, power: float = 0.8, confidence_level: float = 0.95
) -> StudyDesign | None:
    """The smallest study that finds `mde`, in the figure's unit and above 0; other arguments as of `design_study`.

    None: not even human labels on all queries would find it, so take more queries.
    """
    if not mde > 0:
        raise ValueError(f"change must be above 0, got {mde}: no study finds a difference of nothing")
    low, high = MIN_PER_STRATUM * len(pilot.share), int(pilot.num_queries.sum())

    def of(num_labelled: int) -> StudyDesign:
        return design_study(pilot, num_labelled, power=power, confidence_level=confidence_level)

    if of(high).mde > mde:
        return None
    while low < high:
        middle = (low + high) // 2
        if of(middle).mde > mde:
            low = middle + 1
        else:
            high = middle
    return of(low)


def _spread(pilot: StrataSummary, num_labelled: int) -> np.ndarray:
    """(num_strata,) queries in proportion to share x residual deviation (Neyman 1934)."""
    least = np.minimum(pilot.num_queries, MIN_PER_STRATUM)
    deviation = np.maximum(pilot.residual_deviation, LEAST_DEVIATION * pilot.residual_deviation.mean())
    if deviation.max() < _ROUNDING:
        deviation = np.ones(len(least))
    # Rates among a stratum's queries that make its part of the whole proportional to share x deviation.
    rates = weighted_rates(
        pilot.num_queries, np.maximum(pilot.share, 1e-12) * deviation / pilot.num_queries, num_labelled
    )
    return np.maximum(np.round(rates * pilot.num_queries), least).astype(np.int64)
