"""The search log: a month of impressions by a logging policy, and user actions.

The logging policy approximates the ground truth: it sorts by grade, language and noise, and adds strays. Users examine
position p with probability p ** -ETA, and what they do with an examined pin depends on its grade alone. So clicks tell
of relevance only when position is accounted for.
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.base.config import DemoConfig
from ray_app.base.schemas import ACTIONS, SEARCH_LOG
from ray_app.demo.candidates import ANY, CATEGORY, DrawnCandidates, draw_candidates
from ray_app.demo.facts import LOCALE_NAMES, Codes, Draw, Numbers, grades, gumbel, language_fit, numbers, pin_id, zipf
from ray_app.demo.queries import Queries, num_pool_queries, pool_queries

LOG_START = datetime(2026, 5, 1, tzinfo=UTC)
LOG_DAYS = 30
SHOWN = 10  # positions of a search
ROWS_PER_SEARCH = 12.0  # measured: impressions and actions

# The old ranker. Guessed, so that its first page is useful but far from ideal: about half of it grade 4 or 5 (measured: 47%).
GRADE_WEIGHT = 0.8  # log-weight per grade
STRAY_WEIGHT = 5.0  # enough that strays are on the page whatever their grade
PLACE_WEIGHT = 0.3  # log-weight per grade in the order on the page
SEARCH_NOISE = 0.3  # of the choice, from search to search
STRAY_SHARE = {CATEGORY: 0.1, ANY: 0.06}  # of the candidates of that kind, in each search
EMPTY_SHARE = 0.003  # searches that show nothing
SEARCHES_PER_CLIENT = 2.0  # in the month; guessed: most visitors of a site come once or twice
_DRAWN = {"same": 95, "siblings": 16, "category": 16, "any_pin": 16}

# Users. ETA near what published click models find; the others are guesses, of the shape that all of them report.
ETA = 0.7
CLICK = (0.02, 0.05, 0.15, 0.32, 0.50)  # of examined pins, by grade 1..5
LONG_CLICK = (0.05, 0.12, 0.30, 0.45, 0.60)  # of clicked ones
SAVE = (0.01, 0.03, 0.10, 0.22, 0.35)  # of clicked ones
HIDE = (0.04, 0.02, 0.005, 0.001, 0.0)  # of examined ones
_CHUNK = 500  # searches at a time: bounds memory; changes nothing else


def num_searches(cfg: DemoConfig) -> int:
    """Searches of the whole log."""
    return max(1, round(cfg.events_per_pin * cfg.num_pins / ROWS_PER_SEARCH))


def search_log(cfg: DemoConfig, start: int, stop: int) -> pa.Table:
    """SEARCH_LOG rows of searches start..stop-1, in order of time."""
    bounds = range(start, stop, _CHUNK)
    parts = [_searches(cfg, np.arange(at, min(at + _CHUNK, stop))) for at in bounds]
    return pa.concat_tables([SEARCH_LOG.empty_table(), *parts])


def _searches(cfg: DemoConfig, search: Codes) -> pa.Table:
    drawn = zipf(numbers(cfg.seed, Draw.SEARCH_QUERY, search), num_pool_queries(cfg))
    distinct, query_of = np.unique(drawn, return_inverse=True)
    queries = pool_queries(cfg, distinct)
    pins, shown_grades = _first_pages(cfg, search, queries, query_of)
    is_empty = numbers(cfg.seed, Draw.SEARCH_EMPTY, search) < EMPTY_SHARE
    happened, seconds = _act(cfg.seed, search, shown_grades)
    happened[is_empty] = False
    happened[is_empty, 0, 0] = True  # the row of a search without results

    row, position, action = np.nonzero(happened)
    ids = [f"s{search[r]:010d}-{p + 1:02d}-{ACTIONS[a]}" for r, p, a in zip(row, position, action, strict=True)]
    step = timedelta(days=LOG_DAYS) / timedelta(milliseconds=1) / num_searches(cfg)
    asked_at = ((search + numbers(cfg.seed, Draw.SEARCH_TIME, search)) * step).astype(np.int64)
    times = round(LOG_START.timestamp() * 1000) + asked_at[row] + seconds[row, position, action] * 1000
    nothing = is_empty[row]
    return pa.table(
        {
            "event_id": ids,
            "timestamp": pa.array(times, pa.timestamp("ms", tz="UTC")),
            "query": [queries.text[q] for q in query_of[row]],
            "locale": [LOCALE_NAMES[code] for code in queries.locale[query_of[row]]],
            "pin_id": pa.array([None if e else pin_id(n) for e, n in zip(nothing, pins[row, position], strict=True)]),
            "position": pa.array(position + 1, pa.int32(), mask=nothing),
            "action": [ACTIONS[a] for a in action],
            "client_id": [f"c{number:08d}" for number in _clients(cfg, search)[row]],
        },
        SEARCH_LOG,
    )


def _clients(cfg: DemoConfig, search: Codes) -> Codes:
    """Client of each search; (num_searches,)."""
    num = max(1, round(num_searches(cfg) / SEARCHES_PER_CLIENT))
    return (numbers(cfg.seed, Draw.CLIENT, search) * num).astype(np.int64)


def _first_pages(cfg: DemoConfig, search: Codes, queries: Queries, query_of: Codes) -> tuple[Codes, Codes]:
    """Pins and their grades, by search and position: (num_searches, SHOWN)."""
    found = draw_candidates(cfg, queries.key, queries.asked["object"], queries.pin, popular=False, **_DRAWN)
    grade = grades({name: codes[:, None] for name, codes in queries.asked.items()}, found.facts)
    taste = gumbel(cfg.seed, Draw.SEARCH_TASTE, queries.key[:, None], found.facts.number)  # the same in every search
    weight = GRADE_WEIGHT * grade + language_fit(queries.locale[:, None], found.facts.locale) + taste
    weight = np.where(found.is_first, weight, -np.inf)[query_of]
    noise, is_stray = _noise(cfg, search, found)
    chance = weight + SEARCH_NOISE * noise + STRAY_WEIGHT * is_stray
    page = np.argsort(-chance, axis=1, kind="stable")[:, :SHOWN]
    # Order on the page is looser than the choice of it, so that every grade is seen at every position.
    standing = PLACE_WEIGHT * np.take_along_axis(grade[query_of], page, axis=1)
    standing = standing + gumbel(cfg.seed, Draw.SEARCH_PLACE, search[:, None], np.arange(SHOWN))
    top = np.take_along_axis(page, np.argsort(-standing, axis=1, kind="stable"), axis=1)
    return tuple(np.take_along_axis(values[query_of], top, axis=1) for values in (found.facts.number, grade))  # type: ignore[return-value]


def _noise(cfg: DemoConfig, search: Codes, found: DrawnCandidates) -> tuple[Numbers, NDArray[np.bool_]]:
    """Variation between searches of one query: Gumbel noise, and a mask of stray candidates."""
    at = np.arange(len(found.kind))
    noise = gumbel(cfg.seed, Draw.SEARCH_NOISE, search[:, None], at)
    share = np.select([found.kind == kind for kind in STRAY_SHARE], list(STRAY_SHARE.values()), 0.0)
    return noise, numbers(cfg.seed, Draw.SEARCH_STRAY, search[:, None], at) < share


class Intent(NamedTuple):
    """Actions of users on examined pins; bool arrays of one shape."""

    click: NDArray[np.bool_]
    long_click: NDArray[np.bool_]  # having clicked
    save: NDArray[np.bool_]  # having clicked
    hide: NDArray[np.bool_]  # not having clicked


def examination(seed: int, search: Codes, num_shown: int) -> NDArray[np.bool_]:
    """Examination of each position by the user of each search, bool; (num_searches, num_shown)."""
    at = np.arange(num_shown)[None, :]
    return numbers(seed, Draw.EXAMINED, search[:, None], at) < (at + 1.0) ** -ETA


def intents(seed: int, search: Codes, key: Codes, grade: Codes) -> Intent:
    """Draw the actions of each search's user on pins of these grades, if examined.

    Args:
        key: What the draws belong to, (num_searches or 1, num_shown): the position, as in the log, or the pin, so that
            a user's interest in a pin does not depend on its position.
        grade: 1..5, (num_searches, num_shown).
    """

    def would(what: Draw, rates: tuple[float, ...]) -> NDArray[np.bool_]:
        return numbers(seed, what, search[:, None], key) < np.array(rates)[grade - 1]

    return Intent(
        click=would(Draw.CLICK, CLICK),
        long_click=would(Draw.LONG_CLICK, LONG_CLICK),
        save=would(Draw.SAVE, SAVE),
        hide=would(Draw.HIDE, HIDE),
    )


def _act(seed: int, search: Codes, grade: Codes) -> tuple[NDArray[np.bool_], Codes]:
    """Events, (num_searches, SHOWN, len(ACTIONS)) as in `ACTIONS`, and their seconds after the search."""
    at = np.arange(grade.shape[1])[None, :]
    examined, wish = examination(seed, search, grade.shape[1]), intents(seed, search, at, grade)
    click = examined & wish.click
    hide = examined & ~wish.click & wish.hide
    clicked_at = 2 + 4 * at + (numbers(seed, Draw.DELAY, search[:, None], at) * 20).astype(np.int64)
    none = np.zeros_like(clicked_at)
    happened = np.stack([np.ones_like(click), click, click & wish.long_click, click & wish.save, hide], axis=2)
    return happened, np.stack([none, clicked_at, clicked_at + 30, clicked_at + 12, clicked_at], axis=2)
