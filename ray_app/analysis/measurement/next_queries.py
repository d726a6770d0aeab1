"""Queries that humans should label next: at random within each stratum, as many of each as Neyman's rule says.

Where labels do not suffice for MIN_PER_STRATUM in each, the draw is a plain one: `ppi_mean` takes strata with fewer together,
as drawn at one rate, and with a plain draw they are.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ray_app.analysis.measurement.compare import Comparison
from ray_app.analysis.measurement.power_analysis import PowerAnalysis
from ray_app.analysis.measurement.prediction_powered import MIN_PER_STRATUM
from ray_app.analysis.measurement.ranking_metrics import Judgments
from ray_app.analysis.measurement.study_design import design_study
from ray_app.base.errors import UserError
from ray_app.base.hashing import text_keys, uniform

NEXT_QUERIES = ("query", "locale", "stratum")


def draw_queries(found: Comparison, number: int, seed: int) -> list[dict[str, str]]:
    """`number` queries without human labels, or all that are left.

    A query's random number belongs to the query and the seed. So a second round, after the first is labelled, continues where
    the first ended, and both together are one random draw.

    Returns:
        Rows of NEXT_QUERIES, sorted.

    Raises:
        UserError: `number` is below 1, or the rankings do not differ.
    """
    if number < 1:
        raise UserError(f"--num-next-queries must be at least 1, got {number}")
    analysis = found.power_analyses[0]
    if analysis is None:
        raise UserError(
            "--num-next-queries: the two rankings do not differ in any query that was measured; there is nothing to label"
        )
    counts = next_counts(analysis, found.labelled, number)
    lots = uniform(text_keys([f"{locale}\0{query}" for query, locale in found.queries], "next queries"), seed)
    free = np.flatnonzero(~found.labelled)
    order = free[np.argsort(lots[free], kind="stable")]
    chosen = order[:number].tolist()
    if counts is not None:
        members = (order[analysis.stratum[order] == stratum] for stratum in range(len(counts)))
        chosen = [i for rows, count in zip(members, counts, strict=True) for i in rows[:count].tolist()]
    values = ((*found.queries[i], analysis.strata[analysis.stratum[i]]) for i in chosen)
    rows = [dict(zip(NEXT_QUERIES, row, strict=True)) for row in values]
    return sorted(rows, key=lambda row: (row["stratum"], row["query"], row["locale"]))


def pairs_to_grade(
    found: Comparison, chosen: Sequence[Mapping[str, str]], human: Judgments, seed: int
) -> list[dict[str, str]]:
    """List the pairs to grade of the chosen queries: the top of both rankings without what humans have graded.

    Returns:
        Rows with query, locale, pin_id; the pins of a query in random order, so that nobody sees whose they are.
    """
    wanted = {(row["query"], row["locale"]) for row in chosen}
    pairs = [
        (query, pin)
        for query, pin in found.paired.pairs(found.settings.depth)
        if query in wanted and pin not in human.get(query, {})
    ]
    lots = uniform(text_keys([f"{query[1]}\0{query[0]}\0{pin}" for query, pin in pairs], "pairs to grade"), seed)
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i][0], lots[i]))
    return [{"query": pairs[i][0][0], "locale": pairs[i][0][1], "pin_id": pairs[i][1]} for i in order]


def next_counts(analysis: PowerAnalysis, labelled: np.ndarray, number: int) -> np.ndarray | None:
    """Count the queries that each stratum still needs: what Neyman's rule gives to all, less what is there.

    Returns:
        (num_strata,) int64; None: they do not suffice for MIN_PER_STRATUM in each stratum.
    """
    sizes, have = (
        np.bincount(rows, minlength=len(analysis.strata)) for rows in (analysis.stratum, analysis.stratum[labelled])
    )
    room = sizes - have
    number = min(number, int(room.sum()))
    counts = np.clip(MIN_PER_STRATUM - have, 0, room)
    if counts.sum() > number:
        return None
    lack = np.maximum(design_study(analysis.pilot, int(have.sum()) + number).by_stratum - have, 0).astype(np.float64)
    for _ in range(number - int(counts.sum())):  # one by one (d'Hondt): in proportion, and never more than there are
        weights = lack if (lack * (counts < room)).any() else room.astype(np.float64)
        counts[int(np.argmax(np.where(counts < room, weights / (counts + 1), -1.0)))] += 1
    return counts
