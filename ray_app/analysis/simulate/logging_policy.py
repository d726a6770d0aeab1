"""A model of engagement, learned from the clicks on pages that an old ranker showed before the experiment.

Clicks are weighed by inverse propensity: one at a position that few look at stands for many that were not made. The
propensities are the user model's own; on a real site they must be estimated first.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ray_app.analysis.simulate.outcome import SHOWN
from ray_app.analysis.simulate.policies import page, ranked
from ray_app.analysis.simulate.traffic import NO_PIN, Retrieved, Stream, Traffic
from ray_app.analysis.simulate.users import Users
from ray_app.base.config import EngagementConfig, SimulateConfig
from ray_app.base.hashing import uniform
from ray_app.demo.facts import Numbers
from ray_app.demo.log import ETA
from ray_app.features.engagement_rates import engagement_rates

_RIDGE = 1.0  # guessed: one impression's worth on each standardised feature
_NEWTON_STEPS = 30


@dataclass(frozen=True, kw_only=True)
class Logged:
    """The log's evidence on each pair (query, candidate), and of each pin."""

    impressions: Numbers  # (num_queries, num_candidates) times shown
    clicks: Numbers  # likewise, each click counted 1 / propensity
    rates: NDArray[np.float32]
    """(num_pins, 5) `engagement_rates` of an earlier part of the log, so that no click is both told and asked."""
    num_clicks: int  # clicks as they were made, of the later part


def propensity(num_shown: int) -> Numbers:
    """Chance that each position is looked at; (num_shown,)."""
    return np.asarray((np.arange(num_shown) + 1.0) ** -ETA)


def make_log(
    traffic: Traffic, found: Retrieved, control: Numbers, users: Users, cfg: SimulateConfig, seed: int,
    num_shown: int = SHOWN,
) -> Logged:  # fmt: skip
    """Show the control's pages, by its scores (num_queries, num_candidates) with noise, to people, and note what they do.

    The first half of the searches gives the pins' rates, the second the pairs' clicks.
    """
    pins, rows = found.pins[traffic.query_of], traffic.query_of
    keys = traffic.search[:, None].astype(np.uint64), pins.astype(np.uint64)
    drawn = uniform(seed % 2**64, Stream.LOG_NOISE, *keys)
    noise = -np.log(-np.log(drawn * (1 - 2e-12) + 1e-12))
    chosen = ranked(control[rows] + cfg.logging_policy_noise * noise, pins != NO_PIN, num_shown)
    shown = page(pins, chosen, NO_PIN)
    user_actions = users.interact(traffic.search, shown, page(found.grades[rows], chosen, 0))
    early = np.arange(len(rows)) < len(rows) // 2
    actions = {"impression": shown != NO_PIN, **user_actions._asdict()}
    events = [pd.DataFrame({"pin": shown[early][did[early]], "action": name}) for name, did in actions.items()]
    rates, _ = engagement_rates(pd.concat(events), len(users.click_prob), EngagementConfig().prior_impressions)

    late = ~early[:, None] & (shown != NO_PIN)
    at = np.broadcast_to(rows[:, None], shown.shape)[late], chosen[late]
    counts = np.zeros((2, *found.pins.shape))
    np.add.at(counts[0], at, 1.0)
    weight = user_actions.click / propensity(shown.shape[1])
    np.add.at(counts[1], at, weight[late])
    return Logged(impressions=counts[0], clicks=counts[1], rates=rates, num_clicks=int(user_actions.click[late].sum()))


def fit_clicks(x: NDArray[np.floating], clicks: Numbers, impressions: Numbers) -> Numbers:
    """Coefficients of a logistic regression of clicks on features, the intercept last; by Newton's method.

    The loss of a pair is impressions x log(1 + e^z) - clicks x z: that of a click rate of clicks / impressions, convex
    also where inverse propensities make it more than 1.

    Args:
        x: (n, num_features), of about one scale.
        clicks: (n,) weighed, at least 0.
        impressions: (n,) at least 0.

    Raises:
        ValueError: there is no click, or no impression: nothing can be learned.
    """
    if not clicks.sum() > 0 or not impressions.sum() > 0:
        raise ValueError("the log has no click to learn from; raise simulate.num_logged_searches")
    seen = impressions > 0
    x = np.column_stack([x[seen].astype(np.float64), np.ones(int(seen.sum()))])
    clicks, impressions = clicks[seen], impressions[seen]
    ridge = np.append(np.full(x.shape[1] - 1, _RIDGE), 1e-6)

    def loss(beta: Numbers) -> float:
        z = x @ beta
        return float(impressions @ np.logaddexp(0.0, z) - clicks @ z + ridge @ beta**2 / 2)

    rate = min(clicks.sum() / impressions.sum(), 0.5)
    beta = np.append(np.zeros(x.shape[1] - 1), np.log(rate / (1 - rate)))
    for _ in range(_NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-(x @ beta)))
        gradient = x.T @ (impressions * p - clicks) + ridge * beta
        curvature = x.T @ (x * (impressions * p * (1 - p))[:, None]) + np.diag(ridge)
        step, before = np.linalg.solve(curvature, gradient), loss(beta)
        size = 1.0
        while loss(beta - size * step) > before and size > 1e-6:
            size /= 2
        beta = beta - size * step
        if before - loss(beta) < 1e-9 * abs(before):
            break
    return np.asarray(beta)
