"""Queries of the demo's users: the pool of the log, and held-out queries of the ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_app.base.config import DemoConfig
from ray_app.base.hashing import text_keys
from ray_app.base.text import query_group
from ray_app.demo import texts
from ray_app.demo.concepts import ATTRIBUTES, COLOURS, MATERIALS, OBJECTS, SETTINGS, STYLES, Request
from ray_app.demo.facts import (
    CATEGORIES,
    LANGUAGE_OF,
    LOCALE_NAMES,
    LOCALES,
    ZIPF_EXPONENT,
    Codes,
    Draw,
    categories,
    generator,
    numbers,
    pick,
    pin_facts,
)

# All guessed, after what such sites are asked: most searches name one or two things besides the object.
NUM_ASKED_SHARES = (0.2, 0.4, 0.3, 0.1)  # of queries that ask for 0, 1, 2, 3 attributes
ATTRIBUTE_WEIGHTS = {"colour": 2.0, "material": 1.0, "style": 1.0, "setting": 1.0}
TYPO_RATE = 0.03
HELD_OUT_SHARE = 0.2  # of all possible query groups, by their hash: only the ground truth may use them
_MAX_ATTEMPTS = 500
_POOL, _HELD_OUT = 0, 1  # first key of the streams


@dataclass(frozen=True, kw_only=True, slots=True)
class Queries:
    """Requests as users type them; arrays of shape (num_queries,)."""

    key: Codes
    text: list[str]
    locale: Codes
    pin: Codes  # a pin that has all that is asked: users search for what exists
    asked: dict[str, Codes]  # object and attributes as codes; -1: any

    def __len__(self) -> int:
        return len(self.text)

    @classmethod
    def joined(cls, parts: Sequence["Queries"]) -> "Queries":
        """Laid end to end."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("key", "locale", "pin")}
        asked = {name: np.concatenate([part.asked[name] for part in parts]) for name in ("object", *ATTRIBUTES)}
        return cls(text=[text for part in parts for text in part.text], asked=asked, **arrays)

    def request(self, i: int) -> Request:
        """The request of query i."""
        code = {name: int(values[i]) for name, values in self.asked.items()}
        category = CATEGORIES[categories(self.asked["object"])[i]]
        names = {"colour": COLOURS, "material": MATERIALS[category], "style": STYLES, "setting": SETTINGS[category]}
        held = {name: names[name][code[name]] if code[name] >= 0 else None for name in ATTRIBUTES}
        return Request(object=OBJECTS[code["object"]], **held)

    def take(self, rows: Sequence[int]) -> "Queries":
        """Some of the queries, in that order."""
        index = np.asarray(rows, np.int64)
        return Queries(
            key=self.key[index], text=[self.text[i] for i in rows], locale=self.locale[index], pin=self.pin[index],
            asked={name: values[index] for name, values in self.asked.items()},
        )  # fmt: skip


def num_pool_queries(cfg: DemoConfig) -> int:
    """Queries that the log draws from; some draws are equal texts, so fewer are distinct."""
    return max(1, round(cfg.queries_per_pin * cfg.num_pins))


def pool_locales(cfg: DemoConfig, key: Codes) -> Codes:
    """Locale of each query of the pool."""
    return pick(numbers(cfg.seed, Draw.QUERY_LOCALE, key), tuple(LOCALES.values()))


def pool_queries(cfg: DemoConfig, key: Codes) -> Queries:
    """Queries of the log's pool by their number, none of which is held out for the ground truth."""
    return _draw_queries(cfg, key, pool_locales(cfg, key), held_out=False)


def ground_truth_queries(cfg: DemoConfig) -> Queries:
    """`cfg.ground_truth_queries` queries over all locales, by the shares of users, all in groups that the log never uses."""
    quota = split_by_share(cfg.ground_truth_queries, tuple(LOCALES.values()))
    seen: set[str] = set()
    kept: list[Queries] = []
    for code, size in enumerate(quota):
        left, start = size, 0
        while left:
            assert start < _MAX_ATTEMPTS * size, f"{LOCALE_NAMES[code]}: too few words for {size} queries"
            key = code * 2**32 + start + np.arange(left)
            drawn = _draw_queries(cfg, key, np.full(left, code), held_out=True)
            fresh = [i for i, text in enumerate(drawn.text) if _is_new(query_group(text), seen)]
            kept.append(drawn.take(fresh))
            start, left = start + left, left - len(fresh)
    return Queries.joined(kept)


