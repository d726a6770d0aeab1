"""Two rankings of the same queries, measured together: the teacher's labels on all queries, corrected by humans on some.

contest = Contest.of(control, treatment, missing="refuse")
found = compare(contest, teacher, human, stratum_of, CompareSettings())

The teacher's pool of a query must be the same set for every query: the top of both rankings, and nothing that was labelled
for another reason. Soft labels of a run are more for some queries than for others (those held out have none at all); with
them the teacher's figure would be another measure where humans labelled, and what looks like its error would not be one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ray_app.analysis.measurement.paired_rankings import Contest
from ray_app.analysis.measurement.power_analysis import Plan, as_if_human, plan_change
from ray_app.analysis.measurement.prediction_powered import MIN_PER_STRATUM, Estimate, QueryFigures, estimate
from ray_app.analysis.measurement.ranking_metrics import Figure, Judgements, judged_share, measure_ranking
from ray_app.analysis.measurement.rankings import QueryKey
from ray_app.analysis.metrics.protocol import NDCG_CUTOFF, PRECISION_CUTOFF
from ray_app.base.errors import UserError

CONTROL, TREATMENT, DIFFERENCE = "control", "treatment", "difference"
FIGURES = (Figure(kind="ndcg", k=NDCG_CUTOFF), Figure(kind="p", k=PRECISION_CUTOFF))
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """What decides the figures besides rankings and labels."""

    figures: tuple[Figure, ...] = FIGURES  # to measure; plans and the choice of queries follow the first
    max_unjudged: float = 0.1
    """Of the top k of either ranking; a query with a larger share without labels is left out. Guessed: two of twenty."""
    confidence: float = 0.95
    change: float = 0.01  # the least difference that the study should find, in the figures' unit
    power: float = 0.8  # chance to find it

    def __post_init__(self) -> None:
        if not 0 <= self.max_unjudged < 1:
            raise UserError(f"--max-unjudged must be at least 0 and below 1, got {self.max_unjudged}")
        if not self.change > 0:
            raise UserError(f"--change must be above 0, got {self.change}: no study finds a difference of nothing")

    @property
    def depth(self) -> int:
        """Pins of each ranking that are looked at."""
        return max(figure.k for figure in self.figures)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure of one ranking, or of their difference, query by query (treatment - control)."""

    figure: Figure  # such as nDCG@20
    of: str  # control, treatment or difference
    together: Estimate | None  # teacher and humans; None: too few human labels
    humans: Estimate | None  # without the teacher; None: as above
    teacher: Estimate
    """Without humans: the interval is that of the draw of queries, and knows nothing of the teacher's errors."""
    judged_teacher: float | None = None  # judged@k over all queries; None for differences
    judged_humans: float | None = None  # judged@k over the queries that humans labelled; None: there are none


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found."""

    contest: Contest  # the rankings
    settings: CompareSettings  # as given
    queries: list[QueryKey]  # that were measured
    labelled: np.ndarray  # (num_queries,) bool, by humans, for the first figure
    num_unjudged: int  # queries left out because the teacher's labels of their top pins are missing
    num_few_grades: int  # queries that humans graded, but too few of their top pins to count
    lines: list[Line]  # three per figure
    plans: list[Plan | None]  # one per figure; None where the rankings do not differ at all

    def line(self, figure: Figure, of: str) -> Line:
        """One line."""
        return next(line for line in self.lines if line.figure == figure and line.of == of)


def compare(
    contest: Contest, teacher: Judgements, human: Judgements, stratum_of: Mapping[QueryKey, str], settings: CompareSettings
) -> Comparison:  # fmt: skip
    """Measure both rankings and their difference.

    Args:
        teacher: What the teacher says of `contest.pairs(settings.depth)`, and of no other pin (see above).
        human: What humans say, of any queries and pins; a query counts as labelled by humans if they judged the top k of
            both rankings but for `settings.max_unjudged`.

    Raises:
        UserError: the teacher's labels leave fewer than two queries.
    """
    rankings = (contest.control, contest.treatment)
    known = _enough([judged_share(settings.depth, r, teacher, contest.queries) for r in rankings], settings)
    queries = [query for query, ok in zip(contest.queries, known, strict=True) if ok]
    if len(queries) < MIN_PER_STRATUM:
        raise UserError(
            f"the teacher has labels for {len(queries)} of {len(contest.queries):,} queries; are the files' pins those of "
            "the catalogue? (--max-unjudged lets more queries in)"
        )
    names = sorted({stratum_of[query] for query in queries})
    stratum = np.array([names.index(stratum_of[query]) for query in queries], np.int64)
    lines, plans, labelled = [], [], []
    for figure in settings.figures:
        own, data = _figure_lines(figure, contest, teacher, human, queries, stratum, settings)
        lines += own
        plans.append(plan_change(figure, data, names, settings.change, settings.power, settings.confidence))
        labelled.append(data.labelled)
    few = sum(query in human for query in queries) - int(labelled[0].sum())
    return Comparison(
        contest=contest, settings=settings, queries=queries, labelled=labelled[0],
        num_unjudged=len(contest.queries) - len(queries), num_few_grades=few, lines=lines, plans=plans,
    )  # fmt: skip


def _figure_lines(
    figure: Figure, contest: Contest, teacher: Judgements, human: Judgements, queries: list[QueryKey], stratum: np.ndarray,
    settings: CompareSettings,
) -> tuple[list[Line], QueryFigures]:  # fmt: skip
    """The lines of one figure, and the differences they rest on."""
    rankings = (contest.control, contest.treatment)
    by_teacher, by_humans = (
        [measure_ranking(figure, r, source, queries) for r in rankings] for source in (teacher, human)
    )
    judged = [[judged_share(figure.k, r, source, queries) for r in rankings] for source in (teacher, human)]
    labelled = np.array([query in human for query in queries]) & _enough(judged[1], settings)
    lines = []
    for number, of in enumerate((CONTROL, TREATMENT, DIFFERENCE)):
        teacher_values, human_values = (
            values[1] - values[0] if of == DIFFERENCE else values[number] for values in (by_teacher, by_humans)
        )
        data = QueryFigures(teacher=teacher_values, human=np.where(labelled, human_values, np.nan), stratum=stratum)
        few = labelled.sum() < MIN_PER_STRATUM
        single = of != DIFFERENCE
        line = Line(
            figure=figure, of=of, together=None if few else estimate(data, settings.confidence),
            humans=None if few else estimate(data.without_teacher(), settings.confidence),
            teacher=estimate(as_if_human(data), settings.confidence),
            judged_teacher=float(judged[0][number].mean()) if single else None,
            judged_humans=float(judged[1][number][labelled].mean()) if single and labelled.any() else None,
        )  # fmt: skip
        lines.append(line)
    return lines, data


def _enough(shares: list[np.ndarray], settings: CompareSettings) -> np.ndarray:
    return np.minimum(shares[0], shares[1]) >= 1 - settings.max_unjudged - _ROUNDING
