"""Pins that might be shown, judged or saved: some of the same object, of near objects, of the category, and any.

They are drawn by address (`facts.pin_of`), so a request of a world of ten million pins costs what one of a thousand does.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_app.base.config import DemoConfig
from ray_app.demo.facts import (
    NUM_OBJECTS_OF,
    NUM_SIBLINGS,
    OBJECTS_OF,
    SIBLINGS,
    Codes,
    Draw,
    Facts,
    Numbers,
    categories,
    num_pins_of,
    numbers,
    pin_facts,
    pin_of,
    zipf,
)

_PRIME = 1_000_003  # has no factor in common with any number of pins per object, so each rank is another pin

SAME, SIBLING, CATEGORY, ANY = 0, 1, 2, 3  # source of a candidate


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnCandidates:
    """Arrays of shape (num_requests, num_candidates), but `kind`: (num_candidates,)."""

    facts: Facts
    is_first: NDArray[np.bool_]  # False: the pin is further left in its row already
    kind: Codes


def draw_candidates(
    cfg: DemoConfig, key: Codes, obj: Codes, first: Codes, *, same: int, siblings: int, category: int, any_pin: int,
    popular: bool,
) -> DrawnCandidates:  # fmt: skip
    """Candidates of requests.

    Args:
        key, obj, first: (num_requests,) stream of the draws, object code asked for, a pin that must be among them.
        same: How many pins of the same object; all of them where there are no more, but for `popular`.
        siblings, category, any_pin: How many of near objects, of the same category, of the whole catalogue.
        popular: Draw pins of an object by Zipf's law, not evenly.
    """
    seed, rows = cfg.seed, key[:, None]
    count = num_pins_of(seed, obj, cfg.num_pins)[:, None]
    at = np.arange(same)[None, :]
    nth = _draw_nth(numbers(seed, Draw.SAME_OBJECT, rows, at), count, popular)
    if not popular:
        nth = np.where(count <= same, at % count, nth)
    near = _draw_object(seed, Draw.SIBLING, rows, siblings, SIBLINGS[obj], NUM_SIBLINGS[obj])
    group = categories(obj)
    far = _draw_object(seed, Draw.CATEGORY, rows, category, OBJECTS_OF[group], NUM_OBJECTS_OF[group])
    anywhere = numbers(seed, Draw.ANY, rows, np.arange(any_pin)[None, :]) * cfg.num_pins
    pins = np.concatenate(
        [
            first[:, None],
            pin_of(seed, obj[:, None], nth),
            _draw_pin(cfg, Draw.SIBLING, rows, near, popular),
            _draw_pin(cfg, Draw.CATEGORY, rows, far, popular),
            anywhere.astype(np.int64),
        ],
        axis=1,
    )
    kind = np.repeat([SAME, SIBLING, CATEGORY, ANY], [1 + same, siblings, category, any_pin])
    return DrawnCandidates(facts=pin_facts(seed, pins), is_first=_first_in_row(pins), kind=kind)


def _draw_object(seed: int, what: Draw, rows: Codes, size: int, choices: Codes, num_choices: Codes) -> Codes:
    drawn = (numbers(seed, what, rows, np.arange(size)[None, :]) * num_choices[:, None]).astype(np.int64)
    return np.take_along_axis(choices, drawn, axis=1)


def _draw_pin(cfg: DemoConfig, what: Draw, rows: Codes, obj: Codes, popular: bool) -> Codes:
    at = 1_000_000 + np.arange(obj.shape[1])[None, :]  # apart from the draws of the objects
    count = num_pins_of(cfg.seed, obj, cfg.num_pins)
    return pin_of(cfg.seed, obj, _draw_nth(numbers(cfg.seed, what, rows, at), count, popular))


def _draw_nth(drawn: Numbers, count: Codes, popular: bool) -> Codes:
    """Pin of an object by rank. Popular pins are spread over the pin numbers, which must carry no information."""
    return zipf(drawn, count) * _PRIME % count if popular else (drawn * count).astype(np.int64)


def _first_in_row(pins: Codes) -> NDArray[np.bool_]:
    order = np.argsort(pins, axis=1, kind="stable")
    ranked = np.take_along_axis(pins, order, axis=1)
    fresh = np.ones(pins.shape, bool)
    fresh[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    found = np.empty(pins.shape, bool)
    np.put_along_axis(found, order, fresh, axis=1)
    return found
