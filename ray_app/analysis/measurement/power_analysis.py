"""From the differences at hand to a plan in terms of strata that have names, also where no human has labelled yet."""

from dataclasses import dataclass, replace

import numpy as np

from ray_app.analysis.measurement.prediction_powered import (
    MIN_PER_STRATUM,
    QueryFigures,
    StrataSummary,
    merge_small_strata,
    summarise,
)
from ray_app.analysis.measurement.ranking_metrics import Figure
from ray_app.analysis.measurement.study_design import Study, queries_needed, study


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many queries humans must label to see `change`; None: not even labels on all these queries would do."""

    figure: Figure  # of whose difference
    change: float  # in the figure's unit
    with_teacher: Study | None  # the study needed
    humans_alone: Study | None  # the same without the teacher
    num_queries_needed: int | None
    """Queries that the files would have to hold, with human labels on all, where `with_teacher` is None."""
    strata: list[str]  # names, in the order of the studies' `by_stratum`
    pilot: StrataSummary  # what it was made from
    stratum: np.ndarray  # (num_queries,) into `strata`
    assumed: bool
    """There are too few human labels: as if their figures varied as the teacher's do, and it helped nothing."""


def plan_change(
    figure: Figure, data: QueryFigures, names: list[str], change: float, power: float, confidence: float
) -> Plan | None:
    """The plan to see `change`, in the figure's unit, in differences query by query, whose strata have these names.

    None: they are all alike, so there is no variance to plan with.
    """
    assumed = bool(data.labelled.sum() < MIN_PER_STRATUM)
    kept, _ = merge_small_strata(as_if_human(data) if assumed else data)
    pilot = summarise(kept)
    if not pilot.deviation.any():
        return None
    needed, alone = (
        queries_needed(summary, change, power=power, confidence=confidence)
        for summary in (pilot, summarise(kept.without_teacher()))
    )
    num_queries = len(data.teacher)
    more = None
    if needed is None:
        all_labelled = study(pilot, num_queries, power=power, confidence=confidence)
        more = int(np.ceil(num_queries * (all_labelled.detectable / change) ** 2))
    strata = [
        " + ".join(sorted({names[old] for old in data.stratum[kept.stratum == new]})) for new in range(len(pilot.share))
    ]
    return Plan(
        figure=figure, change=change, with_teacher=needed, humans_alone=alone, num_queries_needed=more, strata=strata,
        pilot=pilot, stratum=kept.stratum, assumed=assumed,
    )  # fmt: skip


def as_if_human(data: QueryFigures) -> QueryFigures:
    """The teacher's figures as if humans had said so on every query."""
    return replace(data, teacher=np.zeros(len(data.teacher)), human=data.teacher)
