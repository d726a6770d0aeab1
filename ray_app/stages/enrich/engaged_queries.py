"""Queries that led users to a pin, strongest engagement first."""

from collections.abc import Collection

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import EnrichConfig
from ray_app.base.text import normalize_query
from ray_app.features.search_events import allowed_queries, client_of
from ray_app.stages.enrich.board_titles import lists_by_pin

_DAY_MS = 86_400_000
_RANK_DIGITS = 9  # weights that differ less than rounding errors do are equal, and then the query decides


def top_engaged_queries(
    search_log: pa.Table, excluded_queries: Collection[str], cfg: EnrichConfig
) -> dict[str, list[str]]:
    """The queries with the most time-decayed engagement for each pin, of those that several clients engaged with it for.

    An event weighs `action_weights[action] * 0.5 ** (age / half_life)`; impressions and `hide` weigh nothing. Of the events of
    one client about one pin for one query only the heaviest counts, so that no client weighs more than one save. Age is
    counted from the log, not from today, so the same log gives the same result at any time. From which event of it
    changes no rank, since it scales all weights of a pin alike; the pin's own latest keeps the numbers near 1 and
    makes them independent of what happens to other pins.

    Args:
        search_log: SEARCH_LOG.
        excluded_queries: Queries under evaluation. They and their near duplicates (`query_group`: plural, spacing,
            case) are left out; else the text of a pin would carry the answer.
        cfg: Weights, half-life, minimum number of distinct clients per (query, pin), top K.

    Returns:
        pin_id -> 1 to `cfg.top_queries` normalised queries; pins without any are absent.
    """
    weight_of = {str(action): weight for action, weight in cfg.action_weights.items()}
    engaged = pc.is_in(search_log["action"], value_set=pa.array(list(weight_of), pa.string()))
    search_log = search_log.append_column("client", client_of(search_log, cfg))
    counted = pc.and_(engaged, pc.and_(pc.is_valid(search_log["pin_id"]), pc.is_valid(search_log["client"])))
    events = search_log.filter(counted)
    time_ms = events["timestamp"].cast(pa.int64())
    frame = events.select(["query", "pin_id", "action", "client"]).append_column("time_ms", time_ms).to_pandas()
    normalized = {query: normalize_query(query) for query in frame["query"].unique()}
    frame["query"] = frame["query"].map(normalized)
    allowed = allowed_queries(set(normalized.values()), excluded_queries)
    frame = frame[frame["query"].isin(allowed)].copy()
    age_days = (frame.groupby("pin_id")["time_ms"].transform("max") - frame["time_ms"]) / _DAY_MS
    frame["weight"] = frame["action"].map(weight_of).astype(float) * np.exp2(-age_days / cfg.half_life_days)
    return _rank(frame, cfg)


def drop_engaged_queries(pin_texts: pa.Table, excluded_queries: Collection[str]) -> pa.Table:
    """`pin_texts` without these engaged queries and their near duplicates, for an evaluation on other queries."""
    lists = pin_texts["engaged_queries"].to_pylist()
    kept = allowed_queries({query for queries in lists for query in queries or []}, excluded_queries)
    cleaned = [[query for query in queries or [] if query in kept] or None for queries in lists]
    index = pin_texts.column_names.index("engaged_queries")
    return pin_texts.set_column(index, pin_texts.schema.field(index), pa.array(cleaned, pa.list_(pa.string())))


def _rank(events: pd.DataFrame, cfg: EnrichConfig) -> dict[str, list[str]]:
    # Grouping sorts, so that weights are summed in one order, whatever the log's.
    by_client = events.groupby(["pin_id", "query", "client"])["weight"].max().reset_index()
    sums = by_client.groupby(["pin_id", "query"])["weight"].agg(["sum", "size"]).reset_index()
    sums = sums[sums["size"] >= cfg.min_clients]
    with np.errstate(divide="ignore"):  # engagement so old that it weighs 0 comes last
        sums["strength"] = np.log2(sums["sum"].to_numpy(np.float64)).round(_RANK_DIGITS)
    sums = sums.sort_values(["pin_id", "strength", "query"], ascending=[True, False, True])
    return lists_by_pin(sums["pin_id"], sums["query"], cfg.top_queries)
