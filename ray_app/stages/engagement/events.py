"""Selection of the search log rows that may be trained on, and the engaged (query, pin) pairs among them."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from ray_app.base.config import EngagementConfig, EnrichConfig
from ray_app.base.content_key import content_key
from ray_app.base.text import normalize_query, query_group
from ray_app.features.search_events import allowed_queries, client_of


class Pairs(NamedTuple):
    """Engaged pairs, sorted by query and pin; arrays of length N but for the names.

    Numbers index `queries` and `pin_ids`, which hold no others.
    """

    queries: list[str]  # normalised, sorted
    pin_ids: list[str]  # in the order of the catalogue
    query: np.ndarray  # int64
    pin: np.ndarray  # int64
    weight: np.ndarray  # float32, > 0
    held_out: np.ndarray  # bool: measured, not trained on; the same for all pairs of a query and its near duplicates


def allowed_events(
    search_log: pa.Table, excluded_queries: Collection[str], pin_ids: Sequence[str], actions: EnrichConfig
) -> pd.DataFrame:
    """Rows of the log of known clients about known pins, but for queries under evaluation and their near duplicates (`query_group`).

    Whatever is learned from the others would carry the answer to those queries.

    Args:
        search_log: SEARCH_LOG.
        excluded_queries: All human-labelled queries.
        pin_ids: The catalogue.
        actions: Who is a client.

    Returns:
        Columns query (normalised), pin (row of the catalogue), action, client: each combination once, since one client makes
        as many events as it likes. In the order of the log.
    """
    frame = search_log.select(["query", "pin_id", "action"]).to_pandas()
    frame["client"] = client_of(search_log, actions).to_pandas()
    frame = frame[frame["client"].notna()]
    frame["pin"] = pd.Index(pin_ids).get_indexer(frame["pin_id"])
    frame = frame[frame["pin"] >= 0]
    normalized = {query: normalize_query(query) for query in frame["query"].unique()}
    frame["query"] = frame["query"].map(normalized)
    allowed = allowed_queries(set(normalized.values()), excluded_queries)
    return frame.loc[frame["query"].isin(allowed), ["query", "pin", "action", "client"]].drop_duplicates()


def once_per_client(events: pd.DataFrame) -> pd.DataFrame:
    """`allowed_events` with each client's action on a pin once, whatever the queries, for `engagement_rates`."""
    return events.drop_duplicates(["pin", "action", "client"])


def engaged_pairs(
    events: pd.DataFrame, pin_ids: Sequence[str], actions: EnrichConfig, cfg: EngagementConfig, seed: int
) -> Pairs:
    """Pairs that at least `min_clients` clients engaged with. Each weighs log(1 + sum over clients of their heaviest action).

    The logarithm is a guess: it keeps a few very frequent queries from being all that is learned.
    """
    weight_of = {str(action): weight for action, weight in actions.action_weights.items() if weight > 0}
    events = events[events["action"].isin(weight_of)]
    if events.empty:
        none = np.zeros(0, np.int64)
        return Pairs([], [], none, none, none.astype(np.float32), none.astype(bool))
    by_client = (
        events.assign(weight=events["action"].map(weight_of)).groupby(["query", "pin", "client"])["weight"].max()
    )
    sums = by_client.groupby(["query", "pin"]).agg(["sum", "size"])  # grouping sorts
    sums = sums[sums["size"] >= cfg.min_clients]
    total = sums["sum"].to_numpy(np.float64)
    query, queries = pd.factorize(sums.index.get_level_values("query"), sort=True)
    pin, pins = pd.factorize(sums.index.get_level_values("pin"), sort=True)
    bound = f"{int(cfg.holdout_fraction * 16**8):08x}"
    held_out = np.array([content_key(f"held out {seed}", query_group(q))[:8] < bound for q in queries], bool)
    return Pairs(
        queries=list(queries),
        pin_ids=[pin_ids[row] for row in pins],
        query=query.astype(np.int64),
        pin=pin.astype(np.int64),
        weight=np.log1p(total).astype(np.float32),
        held_out=held_out[query],
    )
