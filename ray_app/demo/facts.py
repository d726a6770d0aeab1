"""Facts of pins as codes: every one a hash of (seed, pin number), so any part of the world can be made alone.

Pin n shows object `order[n mod num_objects]`, so the pins of an object are found without an index. Arrays are int64 and
may have any shape; attributes are codes into the tuples of `concepts`.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ray_app.base.hashing import uniform
from ray_app.demo.concepts import (
    ATTRIBUTES,
    CATEGORY_OF,
    COLOURS,
    GROUP_OF,
    MATERIALS,
    OBJECTS,
    SETTINGS,
    STYLES,
    Concept,
    colours_of,
)

Codes = NDArray[np.int64]
Numbers = NDArray[np.float64]

# Share of pins, and of users. All guessed: English leads on any such site; the others share the rest, so that each
# has pins enough to search in.
LOCALES = {
    "en-US": 0.23, "en-GB": 0.09, "en-CA": 0.05, "en-AU": 0.04, "en-IN": 0.04,
    "de-DE": 0.05, "de-AT": 0.015, "de-CH": 0.015,
    "fr-FR": 0.06, "fr-CA": 0.02,
    "es-ES": 0.03, "es-MX": 0.03, "es-AR": 0.02,
    "pt-BR": 0.06, "pt-PT": 0.02,
    "it-IT": 0.08, "ja-JP": 0.08, "hi-IN": 0.07,
}  # fmt: skip
LOCALE_NAMES = tuple(LOCALES)
LANGUAGE_OF = tuple(name.split("-")[0] for name in LOCALE_NAMES)  # by locale code
ZIPF_EXPONENT = 0.8  # of searches over queries and saves over pins; published logs lie between 0.6 and 1
REPIN_SHARE = 0.05  # guessed: pins that show another pin's image

CATEGORIES = tuple(MATERIALS)
_NUM = len(OBJECTS)
_CATEGORY = np.array([CATEGORIES.index(CATEGORY_OF[obj]) for obj in OBJECTS])
_LANGUAGES = sorted(set(LANGUAGE_OF))
_LANGUAGE = np.array([_LANGUAGES.index(language) for language in LANGUAGE_OF])
_ENGLISH = _LANGUAGES.index("en")


Draw = IntEnum(
    "Draw",
    {
        "OBJECT_ORDER": 1, "COLOUR": 2, "MATERIAL": 3, "STYLE": 4, "SETTING": 5, "LOCALE": 6, "REPIN": 7,
        "REPIN_OF": 8, "PICTURE": 9, "TEXT": 10, "CREATED": 11, "SAME_OBJECT": 20, "SIBLING": 21, "CATEGORY": 22,
        "ANY": 23, "QUERY_LOCALE": 30, "QUERY_PIN": 31, "QUERY_LENGTH": 32, "QUERY_ATTRIBUTE": 33, "QUERY_TEXT": 34,
        "QUERY_SIDE": 35, "SEARCH_QUERY": 40, "SEARCH_TIME": 41, "SEARCH_TASTE": 42, "SEARCH_NOISE": 43,
        "SEARCH_STRAY": 44, "SEARCH_PLACE": 45, "SEARCH_EMPTY": 46, "EXAMINED": 47, "CLICK": 48, "LONG_CLICK": 49,
        "SAVE": 50, "HIDE": 51, "DELAY": 52, "CLIENT": 53, "BOARD": 60, "BOARD_TEXT": 61, "BOARD_SAVES": 62,
        "SAVED_AT": 63, "LABELLED": 70, "JUDGED": 71, "GUIDELINE": 72, "RATER": 73, "RATING": 74,
    },
)  # fmt: skip
"""One stream of random numbers each."""


def numbers(seed: int, what: Draw, *keys: Codes | int) -> Numbers:
    """Number in [0, 1) of each combination of keys."""
    return uniform(seed % 2**64, int(what), *(np.asarray(key).astype(np.uint64) for key in keys))


def gumbel(seed: int, what: Draw, *keys: Codes | int) -> Numbers:
    """Gumbel noise: the largest of log-weights with it is a draw in proportion to the weights."""
    return -np.log(-np.log(numbers(seed, what, *keys) * (1 - 2e-12) + 1e-12))


def generator(seed: int, what: Draw, *keys: int) -> np.random.Generator:
    """A generator of its own for one thing that needs many draws, such as a pin's texts."""
    return np.random.default_rng([seed % 2**64, int(what), *keys])


def pick(drawn: Numbers, shares: tuple[float, ...]) -> Codes:
    """Code of the share that each number in [0, 1) falls into."""
    return np.searchsorted(np.cumsum(shares)[:-1], drawn * sum(shares), side="right").astype(np.int64)


def zipf(drawn: Numbers, size: Codes | int) -> Codes:
    """Ranks 0..size-1 of numbers in [0, 1), low ones often: the continuous Zipf law, cut to whole ranks."""
    power = 1.0 - ZIPF_EXPONENT
    rank = (1.0 + drawn * ((size + 1.0) ** power - 1.0)) ** (1.0 / power) - 1.0
    return np.minimum(rank.astype(np.int64), size - 1)


