"""The search log, bucket by bucket: the events that are sampled, and what is counted of their queries."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.config import EnrichConfig
from ray_app.base.locales import UNKNOWN
from ray_app.base.schemas import SEARCH_LOG
from ray_app.base.storage import Storage
from ray_app.cluster.buckets import map_buckets, shuffle
from ray_app.features.product_types import find_product_types
from ray_app.features.search_events import client_of
from ray_app.sources.held_out import HeldOut
from ray_app.stages.sample.population import (
    ENGAGED_ACTIONS,
    QUERY_ROWS,
    SEARCHES,
    SEARCHES_BEFORE,
    Bands,
    QuerySummary,
    count_events,
    count_types,
    distinct_clients,
    distinct_searches,
    frequency_band,
    gather_queries,
    parts_of,
)
from ray_app.stages.sample.trending import impressions
from ray_app.stages.sample.window import Window
from ray_app.tables.buckets import read_bucket
from ray_app.tables.manifest import Output


@dataclass(frozen=True, kw_only=True, slots=True)
class LogUse:
    """How much of a log, or of a bucket of it, is of use."""

    num_rows: int  # to be sampled
    num_before: int  # before the window
    num_impressions: int  # of the rows to be sampled
    num_impressions_before: int
    num_known: int  # rows to be sampled that name a pin of the catalogue
    num_engaged: int  # of these, engagement
    oldest: datetime | None  # event, be it to be sampled or not; None: there is none
    newest: datetime | None

    @classmethod
    def of(cls, parts: Sequence["LogUse"]) -> "LogUse":
        """Of all buckets."""
        numbers = {
            name: sum(getattr(part, name) for part in parts) for name in cls.__slots__ if name.startswith("num_")
        }
        times = [time for part in parts for time in (part.oldest, part.newest) if time is not None]
        return cls(**numbers, oldest=min(times, default=None), newest=max(times, default=None))

    @property
    def has_impressions(self) -> bool:
        """In the window and before it: searches are counted by them."""
        return self.num_impressions > 0 and self.num_impressions_before > 0

    @property
    def note(self) -> str | None:
        """Note for readers of the manifest; None: the log was used as intended."""
        if not self.num_rows:
            return "there is no search log: all pairs are from BM25 and embedding retrieval of the labelled queries, and random"
        if not self.num_known:
            return "no row of the search log names a pin of the catalogue: its queries were used, with pairs from BM25 and embedding retrieval, and random"
        if not self.num_engaged:
            return (
                "the search log has no engagement (click, long_click, save): its pairs are stratified by position only"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class LogEvents:
    """The table `search_log` with its window. Picklable: tasks read the buckets that they work on."""

    store: Storage
    output: Output
    window: Window | None  # None: all events are sampled

    def read(self, number: int) -> pa.Table:
        """All events of a bucket (SEARCH_LOG)."""
        return read_bucket(self.store, self.output, number, SEARCH_LOG.names)

    def split(self, number: int) -> tuple[pa.Table, pa.Table]:
        """Events of a bucket in the window, and before it."""
        return self.cut(self.read(number))

    def cut(self, log: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Those of some events in the window, and before it."""
        return (log, log.slice(0, 0)) if self.window is None else self.window.split(log)

    def use(self, pin_texts: Output, number: int) -> LogUse:
        """Count a bucket."""
        log = self.read(number)
        inside, before = self.cut(log)
        span = pc.min_max(log["timestamp"]).as_py()
        pin_ids = read_bucket(self.store, pin_texts, number, ["pin_id"])["pin_id"]
        shown = inside.filter(pc.is_in(inside["pin_id"], value_set=pin_ids, skip_nulls=True))
        engaged = pc.sum(pc.is_in(shown["action"], value_set=pa.array(ENGAGED_ACTIONS))).as_py() or 0
        return LogUse(
            num_rows=inside.num_rows, num_before=before.num_rows, num_impressions=impressions(inside).num_rows,
            num_impressions_before=impressions(before).num_rows, num_known=shown.num_rows, num_engaged=engaged,
            oldest=span["min"], newest=span["max"],
        )  # fmt: skip


def newest_event(store: Storage, log: Output) -> datetime | None:
    """Time of a log's last event; None: it is empty."""

    def newest(number: int) -> datetime | None:
        time: datetime | None = pc.max(read_bucket(store, log, number, ["timestamp"])["timestamp"]).as_py()
        return time

    return max((time for time in map_buckets(newest, range(log.num_buckets)) if time is not None), default=None)


def count_queries(
    number: int, events: LogEvents, pin_texts: Output, enrich: EnrichConfig, judged: HeldOut, only_impressions: bool,
    min_type_pins: int,
) -> pa.Table:  # fmt: skip
    """What is counted of the queries of a bucket's log and of its pins' titles (QUERY_ROWS).

    Args:
        number: Of the bucket.
        events: The log.
        pin_texts: The table.
        enrich: Who is a client.
        judged: Of its past, queries may be shown to others: all of it, since one day has few clients.
        only_impressions: Searches are counted by them; False: by all events.
        min_type_pins: What the catalogue calls its things is what people search for: the log of a young shop has few such
            queries. 0: product types are not counted.
    """
    every = events.read(number)
    inside, before = events.cut(every)
    parts = [count_events(inside)]
    if events.window is not None:
        for kind, log in ((SEARCHES, inside), (SEARCHES_BEFORE, before)):
            parts.append(distinct_searches(impressions(log) if only_impressions else log, kind))
    past = judged.past(every)
    parts.append(distinct_clients(past["query"], client_of(past, enrich)))
    if min_type_pins:
        pins = read_bucket(events.store, pin_texts, number, ["title", "locale"])
        parts.append(count_types(product_types(pins)))
    return pa.concat_tables(parts)


def product_types(pins: pa.Table) -> Counter[tuple[str, str]]:
    """(phrase, locale) -> pins whose title names that kind of thing.

    Args:
        pins: Columns title, locale.
    """
    locales = pins["locale"].to_pylist()
    found = find_product_types(pins["title"].to_pylist(), min_pins=1)
    return Counter((pin.phrase, locales[pin.row] or UNKNOWN) for pin in found)


def frequency_bands(store: Storage, log: Output, queries: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Frequency band of some (normalised query, locale) among all queries of a log; those it lacks are UNSEEN."""
    num_parts = log.num_buckets

    def split(number: int) -> tuple[pa.Table, NDArray[np.int64]]:
        rows = count_events(read_bucket(store, log, number, ["query", "locale"]))
        return rows, parts_of(rows["query"].to_pylist(), num_parts)

    def gather(_: int, rows: pa.Table) -> tuple[QuerySummary, dict[tuple[str, str], int]]:
        counts, summary = gather_queries(rows, frozenset(), (), 1)
        found = zip(*(counts[name].to_pylist() for name in ("query", "locale", "num_events")), strict=True)
        return summary, {(query, locale): num for query, locale, num in found if (query, locale) in wanted}

    wanted = frozenset(queries)
    parts = shuffle(range(log.num_buckets), split, gather, num_parts, QUERY_ROWS)
    bands = Bands.of([summary for summary, _ in parts], max_types=0, with_trends=False)
    num_events = {key: num for _, found in parts for key, num in found.items()}
    return {key: frequency_band(num_events.get(key, 0), *bands.least_events.get(key[1], (1, 1))) for key in wanted}
