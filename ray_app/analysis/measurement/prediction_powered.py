"""The mean of a per-query figure over a search engine's traffic, from teacher labels on many queries and human labels on few.

judged = QueryMetrics(teacher=ndcg_by_teacher, human=ndcg_by_humans_or_nan, stratum=stratum)
ppi_mean(judged)                       # of one ranking; of two, give it the differences query by query
ppi_mean(judged.without_teacher())     # the same from humans alone

The teacher may be wrong in any way: its mean is corrected by its error on the queries that humans labelled, so its
faults cost width and not truth. This is the regression estimator of survey sampling (Cochran, "Sampling Techniques",
3rd ed., chapter 7), today known as prediction-powered inference with a tuned weight: Angelopoulos, Duchi and Zrnic,
"PPI++" (arXiv 2311.01453), here with strata.
"""

from dataclasses import dataclass, replace

import numpy as np

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.base.errors import UserError

MIN_PER_STRATUM = 2  # human labels without which a stratum has no variance


@dataclass(frozen=True, kw_only=True)
class QueryMetrics:
    """Metrics of each query by both sources: a sample of the traffic, of which humans labelled a random part of each stratum.

    Raises:
        ValueError: shapes differ, or a figure is not finite.
    """

    teacher: np.ndarray  # (num_queries,) float64, the figure by the teacher's labels; no NaN
    human: np.ndarray
    """(num_queries,) float64, the same figure by human labels; NaN: not labelled. What is silently wrong: queries that
    humans chose to label, instead of a random draw."""
    stratum: np.ndarray  # (num_queries,) int64 from 0

    def __post_init__(self) -> None:
        if not self.teacher.shape == self.human.shape == self.stratum.shape or self.teacher.ndim != 1:
            raise ValueError("teacher, human and stratum must be (num_queries,) each")
        if not np.isfinite(self.teacher).all() or np.isinf(self.human).any():
            raise ValueError(
                "the teacher's values must be finite, and the human values finite or NaN for unlabelled queries"
            )

    @property
    def labelled(self) -> np.ndarray:
        """(num_queries,) bool, by humans."""
        return ~np.isnan(self.human)

    def without_teacher(self) -> "QueryMetrics":
        """The same queries as if no teacher had labelled them."""
        return replace(self, teacher=np.zeros(len(self.teacher)))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its interval, and what it rests on."""

    interval: Interval
    """Value and bounds; bounds None: the human labels show no variation, and no width is not certainty."""
    std_error: float  # of the value
    power_tuning_weight: float  # how far the teacher's figures are followed; 0: not at all
    num_queries: int  # with teacher labels
    num_labelled: int  # by humans too
    std_error_floor: float  # what would remain if humans labelled all of these queries
    merged_strata: int  # strata that had fewer than MIN_PER_STRATUM human labels and were taken together


@dataclass(frozen=True, kw_only=True)
class StrataSummary:
    """Statistics of each stratum, (num_strata,): what estimates and plans are made of."""

    share: np.ndarray  # of the traffic
    num_queries: np.ndarray
    num_labelled: np.ndarray
    deviation: np.ndarray  # of the humans' figures
    residual_deviation: np.ndarray  # of the humans' figures less what the teacher foretells
    human_mean: np.ndarray
    teacher_mean: np.ndarray
    teacher_mean_labelled: np.ndarray
    teacher_variance: np.ndarray  # among the labelled
    power_tuning_weight: float

    @property
    def floor(self) -> np.ndarray:
        """(num_strata,) variance that stays when humans label all queries: they are themselves a sample."""
        return self.share**2 * self.deviation**2 / self.num_queries

    def drawn(self, num_labelled: np.ndarray) -> np.ndarray:
        """(num_strata,) variance that is there because humans label only so many queries."""
        return sampling_lever(self.share, num_labelled, self.num_queries) * self.residual_deviation**2


def ppi_mean(metrics: QueryMetrics, confidence_level: float = 0.95) -> Estimate:
    """The mean over the traffic that the queries are a sample of.

    The interval has Student's t with Satterthwaite's degrees of freedom, and counts that the teacher's weight is itself
    estimated. Fewer than some 30 human labels, or figures that are nearly always 0, make it too narrow.

    Raises:
        UserError: fewer human labels than MIN_PER_STRATUM.
    """
    from scipy import stats

    kept, merged = merge_small_strata(metrics)
    strata = summarize(kept)
    weight, share = strata.power_tuning_weight, strata.share
    shift = strata.teacher_mean - strata.teacher_mean_labelled
    means = strata.human_mean + weight * shift
    value = float(share @ means)
    total = len(kept.human)
    floor = strata.floor
    terms = strata.drawn(strata.num_labelled) + floor
    freedom = strata.num_labelled - 1
    among = share @ (means - value) ** 2 / total  # the shares are estimates too
    floor, terms, freedom = np.append(floor, among), np.append(terms, among), np.append(freedom, total - 1)
    if weight != 0:
        terms = np.append(terms, _weight_variance(strata) * float(share @ shift) ** 2)
        freedom = np.append(freedom, strata.num_labelled.sum() - len(share))
    variance = float(np.sum(terms))
    interval = Interval(value, None, None)
    if variance > 0:
        df = variance**2 / float(np.sum(np.square(terms) / np.maximum(freedom, 1)))
        reach = float(stats.t.ppf((1 + confidence_level) / 2, df)) * variance**0.5
        interval = Interval(value, value - reach, value + reach)
    return Estimate(
        interval=interval, std_error=variance**0.5, power_tuning_weight=weight, num_queries=total,
        num_labelled=int(kept.labelled.sum()), std_error_floor=float(floor.sum()) ** 0.5, merged_strata=merged,
    )  # fmt: skip


def summarize(metrics: QueryMetrics) -> StrataSummary:
    """Means and deviations by stratum; every stratum must have MIN_PER_STRATUM human labels."""
    num = int(metrics.stratum.max()) + 1
    rows = [metrics.stratum == h for h in range(num)]
    labelled = [mask & metrics.labelled for mask in rows]
    num_queries, num_labelled = (np.array([mask.sum() for mask in masks], np.float64) for masks in (rows, labelled))
    human, teacher = ([values[mask] for mask in labelled] for values in (metrics.human, metrics.teacher))
    share = num_queries / num_queries.sum()
    human_variance, teacher_variance = (np.array([part.var(ddof=1) for part in parts]) for parts in (human, teacher))
    both = np.array([np.cov(y, f)[0, 1] for y, f in zip(human, teacher, strict=True)])
    # One weight for all strata: one of each would be noise where a stratum has few labels.
    lever = sampling_lever(share, num_labelled, num_queries)
    spread = float(lever @ teacher_variance)
    weight = float(lever @ both) / spread if spread > 0 else 0.0
    residual = human_variance - 2.0 * weight * both + weight**2 * teacher_variance
    if weight != 0 and (total := num_labelled.sum()) > num + 1:
        residual = residual * (total - num) / (total - num - 1)  # one more number was fitted
    return StrataSummary(
        share=share, num_queries=num_queries, num_labelled=num_labelled, deviation=np.sqrt(human_variance),
        residual_deviation=np.sqrt(np.maximum(residual, 0.0)), human_mean=np.array([part.mean() for part in human]),
        teacher_mean=np.array([metrics.teacher[mask].mean() for mask in rows]),
        teacher_mean_labelled=np.array([part.mean() for part in teacher]), teacher_variance=teacher_variance,
        power_tuning_weight=weight,
    )  # fmt: skip


def merge_small_strata(metrics: QueryMetrics) -> tuple[QueryMetrics, int]:
    """Number the strata from 0 without gaps, those with too few human labels taken together.

    Returns:
        The figures, and how many strata were merged. What is joined is treated as drawn at one rate.

    Raises:
        UserError: fewer human labels than MIN_PER_STRATUM in all.
    """
    labels = np.bincount(metrics.stratum, weights=metrics.labelled)
    if labels.sum() < MIN_PER_STRATUM:
        raise UserError(f"{int(labels.sum())} queries with human labels: an estimate takes at least {MIN_PER_STRATUM}")
    present = np.bincount(metrics.stratum, minlength=len(labels)) > 0
    order = [h for h in np.argsort(labels, kind="stable") if present[h]]
    num_joined, held = 0, 0.0
    for h in order:
        if labels[h] >= MIN_PER_STRATUM and (num_joined == 0 or held >= MIN_PER_STRATUM):
            break
        num_joined, held = num_joined + 1, held + labels[h]
    joined, alone = set(order[:num_joined]), sorted(order[num_joined:])
    number = {h: i for i, h in enumerate(alone)} | dict.fromkeys(joined, len(alone))
    stratum = np.array([number[h] for h in metrics.stratum.tolist()], np.int64)
    return replace(metrics, stratum=stratum), num_joined


def sampling_lever(share: np.ndarray, num_labelled: np.ndarray, num_queries: np.ndarray) -> np.ndarray:
    """(num_strata,) how much a figure's variance within a stratum counts in that of the whole; 0: all are labelled."""
    return np.asarray(share**2 * np.maximum(1.0 / num_labelled - 1.0 / num_queries, 0.0))


def _weight_variance(strata: StrataSummary) -> float:
    """Variance of the teacher's weight, which is not 0, as of any slope that is fitted by least squares."""
    lever = sampling_lever(strata.share, strata.num_labelled, strata.num_queries)
    spread = float(lever @ strata.teacher_variance)
    noise = strata.residual_deviation**2 * strata.teacher_variance / np.maximum(strata.num_labelled - 1, 1)
    return float((lever**2) @ noise) / spread**2
