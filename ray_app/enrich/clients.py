"""Whose events count: support is counted in distinct clients, since one client makes as many events as it likes."""

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.config import EnrichConfig


def client_of(search_log: pa.Table, cfg: EnrichConfig) -> pa.ChunkedArray:
    """The client of each event, string; null: unknown, which supports nothing.

    With `enrich.count_events_without_client` such an event is of a client of its own.

    Args:
        search_log: event_id and client_id of SEARCH_LOG.
        cfg: What the log's owner knows of it.
    """
    clients = search_log["client_id"]
    if not cfg.count_events_without_client:
        return clients
    return pc.coalesce(clients, pc.binary_join_element_wise("event", search_log["event_id"], " "))
