"""Queries that may be shown to others, such as the examples of the start page: those of several distinct clients."""

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import EnrichConfig
from ray_app.base.schemas import PUBLIC_QUERIES
from ray_app.base.text import normalize_query
from ray_app.features.search_events import client_of


def public_queries(search_log: pa.Table, cfg: EnrichConfig) -> pa.Table:
    """The queries that at least `enrich.min_clients` distinct clients searched, in any locale.

    What one person searched may name that person. That several did does not prove that it is harmless, nor that they are
    several people: ray_app/sources/client_ids.py.

    Args:
        search_log: SEARCH_LOG.
        cfg: How many clients, and who is one.

    Returns:
        PUBLIC_QUERIES, sorted by query.
    """
    rows = pa.table({"query": search_log["query"], "client": client_of(search_log, cfg)})
    pairs = rows.filter(pc.is_valid(rows["client"])).group_by(["query", "client"]).aggregate([])
    normalized = {query: normalize_query(query) for query in pc.unique(pairs["query"]).to_pylist()}
    queries = pa.array([normalized[query] for query in pairs["query"].to_pylist()], pa.string())
    counts = (
        pa.table({"query": queries, "client": pairs["client"]})
        .group_by("query")
        .aggregate([("client", "count_distinct")])
    )
    found = counts.filter(
        pc.and_(pc.greater_equal(counts["client_count_distinct"], cfg.min_clients), pc.not_equal(counts["query"], ""))
    )
    return pa.Table.from_arrays([found["query"], found["client_count_distinct"]], schema=PUBLIC_QUERIES).sort_by(
        "query"
    )
