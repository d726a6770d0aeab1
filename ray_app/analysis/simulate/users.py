"""What people do with a page: the user model of the world's log, the same person before every arm.

Two things differ from the log (`ray_app.demo.log`), whose constants and draws are used:
- Whether a person likes a pin belongs to person and pin, not to person and position. How likely each action is stays
  the same; but who likes a pin under one arm likes it under the other, wherever it stands. So arms are compared in pairs.
- Pins may have appeal (`AppealConfig`): a person who looks at such a pin clicks it with chance `pull` whatever it shows.
  Who clicked for that alone stays and saves as on a pin of grade 1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_app.analysis.simulate.traffic import NO_PIN, Stream
from ray_app.base.config import AppealConfig
from ray_app.base.hashing import uniform
from ray_app.demo.facts import Codes, Numbers
from ray_app.demo.log import examines, wishes

Flags = NDArray[np.bool_]


class Happened(NamedTuple):
    """What happened at each position, bool arrays of shape (num_searches, num_shown)."""

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
    pull: Numbers  # (num_pins,) chance that a pin that is looked at is clicked for its appeal alone

    def meet(self, search: Codes, pins: Codes, grade: Codes) -> Happened:
        """What the people of these searches do with these pages.

        Args:
            pins: (num_searches, num_shown) pin numbers, best first; NO_PIN: the page is shorter.
            grade: True grades, likewise; whatever where there is no pin.
        """
        there = pins != NO_PIN
        grade = np.where(there, grade, 1)
        examined = examines(self.seed, search, pins.shape[1]) & there
        wish = wishes(self.seed, search, pins, grade)
        lured = np.zeros(pins.shape, bool)
        stay = wish
        if self.pull.any():
            # The numbers of NO_PIN wrap around, and nobody looks there.
            drawn = uniform(self.seed % 2**64, Stream.LURED, search[:, None].astype(np.uint64), pins.astype(np.uint64))
            lured = ~wish.click & (drawn < self.pull[pins])
            stay = wishes(self.seed, search, pins, np.ones_like(grade))
        click = examined & (wish.click | lured)
        long_click, save = (
            click & np.where(lured, a, b) for a, b in ((stay.long_click, wish.long_click), (stay.save, wish.save))
        )
        return Happened(click, long_click, save, hide=examined & ~click & wish.hide)


def pulls(seed: int, num_pins: int, appeal: AppealConfig | None) -> Numbers:
    """The pull of each pin: that of the config for a share of them, drawn by their number, 0 for the others."""
    if appeal is None:
        return np.zeros(num_pins)
    drawn = uniform(seed % 2**64, Stream.APPEALS, np.arange(num_pins).astype(np.uint64))
    return np.where(drawn < appeal.share, appeal.pull, 0.0)
