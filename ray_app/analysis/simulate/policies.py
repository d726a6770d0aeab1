"""Rankers: the two arms of the experiment, and four uses of a relevance score beside an engagement score.

Arrays are (num_queries, num_candidates) unless they say otherwise; whatever stands where there is no pin is ignored.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_app.base.config import BlendConfig, SimulateConfig
from ray_app.base.schemas import NUM_GRADES
from ray_app.demo.facts import Codes, Numbers
from ray_app.online.blend import blend

RELEVANCE, ENGAGEMENT = "relevance", "engagement"  # one score alone
FILTER, FEATURE, LOSS_WEIGHT, BOOST = "filter", "feature", "loss_weight", "boost"
USES = (FILTER, FEATURE, LOSS_WEIGHT, BOOST)
NOT_CHOSEN = -1


class Policy(NamedTuple):
    """One way to rank."""

    use: str
    strength: float | None
    scores: Numbers  # (num_queries, num_candidates), -inf: not shown at all


class Engagement(NamedTuple):
    """Log-odds of a click by models of the log, (num_queries, num_candidates) each."""

    alone: Numbers  # knows no relevance score
    of_relevance: Numbers  # of a second model: what the relevance score adds
    beside_relevance: Numbers  # of the same: all else
    by_loss: dict[float, Numbers]  # power -> of models without the score, but clicks weighed by it


def ranked(scores: Numbers, is_pin: NDArray[np.bool_], num_shown: int) -> Codes:
    """Columns of the best candidates, (num_queries, num_shown); NOT_CHOSEN where none is left.

    Of equal scores the one further left comes first; `Retrieved` is in the order of pins.
    """
    keyed = np.where(is_pin, scores, -np.inf)
    order = np.argsort(-keyed, axis=1, kind="stable")[:, :num_shown]
    return np.where(np.take_along_axis(keyed, order, axis=1) > -np.inf, order, NOT_CHOSEN)


def page(values: Codes, chosen: Codes, absent: int) -> Codes:
    """Values of the chosen candidates, `absent` where none was."""
    found = np.take_along_axis(values, np.maximum(chosen, 0), axis=1)
    return np.where(chosen == NOT_CHOSEN, absent, found)


def click_weight(relevance: Numbers, power: float) -> Numbers:
    """Weight of a click on a pin of that expected grade when the loss is weighed: 1 for grade 5, 0 for grade 1."""
    return np.asarray(((relevance - 1.0) / (NUM_GRADES - 1.0)) ** power)


def policies(
    relevance: Numbers, engagement: Engagement, is_pin: NDArray[np.bool_], cfg: SimulateConfig
) -> Iterator[Policy]:
    """Either score alone, then the uses, each at all of its strengths, the weakest part of relevance first."""
    yield Policy(RELEVANCE, None, relevance)
    yield Policy(ENGAGEMENT, None, engagement.alone)
    for least in sorted(cfg.min_scores):
        yield Policy(FILTER, least, np.where(relevance >= least, engagement.alone, -np.inf))
    for scale in sorted(cfg.feature_scales):
        yield Policy(FEATURE, scale, engagement.beside_relevance + scale * engagement.of_relevance)
    for power in sorted(engagement.by_loss):
        yield Policy(LOSS_WEIGHT, power, engagement.by_loss[power])
    met = percentile(engagement.alone, is_pin)
    for weight in sorted(cfg.boost_weights, reverse=True):
        scores = np.full(relevance.shape, -np.inf)
        scores[is_pin] = blend(relevance[is_pin], met[is_pin], BlendConfig(engagement_weight=weight))
        yield Policy(BOOST, weight, scores)


def percentile(values: Numbers, is_pin: NDArray[np.bool_]) -> Numbers:
    """Share of all pairs with a lower value, as `blend` expects it: 0..1, the same scale for all queries."""
    out = np.zeros(values.shape)
    ranks = np.argsort(np.argsort(values[is_pin], kind="stable"), kind="stable")
    out[is_pin] = (ranks + 0.5) / max(len(ranks), 1)
    return out