def labelled_queries(cfg: DemoConfig, locale: str = "en-US") -> Queries:
    """`cfg.labelled_queries` of one locale's log for human raters, the popular ones likeliest; fewer in a small log."""
    pool = np.arange(num_pool_queries(cfg))
    pool = pool[pool_locales(cfg, pool) == LOCALE_NAMES.index(locale)]
    # The first arrivals of a race are a draw without replacement in proportion to the searches.
    arrival = -np.log1p(-numbers(cfg.seed, Draw.LABELLED, pool)) * (pool + 1.0) ** ZIPF_EXPONENT
    drawn = pool_queries(cfg, pool[np.argsort(arrival, kind="stable")][: 4 * cfg.labelled_queries])
    seen: set[str] = set()
    fresh = [i for i, text in enumerate(drawn.text) if _is_new(query_group(text), seen)]
    return drawn.take(fresh[: cfg.labelled_queries])


def split_by_share(total: int, shares: Sequence[float]) -> list[int]:
    """Integers in proportion to shares, with that total, by the largest remainder method."""
    exact = np.array(shares) / sum(shares) * total
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: total - whole.sum()]] += 1
    return [int(n) for n in whole]


def is_held_out(seed: int, text: str) -> bool:
    """Return True if a query's group is held out: decided by its hash alone, so no list of the log is needed."""
    key = text_keys([query_group(text)], "demo").astype(np.int64)
    return bool(numbers(seed, Draw.QUERY_SIDE, key)[0] < HELD_OUT_SHARE)


def _draw_queries(cfg: DemoConfig, key: Codes, locale: Codes, *, held_out: bool) -> Queries:
    """One query per key, drawn again until it lies on the wanted side."""
    side = _HELD_OUT if held_out else _POOL
    text = [""] * len(key)
    pin = np.zeros(len(key), np.int64)
    asked = {name: np.full(len(key), -1, np.int64) for name in ("object", *ATTRIBUTES)}
    todo = np.arange(len(key))
    for attempt in range(_MAX_ATTEMPTS):
        if not len(todo):
            break
        keys = key[todo]
        pin[todo] = (numbers(cfg.seed, Draw.QUERY_PIN, side, keys, attempt) * cfg.num_pins).astype(np.int64)
        for name, codes in _ask(cfg.seed, side, keys, attempt, pin[todo]).items():
            asked[name][todo] = codes
        drawn = Queries(key=key, text=text, locale=locale, pin=pin, asked=asked)
        again = []
        for i in todo.tolist():
            rng = generator(cfg.seed, Draw.QUERY_TEXT, side, int(key[i]), attempt)
            text[i] = texts.query_text(drawn.request(i), LANGUAGE_OF[locale[i]], rng, TYPO_RATE)
            if is_held_out(cfg.seed, text[i]) != held_out:
                again.append(i)
        todo = np.array(again, np.int64)
    assert not len(todo), "a language has too few words to keep queries for the truth"
    return Queries(key=key, text=text, locale=locale, pin=pin, asked=asked)


def _ask(seed: int, side: int, key: Codes, attempt: int, pin: Codes) -> dict[str, Codes]:
    """The object of a pin, and those of its attributes that a user cares for."""
    facts = pin_facts(seed, pin)
    num_asked = pick(numbers(seed, Draw.QUERY_LENGTH, side, key, attempt), NUM_ASKED_SHARES)
    weights = [ATTRIBUTE_WEIGHTS[name] for name in ATTRIBUTES]
    race = np.stack(
        [
            -np.log1p(-numbers(seed, Draw.QUERY_ATTRIBUTE, side, key, attempt, i)) / weight
            for i, weight in enumerate(weights)
        ]
    )
    place = np.argsort(np.argsort(race, axis=0), axis=0)
    codes = {name: np.where(place[i] < num_asked, getattr(facts, name), -1) for i, name in enumerate(ATTRIBUTES)}
    return {"object": facts.object} | codes


def _is_new(group: str, seen: set[str]) -> bool:
    if group in seen:
        return False
    seen.add(group)
    return True
