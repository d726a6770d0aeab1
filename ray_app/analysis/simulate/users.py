"""Actions of people on a page: the user model of the world's log, the same person before every arm.

Two things differ from the log (`ray_app.demo.log`), whose constants and draws are used:
- Whether a person likes a pin belongs to person and pin, not to person and position. How likely each action is stays
  the same; but who likes a pin under one arm likes it under the other, wherever it stands. So arms are compared in pairs.
- Pins may have appeal (`ClickbaitConfig`): a person who looks at such a pin clicks it with chance `click_prob` whatever it shows.
  Who clicked for that alone stays and saves as on a pin of grade 1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_app.analysis.simulate.traffic import NO_PIN, Stream
from ray_app.base.config import ClickbaitConfig
from ray_app.base.hashing import uniform
from ray_app.demo.facts import Codes, Numbers
from ray_app.demo.log import examination, intents

Flags = NDArray[np.bool_]


class UserActions(NamedTuple):
    """Actions at each position, bool arrays of shape (num_searches, num_shown)."""

    click: Flags
    long_click: Flags
    save: Flags
    hide: Flags

    @property
    def fulfilled(self) -> Flags:
        """(num_searches,) whether there was a long click or a save."""
        return np.asarray((self.long_click | self.save).any(axis=1))


@dataclass(frozen=True, kw_only=True)
class Users:
    """People of the simulation."""

    seed: int  # of the draws; the world's
    click_prob: Numbers  # (num_pins,) chance that a pin that is looked at is clicked for its appeal alone

    def interact(self, search: Codes, pins: Codes, grade: Codes) -> UserActions:
        """Simulate what the people of these searches do with these pages.

        Args:
            pins: (num_searches, num_shown) pin numbers, best first; NO_PIN: the page is shorter.
            grade: True grades, likewise; whatever where there is no pin.
        """
        there = pins != NO_PIN
        grade = np.where(there, grade, 1)
        examined = examination(self.seed, search, pins.shape[1]) & there
        intent = intents(self.seed, search, pins, grade)
        lured = np.zeros(pins.shape, bool)
        stay = intent
        if self.click_prob.any():
            # The numbers of NO_PIN wrap around, and nobody looks there.
            drawn = uniform(self.seed % 2**64, Stream.LURED, search[:, None].astype(np.uint64), pins.astype(np.uint64))
            lured = ~intent.click & (drawn < self.click_prob[pins])
            stay = intents(self.seed, search, pins, np.ones_like(grade))
        click = examined & (intent.click | lured)
        long_click, save = (
            click & np.where(lured, a, b) for a, b in ((stay.long_click, intent.long_click), (stay.save, intent.save))
        )
        return UserActions(click, long_click, save, hide=examined & ~click & intent.hide)


def click_probs(seed: int, num_pins: int, clickbait: ClickbaitConfig | None) -> Numbers:
    """The pull of each pin: that of the config for a share of them, drawn by their number, 0 for the others."""
    if clickbait is None:
        return np.zeros(num_pins)
    drawn = uniform(seed % 2**64, Stream.CLICKBAIT, np.arange(num_pins).astype(np.uint64))
    return np.where(drawn < clickbait.fraction, clickbait.click_prob, 0.0)
