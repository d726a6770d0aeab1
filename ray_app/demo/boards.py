"""Boards of users of all locales, who have a favourite category and style."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.base.config import DemoConfig
from ray_app.base.schemas import BOARDS
from ray_app.demo import texts
from ray_app.demo.candidates import draw_candidates
from ray_app.demo.concepts import COLOURS, OBJECTS, SETTINGS, STYLES
from ray_app.demo.facts import (
    CATEGORIES,
    LANGUAGE_OF,
    LOCALES,
    OBJECTS_OF,
    Codes,
    Draw,
    Facts,
    categories,
    generator,
    gumbel,
    language_fit,
    num_pins_of,
    pick,
    pin_id,
    pin_of,
)
from ray_app.demo.log import LOG_DAYS, LOG_START

# Guessed. Sizes are log-uniform: many small boards, few large ones.
BOARDS_PER_PERSON = 4
MIN_SAVES, MAX_SAVES = 3, 50
MEAN_SAVES = 16.2  # measured, of that law
FAVOURITE_CATEGORY_SHARE = 0.6  # boards in a user's favourite category
TOPICS = ("category", "style", "object", "setting", "colour")
TOPIC_SHARES = (0.2, 0.3, 0.25, 0.15, 0.1)  # a board's topic besides its category
FAVOURITE_STYLE_SHARE = 0.7  # style boards about the user's favourite style
ENGLISH_TITLE_SHARE = 0.1  # of boards of users with another language
TOPIC_WEIGHT = 4.0  # log-weight of pins that fit: some 85% of the saves are such
DAYS = 700  # over which saves are spread, up to the end of the log
_DRAWN = {"siblings": 24, "category": 200, "any_pin": 24}  # candidates, popular pins first


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """Topic of one board; one of style, object, setting, colour at most is set."""

    number: int
    locale: int
    size: int
    category: str
    topic: dict[str, str]
    title: str


def num_boards(cfg: DemoConfig) -> int:
    """Boards of the world."""
    return max(1, round(cfg.saves_per_pin * cfg.num_pins / MEAN_SAVES))


def draw_board(cfg: DemoConfig, number: int) -> Board:
    """A board; those of one user share locale and favourites."""
    person = generator(cfg.seed, Draw.BOARD, 0, number // BOARDS_PER_PERSON)
    locale = int(pick(person.random(1), tuple(LOCALES.values()))[0])
    favourite, favourite_style = str(person.choice(CATEGORIES)), str(person.choice(STYLES))
    rng = generator(cfg.seed, Draw.BOARD, 1, number)
    category = favourite if rng.random() < FAVOURITE_CATEGORY_SHARE else str(rng.choice(CATEGORIES))
    about = TOPICS[int(pick(rng.random(1), TOPIC_SHARES)[0])]
    choices = {
        "object": [OBJECTS[code] for code in OBJECTS_OF[CATEGORIES.index(category)] if code >= 0],
        "style": [favourite_style] if rng.random() < FAVOURITE_STYLE_SHARE else STYLES,
        "setting": SETTINGS[category],
        "colour": COLOURS,
    }
    topic = {about: str(rng.choice(choices[about]))} if about in choices else {}
    language = "en" if rng.random() < ENGLISH_TITLE_SHARE else LANGUAGE_OF[locale]
    words: dict[str, Any] = {"category": category, **topic}
    size = int(MIN_SAVES * (MAX_SAVES / MIN_SAVES) ** rng.random())
    title = texts.board_title(language, generator(cfg.seed, Draw.BOARD_TEXT, number), **words)
    return Board(number=number, locale=locale, size=size, category=category, topic=topic, title=title)


def board_rows(cfg: DemoConfig, start: int, stop: int) -> pa.Table:
    """BOARDS rows of boards start..stop-1. A pin is on a board once."""
    return pa.concat_tables([BOARDS.empty_table(), *(_saves(cfg, draw_board(cfg, n)) for n in range(start, stop))])


def _saves(cfg: DemoConfig, board: Board) -> pa.Table:
    """Pins by popularity, which decides what a user comes across, and then by fit and language."""
    rng = generator(cfg.seed, Draw.BOARD_SAVES, board.number)
    codes = OBJECTS_OF[CATEGORIES.index(board.category)]
    obj = np.array([OBJECTS.index(board.topic.get("object", OBJECTS[rng.choice(codes[codes >= 0])]))])
    key = np.array([2**40 + board.number])  # apart from the streams of queries
    some_pin = pin_of(cfg.seed, obj, rng.integers(num_pins_of(cfg.seed, obj, cfg.num_pins)))
    found = draw_candidates(cfg, key, obj, some_pin, same=95 if "object" in board.topic else 1, popular=True, **_DRAWN)
    pins = found.facts
    weight = TOPIC_WEIGHT * _fits(board, pins) + language_fit(np.array(board.locale), pins.locale)
    weight = weight + gumbel(cfg.seed, Draw.BOARD_SAVES, key[:, None], pins.number)
    order = np.argsort(np.where(found.is_first, -weight, np.inf)[0], kind="stable")
    chosen = pins.number[0][order[: min(board.size, int(found.is_first.sum()))]]
    end = round(LOG_START.timestamp() * 1000) + LOG_DAYS * 86_400_000
    times = end - (rng.random(len(chosen)) * DAYS * 86_400_000).astype(np.int64)
    return pa.table(
        {
            "board_id": [f"board{board.number:08d}"] * len(chosen),
            "pin_id": [pin_id(n) for n in chosen],
            "board_title": [board.title] * len(chosen),
            "saved_at": pa.array(times, pa.timestamp("ms", tz="UTC")),
        },
        BOARDS,
    )


def _fits(board: Board, pins: Facts) -> Codes:
    fits = categories(pins.object) == CATEGORIES.index(board.category)
    for name, value in board.topic.items():
        names = {"object": OBJECTS, "style": STYLES, "setting": SETTINGS[board.category], "colour": COLOURS}[name]
        fits = fits & (getattr(pins, name) == names.index(value))
    return fits.astype(np.int64)
