"""The people of the simulation: if they do not click as documented, the experiment is about somebody else."""

import numpy as np
import pytest

from ray_app.analysis.simulate.traffic import NO_PIN
from ray_app.analysis.simulate.users import Users, click_probs
from ray_app.base.config import ClickbaitConfig
from ray_app.demo.log import CLICK, ETA, LONG_CLICK, SAVE

SEARCHES = np.arange(40_000)
PLAIN = Users(seed=3, click_prob=np.zeros(100))


def pages(pins, searches=SEARCHES):
    return np.broadcast_to(np.asarray(pins), (len(searches), len(pins)))


def interact(users, pins, grade):
    return users.interact(SEARCHES, pages(pins), np.full((len(SEARCHES), len(pins)), grade))


def test_position_bias_is_that_of_the_log():
    """Pages of equally good pins: clicks by position must fall as position ** -ETA."""
    share = interact(PLAIN, np.arange(20), 5).click.mean(axis=0)
    slope = np.polyfit(np.log(np.arange(20) + 1.0), np.log(share), 1)[0]
    assert slope == pytest.approx(-ETA, abs=0.03)


@pytest.mark.parametrize("grade", [1, 2, 3, 4, 5])
def test_the_first_pin_is_clicked_by_its_grade(grade):
    """The first position is always looked at."""
    did = interact(PLAIN, [7], grade)
    clicked = did.click[:, 0]
    assert clicked.mean() == pytest.approx(CLICK[grade - 1], abs=0.01)
    assert did.long_click[clicked, 0].mean() == pytest.approx(LONG_CLICK[grade - 1], abs=0.06)
    assert did.save[clicked, 0].mean() == pytest.approx(SAVE[grade - 1], abs=0.06)


def test_a_person_likes_a_pin_wherever_it_stands():
    """Draws that belonged to the position would let two good arms differ by luck alone."""
    first, second = interact(PLAIN, [1, 2], 4), interact(PLAIN, [2, 1], 4)
    # Each of the pins stands first, where everybody looks, on one of the pages.
    assert (first.click[:, 0][second.click[:, 1]]).all()
    assert (second.click[:, 0][first.click[:, 1]]).all()


def test_equal_pages_have_equal_outcomes_and_another_seed_other_ones():
    one, again = interact(PLAIN, [1, 2, 3], 4), interact(PLAIN, [1, 2, 3], 4)
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    other = interact(Users(seed=4, click_prob=PLAIN.click_prob), [1, 2, 3], 4)
    assert (one.click != other.click).any()


def test_nothing_happens_where_there_is_no_pin():
    """NO_PIN is -1, which numpy reads as the last pin."""
    users = Users(seed=3, click_prob=np.ones(100))
    did = users.interact(SEARCHES, pages([5, NO_PIN, NO_PIN]), pages([5, 0, 0]))
    assert did.click[:, 0].any()
    assert not any(user_actions[:, 1:].any() for user_actions in did)


LURING = Users(seed=3, click_prob=np.where(np.arange(100) == 7, 0.4, 0.0))


def test_appeal_draws_clicks_that_lead_to_nothing():
    plain, lured = interact(PLAIN, [7], 1), interact(LURING, [7], 1)
    assert lured.click.mean() == pytest.approx(1 - (1 - 0.4) * (1 - CLICK[0]), abs=0.01)
    assert lured.fulfilled.mean() < 0.03
    assert (lured.click | ~plain.click).all()


def test_appeal_takes_nothing_from_those_who_want_the_pin():
    """A relevant pin with appeal must fulfil whom it would have fulfilled without."""
    plain, lured = interact(PLAIN, [7], 5), interact(LURING, [7], 5)
    assert (lured.long_click | ~plain.long_click).all()
    assert (lured.save | ~plain.save).all()


def test_a_share_of_the_pins_has_appeal_and_without_the_section_none():
    found = click_probs(1, 20_000, ClickbaitConfig(fraction=0.1, click_prob=0.3))
    assert set(np.unique(found)) == {0.0, 0.3}
    assert (found > 0).mean() == pytest.approx(0.1, abs=0.01)
    assert not click_probs(1, 20_000, None).any()
