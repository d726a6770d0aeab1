"""Relevance and engagement make one order."""

import numpy as np
import pytest

from ray_app.base.config import BlendConfig
from ray_app.online.blend import blend, engagement_scores

NAN = np.nan


def test_a_much_more_relevant_pin_stays_ahead_of_a_popular_one():
    """Popular pins must not flood every query."""
    blended = blend(np.array([4.0, 3.5]), np.array([0.0, 1.0]), BlendConfig())
    assert blended[0] > blended[1]


def test_a_pin_is_blended_as_it_is_alone():
    """Its place must not depend on which other candidates are scored with it."""
    rng = np.random.default_rng(0)
    scores, engagement = rng.uniform(1, 5, 50), np.where(rng.random(50) < 0.3, NAN, rng.random(50))
    alone = [blend(scores[i : i + 1], engagement[i : i + 1], BlendConfig())[0] for i in range(50)]
    assert blend(scores, engagement, BlendConfig()).tolist() == alone


def test_lists_of_other_lengths_are_refused():
    """One would silently be spread over the other."""
    with pytest.raises(ValueError, match="equally long"):
        blend(np.ones(3), np.ones(1), BlendConfig())


def rates(*saves, hides=None):
    table = np.zeros((len(saves), 5), np.float32)
    table[:, 3] = saves
    table[:, 4] = hides if hides is not None else 0
    return table


def test_engagement_is_the_pins_place_among_those_that_were_met():
    """Solved by hand: places 1 and 2 of 3 pins that were met are the percentiles 1/6, 1/2, 5/6."""
    scores = engagement_scores(rates(0.5, 0.1, 0.9, 0.2), np.array([True, True, False, True]))
    assert scores[[0, 1, 3]] == pytest.approx([5 / 6, 1 / 6, 1 / 2])
    assert np.isnan(scores[2])


def test_a_part_of_the_pins_is_as_engaging_as_in_the_whole():
    """Else a pin's place in a search would depend on which shard holds it."""
    table = np.random.default_rng(0).random((60, 5)).round(1).astype(np.float32)
    known = np.arange(60) % 4 > 0
    whole = engagement_scores(table, known)
    for part in (slice(0, 7), slice(7, 60)):
        np.testing.assert_array_equal(engagement_scores(table[part], known[part], table[known]), whole[part])


def test_equal_rates_are_equally_engaging():
    """Pins that differ in nothing must not differ here by their row."""
    assert engagement_scores(rates(0.2, 0.2, 0.2), np.ones(3, bool)).tolist() == [0.5, 0.5, 0.5]


def test_a_hidden_pin_is_less_engaging():
    """People said that they do not want to see it."""
    scores = engagement_scores(rates(0.2, 0.2, hides=[0.1, 0.0]), np.ones(2, bool))
    assert scores[0] < scores[1]
