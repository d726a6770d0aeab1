"""Relevance and engagement make one order."""

import numpy as np
import pytest

from ray_app.base.config import BlendConfig
from ray_app.online.blend import UNKNOWN, blend, engagement_scores, order

NAN = np.nan


def test_engagement_adds_up_to_its_weight_in_grades():
    """What the config says is what a pin gains."""
    blended = blend(np.array([3.0, 3.0, 3.0]), np.array([0.0, 1.0, 0.5]), BlendConfig(engagement_weight=0.4))
    assert blended == pytest.approx([3.0, 3.4, 3.2])
    assert blended.dtype == np.float32


def test_a_new_pin_is_neither_punished_nor_favoured():
    """Otherwise nobody would ever meet it, or it would stand above what people like."""
    blended = blend(np.array([3.0, 3.0, 3.0]), np.array([0.1, NAN, 0.9]), BlendConfig())
    assert blended[0] < blended[1] < blended[2]
    assert blended[1] == blend(np.array([3.0]), np.array([UNKNOWN]), BlendConfig())[0]


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


def test_the_best_come_first_and_ties_go_by_pin_id():
    """The same search must show the same list."""
    names = np.array(["b", "c", "a", "d"], dtype=object)
    assert order(np.array([2.0, 3.0, 2.0, 3.0]), names).tolist() == [1, 3, 2, 0]
    assert order(np.array([1.0, 1.0]), ["pin10", "pin9"]).tolist() == [0, 1]


def test_no_candidates_are_in_order():
    """A query may find nothing."""
    assert order(np.zeros(0), []).tolist() == []
    assert blend(np.zeros(0), np.zeros(0), BlendConfig()).tolist() == []


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


def test_the_mean_of_the_catalogue_is_what_unknown_pins_get():
    """If it were not, being unknown would be good or bad."""
    table = np.random.default_rng(0).random((101, 5)).round(1)
    assert engagement_scores(table, np.ones(101, bool)).mean() == pytest.approx(UNKNOWN)


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


def test_a_catalogue_that_nobody_has_met_has_no_scores():
    """The first day of a search engine."""
    assert np.isnan(engagement_scores(rates(0.1, 0.1), np.zeros(2, bool))).all()
    assert engagement_scores(np.zeros((0, 5)), np.zeros(0, bool)).shape == (0,)
