"""Whose events count: support is counted in distinct clients, since one client makes as many events as it likes."""

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import EnrichConfig
from ray_app.base.text import query_group


def client_of(search_log: pa.Table, cfg: EnrichConfig) -> pa.ChunkedArray:
    """The client of each event, string; null: unknown, which supports nothing.

    With `enrich.count_events_without_client` such an event is of a client of its own.
    """
    clients = search_log["client_id"]
    if not cfg.count_events_without_client:
        return clients
    return pc.coalesce(clients, pc.binary_join_element_wise("event", search_log["event_id"], " "))


def allowed_queries(queries: Collection[str], excluded_queries: Collection[str]) -> set[str]:
    """Filter `queries` (normalized): drop empty ones, excluded ones and near duplicates of excluded ones."""
    excluded = {query_group(query) for query in excluded_queries}
    return {query for query in queries if query and query_group(query) not in excluded}
