"""Two rankings of the same queries, measured together: the teacher's labels on all queries, corrected by humans on some.

paired = PairedRankings.of(control, treatment, missing="error")
found = compare(paired, teacher, human, stratum_of, CompareSettings())

The teacher's pool of a query must be the same set for every query: the top of both rankings, and nothing that was labelled
for another reason. Soft labels of a run are more for some queries than for others (those held out have none at all); with
them the teacher's figure would be another measure where humans labelled, and what looks like its error would not be one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ray_app.analysis.measurement.paired_rankings import PairedRankings
from ray_app.analysis.measurement.power_analysis import PowerAnalysis, as_if_human, power_analysis
from ray_app.analysis.measurement.prediction_powered import MIN_PER_STRATUM, Estimate, QueryMetrics, ppi_mean
from ray_app.analysis.measurement.ranking_metrics import Judgments, Metric, judged_share, measure_ranking
from ray_app.analysis.measurement.rankings import QueryKey
from ray_app.analysis.metrics.protocol import NDCG_CUTOFF, PRECISION_CUTOFF
from ray_app.base.errors import UserError

CONTROL, TREATMENT, DIFFERENCE = "control", "treatment", "difference"
DEFAULT_METRICS = (Metric(kind="ndcg", k=NDCG_CUTOFF), Metric(kind="p", k=PRECISION_CUTOFF))
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Settings that decide the metrics besides rankings and labels."""

    metrics: tuple[Metric, ...] = DEFAULT_METRICS  # to measure; plans and the choice of queries follow the first
    max_unjudged: float = 0.1
    """Share of the top k of either ranking; a query with a larger share without labels is left out. Guessed: two of twenty."""
    confidence_level: float = 0.95
    mde: float = 0.01  # the least difference that the study should find, in the figures' unit
    power: float = 0.8  # chance to find it

    def __post_init__(self) -> None:
        if not 0 <= self.max_unjudged < 1:
            raise UserError(f"--max-unjudged must be at least 0 and below 1, got {self.max_unjudged}")
        if not self.mde > 0:
            raise UserError(f"--mde must be above 0, got {self.mde}: no study finds a difference of nothing")

    @property
    def depth(self) -> int:
        """Pins of each ranking that are looked at."""
        return max(metric.k for metric in self.metrics)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric of one ranking, or of their difference, query by query (treatment - control)."""

    metric: Metric  # such as nDCG@20
    of: str  # control, treatment or difference
    prediction_powered: Estimate | None  # teacher and humans; None: too few human labels
    human_only: Estimate | None  # without the teacher; None: as above
    teacher: Estimate
    """Without humans: the interval is that of the draw of queries, and knows nothing of the teacher's errors."""
    judged_teacher: float | None = None  # judged@k over all queries; None for differences
    judged_humans: float | None = None  # judged@k over the queries that humans labelled; None: there are none


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of `compare`."""

    paired: PairedRankings  # the rankings
    settings: CompareSettings  # as given
    queries: list[QueryKey]  # that were measured
    labelled: np.ndarray  # (num_queries,) bool, by humans, for the first figure
    num_unjudged: int  # queries left out because the teacher's labels of their top pins are missing
    num_few_grades: int  # queries that humans graded, but too few of their top pins to count
    lines: list[Line]  # three per figure
    power_analyses: list[PowerAnalysis | None]  # one per figure; None where the rankings do not differ at all

    def line(self, metric: Metric, of: str) -> Line:
        """One line."""
        return next(line for line in self.lines if line.metric == metric and line.of == of)


def compare(
    paired: PairedRankings, teacher: Judgments, human: Judgments, stratum_of: Mapping[QueryKey, str], settings: CompareSettings
) -> Comparison:  # fmt: skip
    """Measure both rankings and their difference.

    Args:
        teacher: What the teacher says of `paired.pairs(settings.depth)`, and of no other pin (see above).
        human: What humans say, of any queries and pins; a query counts as labelled by humans if they judged the top k of
            both rankings but for `settings.max_unjudged`.

    Raises:
        UserError: the teacher's labels leave fewer than two queries.
    """
    rankings = (paired.control, paired.treatment)
    known = _enough([judged_share(settings.depth, r, teacher, paired.queries) for r in rankings], settings)
    queries = [query for query, ok in zip(paired.queries, known, strict=True) if ok]
    if len(queries) < MIN_PER_STRATUM:
        raise UserError(
            f"the teacher has labels for {len(queries)} of {len(paired.queries):,} queries; are the files' pins those of "
            "the catalogue? (--max-unjudged lets more queries in)"
        )
    names = sorted({stratum_of[query] for query in queries})
    stratum = np.array([names.index(stratum_of[query]) for query in queries], np.int64)
    lines, power_analyses, labelled = [], [], []
    for metric in settings.metrics:
        own, data = _metric_lines(metric, paired, teacher, human, queries, stratum, settings)
        lines += own
        power_analyses.append(
            power_analysis(metric, data, names, settings.mde, settings.power, settings.confidence_level)
        )
        labelled.append(data.labelled)
    few = sum(query in human for query in queries) - int(labelled[0].sum())
    return Comparison(
        paired=paired, settings=settings, queries=queries, labelled=labelled[0],
        num_unjudged=len(paired.queries) - len(queries), num_few_grades=few, lines=lines, power_analyses=power_analyses,
    )  # fmt: skip


def _metric_lines(
    metric: Metric, paired: PairedRankings, teacher: Judgments, human: Judgments, queries: list[QueryKey], stratum: np.ndarray,
    settings: CompareSettings,
) -> tuple[list[Line], QueryMetrics]:  # fmt: skip
    """The lines of one metric, and the differences they rest on."""
    rankings = (paired.control, paired.treatment)
    by_teacher, by_humans = (
        [measure_ranking(metric, r, source, queries) for r in rankings] for source in (teacher, human)
    )
    judged = [[judged_share(metric.k, r, source, queries) for r in rankings] for source in (teacher, human)]
    labelled = np.array([query in human for query in queries]) & _enough(judged[1], settings)
    lines = []
    for number, of in enumerate((CONTROL, TREATMENT, DIFFERENCE)):
        teacher_values, human_values = (
            values[1] - values[0] if of == DIFFERENCE else values[number] for values in (by_teacher, by_humans)
        )
        data = QueryMetrics(teacher=teacher_values, human=np.where(labelled, human_values, np.nan), stratum=stratum)
        few = labelled.sum() < MIN_PER_STRATUM
        single = of != DIFFERENCE
        line = Line(
            metric=metric, of=of, prediction_powered=None if few else ppi_mean(data, settings.confidence_level),
            human_only=None if few else ppi_mean(data.without_teacher(), settings.confidence_level),
            teacher=ppi_mean(as_if_human(data), settings.confidence_level),
            judged_teacher=float(judged[0][number].mean()) if single else None,
            judged_humans=float(judged[1][number][labelled].mean()) if single and labelled.any() else None,
        )  # fmt: skip
        lines.append(line)
    return lines, data


def _enough(shares: list[np.ndarray], settings: CompareSettings) -> np.ndarray:
    return np.minimum(shares[0], shares[1]) >= 1 - settings.max_unjudged - _ROUNDING
