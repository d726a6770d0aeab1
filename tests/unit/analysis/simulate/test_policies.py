"""Rankers: each use of the score must do what its name says, or the trade-off compares nothing."""

import numpy as np
import pytest

from ray_app.analysis.simulate.policies import (  # fmt: skip
    BOOST,
    ENGAGEMENT,
    FEATURE,
    FILTER,
    LOSS_WEIGHT,
    NOT_CHOSEN,
    RELEVANCE,
    Engagement,
    click_weight,
    page,
    percentile,
    policies,
    ranked,
)
from ray_app.base.config import SimulateConfig

PINS = np.array([[True, True, True, False]])
RELEVANCES = np.array([[4.5, 1.5, 3.0, 9.0]])  # the last is no pin
ALONE = np.array([[-2.0, 1.0, 0.0, 9.0]])


def order(scores, num_shown=4):
    return ranked(scores, PINS, num_shown)[0].tolist()


@pytest.fixture
def by_use():
    engagement = Engagement(
        alone=ALONE, of_relevance=RELEVANCES - 3.0, beside_relevance=ALONE, by_loss={1.0: ALONE[:, ::-1], 0.5: ALONE}
    )
    cfg = SimulateConfig(min_scores=[2.0, 5.0], feature_scales=[0.1, 100.0], boost_weights=[0.0, 100.0])
    return {(p.use, p.strength): p.scores for p in policies(RELEVANCES, engagement, PINS, cfg)}


def test_ties_go_by_pin_and_missing_pins_are_never_chosen():
    assert order(np.array([[1.0, 2.0, 2.0, 9.0]])) == [1, 2, 0, NOT_CHOSEN]


def test_page_fills_places_without_a_pin():
    assert page(np.array([[10, 20, 30, 40]]), np.array([[2, 0, NOT_CHOSEN]]), -7).tolist() == [[30, 10, -7]]


@pytest.mark.parametrize(
    ("use", "strength", "pins"),
    [
        (RELEVANCE, None, [0, 2, 1]), (ENGAGEMENT, None, [1, 2, 0]),
        (FILTER, 2.0, [2, 0]), (FILTER, 5.0, []),  # drops below the score, and orders by engagement
        (FEATURE, 0.1, [1, 2, 0]), (FEATURE, 100.0, [0, 2, 1]), (BOOST, 100.0, [1, 2, 0]), (BOOST, 0.0, [0, 2, 1]),
    ],
)  # fmt: skip
def test_each_use_orders_by_relevance_by_engagement_or_between_them(by_use, use, strength, pins):
    assert order(by_use[use, strength]) == pins + [NOT_CHOSEN] * (4 - len(pins))


def test_loss_weight_ranks_by_its_own_model(by_use):
    assert (by_use[LOSS_WEIGHT, 1.0] == ALONE[:, ::-1]).all()


def test_clicks_on_irrelevant_pins_count_for_nothing_and_power_0_weighs_nothing():
    assert click_weight(np.array([1.0, 3.0, 5.0]), 2.0).tolist() == [0.0, 0.25, 1.0]
    assert click_weight(np.array([1.0, 3.0, 5.0]), 0.0).tolist() == [1.0, 1.0, 1.0]


def test_percentiles_ignore_what_is_no_pin():
    assert percentile(ALONE, PINS)[PINS].tolist() == pytest.approx([1 / 6, 5 / 6, 3 / 6])
