"""Streams of random numbers that only the simulation draws from, beside the world's (`ray_app.demo.facts.Draw`)."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ray_app.base.config import DemoConfig, SimulateConfig
from ray_app.base.hashing import uniform
from ray_app.base.locales import region_of
from ray_app.base.text import normalize_query
from ray_app.demo.candidates import draw_candidates
from ray_app.demo.facts import LOCALE_NAMES, Codes, Draw, grades, numbers, zipf
from ray_app.demo.queries import Queries, ground_truth_queries, num_pool_queries, pool_queries, split_by_share


class Stream(IntEnum):
    """One stream each; numbers far from the world's."""

    UNSEEN = 1001
    UNSEEN_QUERY = 1002
    CLICKBAIT = 1003
    LURED = 1004
    LOG_NOISE = 1005


# What the upstream retrieval gives; guessed: mostly the kind of thing that was asked for, as of any retrieval worth its
# name, and enough else that a ranker can err.
RETRIEVED_SHARES = {"same": 0.5, "siblings": 0.2, "category": 0.15, "any_pin": 0.15}
NO_PIN = -1
_FIRST_SEARCH = 2**40  # above the searches of any log; a seed has 2**40 numbers of its own
_LOGGED = 2**39  # of these, the ones before the experiment


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Searches and the distinct queries behind them."""

    search: Codes  # (num_searches,) numbers that name the person and the moment
    query_of: Codes  # (num_searches,) rows of `queries`
    queries: Queries  # as typed, with what their authors want
    is_unseen: NDArray[np.bool_]  # (num_queries,) whether neither log nor labels know the query

    @property
    def texts(self) -> list[str]:
        """Normalised text of each query."""
        return [normalize_query(text) for text in self.queries.text]

    @property
    def locales(self) -> list[str]:
        """Locale of each query."""
        return [LOCALE_NAMES[code] for code in self.queries.locale]

    @property
    def clusters(self) -> Codes:
        """(num_queries,) number of the text in its locale: what rises and falls together."""
        names = [f"{locale} {text}" for locale, text in zip(self.locales, self.texts, strict=True)]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """Candidates of each query, by pin number, so that ties are broken by pin; arrays (num_queries, num_candidates)."""

    pins: Codes  # NO_PIN: there are no more
    grades: Codes  # the truth; 0 where there is no pin

    @property
    def is_pin(self) -> NDArray[np.bool_]:
        """Mask of the positions that hold a pin."""
        return self.pins != NO_PIN

    def only(self, known: NDArray[np.bool_]) -> "Retrieved":
        """Without the pins that are not known; (num_pins,)."""
        kept = self.is_pin & known[self.pins]
        return Retrieved(pins=np.where(kept, self.pins, NO_PIN), grades=np.where(kept, self.grades, 0))


def draw_traffic(demo: DemoConfig, cfg: SimulateConfig) -> tuple[Traffic, Traffic]:
    """The searches before the experiment, all for queries of the log's pool, and those of the experiment.

    Both have the same `queries`.
    """
    start = _FIRST_SEARCH * (1 + cfg.seed)
    logged, search = start + _LOGGED + np.arange(cfg.num_logged_searches), start + np.arange(cfg.num_searches)
    unseen = ground_truth_queries(demo.model_copy(update={"ground_truth_queries": cfg.unseen_queries}))
    is_unseen = uniform(demo.seed % 2**64, Stream.UNSEEN, search.astype(np.uint64)) < cfg.unseen_fraction
    nth = uniform(demo.seed % 2**64, Stream.UNSEEN_QUERY, search.astype(np.uint64)) * len(unseen)
    ranks = [zipf(numbers(demo.seed, Draw.SEARCH_QUERY, part), num_pool_queries(demo)) for part in (logged, search)]
    pool = np.unique(np.concatenate(ranks))
    log_rows, rows = (np.searchsorted(pool, rank).astype(np.int64) for rank in ranks)
    rows = np.where(is_unseen, len(pool) + nth.astype(np.int64), rows)
    queries = Queries.joined([pool_queries(demo, pool), unseen])
    flags = np.arange(len(queries)) >= len(pool)
    return (
        Traffic(search=logged, query_of=log_rows, queries=queries, is_unseen=flags),
        Traffic(search=search, query_of=rows, queries=queries, is_unseen=flags),
    )


def retrieve(demo: DemoConfig, queries: Queries, num_candidates: int) -> Retrieved:
    """Candidates of each query: a pin that has all that is asked, others of its object, near ones, and strays."""
    sizes = split_by_share(num_candidates - 1, tuple(RETRIEVED_SHARES.values()))
    drawn = dict(zip(RETRIEVED_SHARES, sizes, strict=True))
    found = draw_candidates(demo, queries.key, queries.asked["object"], queries.pin, popular=False, **drawn)
    true = grades({name: codes[:, None] for name, codes in queries.asked.items()}, found.facts)
    pins = np.where(found.is_first, found.facts.number, demo.num_pins)  # a pin that is there twice goes last
    order = np.argsort(pins, axis=1, kind="stable")
    pins, true = (np.take_along_axis(values, order, axis=1) for values in (pins, true))
    is_pin = pins < demo.num_pins
    return Retrieved(pins=np.where(is_pin, pins, NO_PIN), grades=np.where(is_pin, true, 0))


def country(locale: str) -> str:
    """The region of a locale; of one without a region itself."""
    return region_of(locale) or locale
