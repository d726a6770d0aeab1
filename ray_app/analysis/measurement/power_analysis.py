"""From the differences at hand to a plan in terms of strata that have names, also where no human has labelled yet."""

from dataclasses import dataclass, replace

import numpy as np

from ray_app.analysis.measurement.prediction_powered import (
    MIN_PER_STRATUM,
    QueryMetrics,
    StrataSummary,
    merge_small_strata,
    summarize,
)
from ray_app.analysis.measurement.ranking_metrics import Metric
from ray_app.analysis.measurement.study_design import StudyDesign, design_study, required_queries


@dataclass(frozen=True, kw_only=True)
class PowerAnalysis:
    """Numbers of queries that humans must label to see `mde`; None: not even labels on all these queries would do."""

    metric: Metric  # of whose difference
    mde: float  # in the figure's unit
    with_teacher: StudyDesign | None  # the study needed
    human_only: StudyDesign | None  # the same without the teacher
    num_required_queries: int | None
    """Queries that the files would have to hold, with human labels on all, where `with_teacher` is None."""
    strata: list[str]  # names, in the order of the studies' `by_stratum`
    pilot: StrataSummary  # what it was made from
    stratum: np.ndarray  # (num_queries,) into `strata`
    assumed: bool
    """There are too few human labels: as if their figures varied as the teacher's do, and it helped nothing."""


def power_analysis(
    metric: Metric, data: QueryMetrics, names: list[str], mde: float, power: float, confidence_level: float
) -> PowerAnalysis | None:
    """The plan to see `mde`, in the figure's unit, in differences query by query, whose strata have these names.

    None: they are all alike, so there is no variance to plan with.
    """
    assumed = bool(data.labelled.sum() < MIN_PER_STRATUM)
    kept, _ = merge_small_strata(as_if_human(data) if assumed else data)
    pilot = summarize(kept)
    if not pilot.deviation.any():
        return None
    needed, alone = (
        required_queries(summary, mde, power=power, confidence_level=confidence_level)
        for summary in (pilot, summarize(kept.without_teacher()))
    )
    num_queries = len(data.teacher)
    more = None
    if needed is None:
        all_labelled = design_study(pilot, num_queries, power=power, confidence_level=confidence_level)
        more = int(np.ceil(num_queries * (all_labelled.mde / mde) ** 2))
    strata = [
        " + ".join(sorted({names[old] for old in data.stratum[kept.stratum == new]})) for new in range(len(pilot.share))
    ]
    return PowerAnalysis(
        metric=metric, mde=mde, with_teacher=needed, human_only=alone, num_required_queries=more, strata=strata,
        pilot=pilot, stratum=kept.stratum, assumed=assumed,
    )  # fmt: skip


def as_if_human(data: QueryMetrics) -> QueryMetrics:
    """The teacher's figures as if humans had said so on every query."""
    return replace(data, teacher=np.zeros(len(data.teacher)), human=data.teacher)
