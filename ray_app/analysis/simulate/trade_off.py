"""The trade-offs of four uses of a relevance score beside an engagement score."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.simulate import policies as arms
from ray_app.analysis.simulate.intervals import Resamples
from ray_app.analysis.simulate.logging_policy import Logged, fit_clicks, make_log
from ray_app.analysis.simulate.outcome import CLICKS, FULFILLED, LONG_CLICKS, NDCG, PRECISION, outcomes
from ray_app.analysis.simulate.traffic import Retrieved, Traffic
from ray_app.analysis.simulate.users import Users, click_probs
from ray_app.base.config import SimulateConfig
from ray_app.demo.facts import Numbers

TRADED = (NDCG, PRECISION, CLICKS, LONG_CLICKS, FULFILLED)


class TradeOff(NamedTuple):
    """Metrics and gains of one use of the score at one strength."""

    use: str
    strength: float | None
    metrics: dict[str, Interval]
    gains: dict[str, Interval]  # relative to relevance alone


@dataclass(frozen=True, kw_only=True)
class RankerScores:
    """Scores and features of the rankers; (num_queries, num_candidates) but `features`, where there is a pin."""

    control: Numbers  # expected grades by the feature-only student
    treatment: Numbers  # by the student
    features: NDArray[np.float32]  # (num_pairs, num_features), pair after pair where `Retrieved.is_pin`


def trade_offs(
    traffic: Traffic, found: Retrieved, scores: RankerScores, engagement: arms.Engagement, users: Users, cfg: SimulateConfig,
    settings: EvaluationSettings,
) -> Iterator[TradeOff]:  # fmt: skip
    """Every use of the treatment's score beside engagement, before the same people."""
    resamples = Resamples(traffic.clusters[traffic.query_of], settings)
    alone = outcomes(scores.treatment, traffic, found, users)
    for policy in arms.policies(scores.treatment, engagement, found.is_pin, cfg):
        got = outcomes(policy.scores, traffic, found, users)
        gains = {name: resamples.gain(alone[name], got[name]) for name in TRADED}
        yield TradeOff(policy.use, policy.strength, {name: resamples.mean(got[name]) for name in TRADED}, gains)


def learn_engagement(
    traffic: Traffic, found: Retrieved, scores: RankerScores, users: Users, cfg: SimulateConfig, seed: int
) -> tuple[arms.Engagement, Logged]:
    """Models of the clicks on the pages before the experiment: without the relevance score, with it, and weighed by it.

    They see the features of both students and how often people did what with each pin, but no grade.
    """
    log = make_log(traffic, found, scores.control, users, cfg, seed)
    pin = found.pins[found.is_pin]
    relevance = scores.treatment[found.is_pin]
    x = _standard(np.column_stack([scores.features, log.rates[pin]]))
    clicks, impressions = log.clicks[found.is_pin], log.impressions[found.is_pin]

    def spread(values: Numbers) -> Numbers:
        out = np.zeros(found.pins.shape)
        out[found.is_pin] = values
        return out

    def without(weight: Numbers | float) -> Numbers:
        beta = fit_clicks(x, clicks * weight, impressions)
        return spread(x @ beta[:-1] + beta[-1])

    score = _standard(relevance[:, None])
    beta = fit_clicks(np.column_stack([x, score]), clicks, impressions)
    models = arms.Engagement(
        alone=without(1.0),
        of_relevance=spread(score[:, 0] * beta[-2]),
        beside_relevance=spread(x @ beta[:-2] + beta[-1]),
        by_loss={power: without(arms.click_weight(relevance, power)) for power in cfg.loss_powers},
    )
    return models, log


def people(seed: int, num_pins: int, cfg: SimulateConfig) -> tuple[Users, Users]:
    """People as in the world's log, and people who also fall for appeal."""
    return Users(seed=seed, click_prob=np.zeros(num_pins)), Users(
        seed=seed, click_prob=click_probs(seed, num_pins, cfg.clickbait)
    )


def _standard(x: NDArray[np.floating]) -> Numbers:
    """Columns with mean 0 and deviation 1; a constant one is 0."""
    x = np.asarray(x, np.float64)
    spread = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)
