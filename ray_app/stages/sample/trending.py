"""Queries that are searched far more in the window than before it."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import xlogy

from ray_app.base.text import normalize_query

# All three must be met; guessed. The growth keeps out large queries that rise a little, the score small ones that rise
# by chance (about one in 30,000 stable queries reaches 4), the support those of a handful of searches.
MIN_SEARCHES = 10
MIN_GROWTH = 2.0
MIN_SCORE = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Trending:
    """A query of one locale whose share of the searches grew."""

    query: str  # normalised
    locale: str
    num_searches: int  # in the window
    growth: float  # share of the locale's searches in the window over that before, half a search added to both counts
    score: float  # signed root of the likelihood ratio: about a standard normal number if nothing changed


def trending_scores(
    now: NDArray, then: NDArray, all_now: NDArray, all_then: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Which queries are trending.

    Shares are of the locale's searches, so that a market that grows does not make all of its queries trend. A locale
    without searches before has none: nothing can be said. The log does not name searches: the impressions of one query
    in one second are taken for one, since counting rows would make twelve observations of one page. In a log without
    impressions it is all events.

    The score follows Dunning, "Accurate methods for the statistics of surprise and coincidence", Computational
    Linguistics 19 (1993). It takes searches as independent: a bot that repeats a query looks like a trend.

    Args:
        now, then: (num_queries,) searches in the window and before it.
        all_now, all_then: (num_queries,) those of all queries of the locale.

    Returns:
        Rows of the trending ones, their scores, and their growth.
    """
    rows = np.flatnonzero((now >= MIN_SEARCHES) & (all_then > 0))
    now, then, all_now, all_then = (values[rows] for values in (now, then, all_now, all_then))
    growth = (now + 0.5) / np.maximum(all_now, 1) / ((then + 0.5) / np.maximum(all_then, 1))
    score = rise_score(now, then, all_now, all_then)
    rises = (growth >= MIN_GROWTH) & (score >= MIN_SCORE)
    return rows[rises], score[rises], growth[rises]


def rise_score(now: NDArray, then: NDArray, all_now: NDArray, all_then: NDArray) -> NDArray[np.float64]:
    """Signed root of the likelihood ratio of `now` among `now + then` searches; positive: more than the totals' share.

    Args:
        now: (num_queries,) searches in the window.
        then: (num_queries,) searches before.
        all_now: (num_queries,) searches of all queries in the window, at least 1.
        all_then: (num_queries,) those before, at least 1.
    """
    expected = (now + then) * all_now / (all_now + all_then)
    rest = now + then - expected
    ratio = xlogy(now, now / np.maximum(expected, 1e-300)) + xlogy(then, then / np.maximum(rest, 1e-300))
    return np.sign(now - expected) * np.sqrt(2.0 * np.maximum(ratio, 0.0))


def impressions(log: pa.Table) -> pa.Table:
    """Rows of what was shown."""
    return log.filter(pc.equal(log["action"], "impression"))


def num_searches(log: pa.Table) -> dict[tuple[str, str], int]:
    """(normalised query, locale) -> searches: distinct seconds in which it has events.

    Args:
        log: query, locale, timestamp; its impressions, if it has any.
    """
    second = pc.floor_temporal(log["timestamp"], unit="second")
    rows = pa.table({"query": log["query"], "locale": log["locale"], "second": second})
    searches = rows.group_by(rows.column_names).aggregate([])
    counted = searches.group_by(["query", "locale"]).aggregate([([], "count_all")])
    out: dict[tuple[str, str], int] = {}
    for row in counted.to_pylist():
        key = (normalize_query(row["query"]), row["locale"])
        out[key] = out.get(key, 0) + row["count_all"]
    return out
