"""Treatment effect by country and user group."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.corrections import holm
from ray_app.analysis.simulate.intervals import Resamples
from ray_app.analysis.simulate.outcome import FULFILLED, NDCG, PRECISION
from ray_app.analysis.simulate.traffic import Traffic, country
from ray_app.demo.facts import Numbers

COMPARED = (NDCG, PRECISION, FULFILLED)
ALL, LABELLED, UNLABELLED = "all", "labelled countries", "unlabelled countries"
IN_LOG, UNSEEN = "queries of the log", "unseen queries"


class Gain(NamedTuple):
    """One figure under both arms."""

    control: float
    treatment: float
    gain: Interval  # relative
    p: float  # of no difference
    p_adjusted: float | None  # Holm, over the countries; None: not one of them


@dataclass(frozen=True, kw_only=True)
class SearchSlice:
    """Gains of the treatment in a part of the searches."""

    name: str
    is_country: bool
    has_labels: bool | None  # whether humans labelled pairs of one of its locales; None: of a part
    num_searches: int
    num_queries: int
    gains: dict[str, Gain]  # by figure
    unpaired: dict[str, Interval]  # relative gains, as if each arm had people of its own


def compare_arms(
    traffic: Traffic, control: Mapping[str, Numbers], treatment: Mapping[str, Numbers], labelled: Collection[str],
    settings: EvaluationSettings,
) -> list[SearchSlice]:  # fmt: skip
    """Gains in all searches, in parts of them, and in each country, the one with most searches first.

    `control` and `treatment` are `outcomes` of both arms, `labelled` the locales with human labels.
    """
    where = np.array([country(locale) for locale in traffic.locales])[traffic.query_of]
    with_labels = sorted({country(locale) for locale in labelled})
    is_labelled, unseen = np.isin(where, with_labels), traffic.is_unseen[traffic.query_of]
    names, sizes = np.unique(where, return_counts=True)
    parts: list[tuple[str, NDArray[np.bool_], bool, bool | None]] = [
        (ALL, np.ones(len(where), bool), False, None), (LABELLED, is_labelled, False, True),
        (UNLABELLED, ~is_labelled, False, False), (IN_LOG, ~unseen, False, None), (UNSEEN, unseen, False, None),
    ]  # fmt: skip
    by_size = map(str, names[np.argsort(-sizes, kind="stable")])
    parts += [(name, where == name, True, name in with_labels) for name in by_size]
    clusters = traffic.clusters[traffic.query_of]
    measured = []
    for name, mask, is_country, has_labels in parts:
        if not mask.any():
            continue
        pairs = {metric: (control[metric][mask], treatment[metric][mask]) for metric in COMPARED}
        resamples = Resamples(clusters[mask], settings)
        gains = {
            metric: Gain(
                float(a.mean()), float(b.mean()), resamples.gain(a, b), resamples.p_value(a, b), p_adjusted=None
            )
            for metric, (a, b) in pairs.items()
        }
        unpaired = {metric: resamples.gain(a, b, paired=False) for metric, (a, b) in pairs.items()}
        measured.append(
            SearchSlice(
                name=name, is_country=is_country, has_labels=has_labels, num_searches=int(mask.sum()),
                num_queries=resamples.num_queries, gains=gains, unpaired=unpaired,
            )
        )  # fmt: skip
    return with_holm(measured)


def with_holm(slices: list[SearchSlice]) -> list[SearchSlice]:
    """With Holm's p values, over the countries, figure by figure."""
    countries = [part for part in slices if part.is_country]
    for metric in COMPARED:
        adjusted = holm([part.gains[metric].p for part in countries])
        for part, p in zip(countries, adjusted, strict=True):
            part.gains[metric] = part.gains[metric]._replace(p_adjusted=p)
    return slices