def language_fit(reader: Codes, writer: Codes) -> Numbers:
    """Log-weight of users of one locale engaging with a pin of another.

    Guessed: their own language most, English next; others at times, since an image needs no words.
    """
    mine, theirs = _LANGUAGE[reader], _LANGUAGE[writer]
    return np.where(mine == theirs, 1.8, np.where(theirs == _ENGLISH, 0.9, 0.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Ground truth facts of pins; arrays of one shape."""

    number: Codes
    root: Codes  # the pin whose image it shows: itself, or for a repin an older one
    object: Codes
    colour: Codes
    material: Codes  # within the category, as is setting
    style: Codes
    setting: Codes
    locale: Codes

    def concept(self, i: int) -> Concept:
        """Concept of pin i of a one-dimensional array."""
        category = CATEGORIES[_CATEGORY[self.object[i]]]
        return Concept(
            object=OBJECTS[self.object[i]],
            colour=COLOURS[self.colour[i]],
            material=MATERIALS[category][self.material[i]],
            style=STYLES[self.style[i]],
            setting=SETTINGS[category][self.setting[i]],
        )


def pin_id(number: int) -> str:
    """Name of a pin."""
    return f"pin{number:08d}"


def pin_facts(seed: int, number: Codes) -> Facts:
    """Facts of the pins of these numbers. A repin has the concept of the pin whose image it shows."""
    root = _roots(seed, number)
    obj = np.asarray(object_order(seed))[number % _NUM]
    colour = (numbers(seed, Draw.COLOUR, root) * _NUM_COLOURS[obj]).astype(np.int64)
    category = _CATEGORY[obj]
    return Facts(
        number=number, root=root, object=obj, colour=_COLOURS_OF[obj, colour],
        material=(numbers(seed, Draw.MATERIAL, root) * _NUM_MATERIALS[category]).astype(np.int64),
        style=(numbers(seed, Draw.STYLE, root) * len(STYLES)).astype(np.int64),
        setting=(numbers(seed, Draw.SETTING, root) * _NUM_SETTINGS[category]).astype(np.int64),
        locale=pick(numbers(seed, Draw.LOCALE, number), tuple(LOCALES.values())),
    )  # fmt: skip


def categories(obj: Codes) -> Codes:
    """Category of each object, as a code into `CATEGORIES`."""
    return _CATEGORY[obj]


@lru_cache(maxsize=8)
def object_order(seed: int) -> tuple[int, ...]:
    """Object codes in the order in which pin numbers go round them."""
    return tuple(int(o) for o in np.argsort(numbers(seed, Draw.OBJECT_ORDER, np.arange(_NUM))))


def num_pins_of(seed: int, obj: Codes, num_pins: int) -> Codes:
    """Number of the first `num_pins` pins that show each object."""
    return (num_pins - 1 - _slots(seed)[obj]) // _NUM + 1


def pin_of(seed: int, obj: Codes, nth: Codes) -> Codes:
    """Number of the nth (from 0) pin that shows each object."""
    return _slots(seed)[obj] + _NUM * nth


def grades(asked: dict[str, Codes], facts: Facts) -> Codes:
    """`concepts.true_grade` of arrays: codes of requests (object and attributes, -1: any) against pins, broadcast."""
    held: Codes = np.zeros((), np.int64)
    wanted: Codes = np.zeros((), np.int64)
    for name in ATTRIBUTES:
        wanted = wanted + (asked[name] >= 0)
        held = held + ((asked[name] >= 0) & (asked[name] == getattr(facts, name)))
    all_held, something = held == wanted, wanted > 0
    same = np.where(all_held, 5, np.where(2 * held >= wanted, 4, 3))
    near = np.where(something & all_held, 3, 2)
    far = np.where((_CATEGORY[asked["object"]] == _CATEGORY[facts.object]) & something & all_held, 2, 1)
    is_near = _NEAR[asked["object"], facts.object]
    return np.where(asked["object"] == facts.object, same, np.where(is_near, near, far)).astype(np.int64)


def _slots(seed: int) -> Codes:
    return np.argsort(np.array(object_order(seed)))


def _roots(seed: int, number: Codes) -> Codes:
    """One step back at most: a repin's source is never a repin itself."""
    nth = number // _NUM
    back = 1 + (numbers(seed, Draw.REPIN_OF, number) * nth).astype(np.int64)
    source = np.where(nth > 0, number - _NUM * back, number)
    return np.where(_is_flagged(seed, number) & ~_is_flagged(seed, source), source, number)


def _is_flagged(seed: int, number: Codes) -> NDArray[np.bool_]:
    return (numbers(seed, Draw.REPIN, number) < REPIN_SHARE) & (number >= _NUM)


def _table(rows: list[list[int]]) -> tuple[Codes, Codes]:
    """Rows of unequal length as a rectangle, and their lengths."""
    sizes = np.array([len(row) for row in rows])
    return np.array([row + [-1] * (max(sizes) - len(row)) for row in rows]), sizes


_COLOURS_OF, _NUM_COLOURS = _table([[COLOURS.index(c) for c in colours_of(obj)] for obj in OBJECTS])
_NUM_MATERIALS = np.array([len(MATERIALS[c]) for c in CATEGORIES])
_NUM_SETTINGS = np.array([len(SETTINGS[c]) for c in CATEGORIES])
_NEAR = np.array([[other in GROUP_OF[obj] for other in OBJECTS] for obj in OBJECTS])
SIBLINGS, NUM_SIBLINGS = _table([[i for i, o in enumerate(OBJECTS) if o in GROUP_OF[x] and o != x] for x in OBJECTS])
"""Near objects of each object, and how many."""
OBJECTS_OF, NUM_OBJECTS_OF = _table([[i for i in range(_NUM) if _CATEGORY[i] == c] for c in range(len(CATEGORIES))])
"""Objects of each category, and how many."""
