"""User Behavior Insights (UBI) logs -> raw search log rows.

A UBI log has two kinds of documents (https://ubisearch.dev, versions 1.0 to 1.3): a *query* with the objects that it
showed, and *events* that name a query and, mostly, an object. They come as lines of JSON, alone or after
`ubi_queries<TAB>` / `ubi_events<TAB>`, or wrapped in a search engine's `_source`.

Every object that a query showed becomes an impression (position 1..n); a query that showed nothing becomes one
impression without a pin; an event whose action is in the map becomes that action. Other events (page views, sorting,
filters) are no rows of this table: they are counted as ignored.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ray_app.base.config import UbiSource
from ray_app.base.content_key import content_key
from ray_app.sources import rows
from ray_app.sources.adapters.table import parse_json_object
from ray_app.sources.client_ids import client_id_of
from ray_app.sources.files import SourceFile
from ray_app.sources.rows import RawBatch, ReadRows, printable_bytes

# One line of a log, cut down to what the join needs; `payload` is JSON. Kind `ignored` carries a count in `row`.
UBI_RECORDS = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),  # query, event, broken, ignored
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("payload", pa.string(), nullable=False),
        # Equal for records that meet in the join, or whose event ids may be equal.
        pa.field("group", pa.string(), nullable=False),
    ]
)

_SHOWN_FIELDS = ("query_response_object_ids", "query_response_objects_ids", "query_response_hit_ids")  # by version
_LOG_COLUMNS = ("event_id", "timestamp", "query", "locale", "pin_id", "position", "action", "client_id")
_SAID = ("query_id", "client_id", "user_query", "timestamp")  # by queries and events alike
MAX_SHOWN = 1_000  # objects of one query, each of which becomes a row; guessed: no page shows as many
MAX_LINE_BYTES = 1_000_000  # guessed: of a document with MAX_SHOWN ids of 256 characters, and its query
_ID_RECIPE = "ubi-event-1"


def read_ubi_file(file: SourceFile, source: UbiSource) -> pa.Table:
    """The queries and the wanted events of one file, undigested; UBI_RECORDS.

    Raises:
        UserError: the file is corrupt or cannot be read.
    """
    records: list[dict[str, Any]] = []
    ignored = 0
    for number, line in file.lines(MAX_LINE_BYTES):
        tag, tab, rest = line.partition(b"\t")
        is_tagged = bool(tab) and tag.startswith(b"ubi_") and len(line) <= MAX_LINE_BYTES
        document = parse_json_object(rest if is_tagged else line, MAX_LINE_BYTES)
        if isinstance(document, str):  # why it is none; a text in the log itself must not pass for a reason
            found: tuple[str, dict[str, Any]] | None = ("broken", {"reason": document})
        else:
            found = _digest(document.get("_source", document), source)
        if found is None:
            ignored += 1
            continue
        kind, payload = found
        if kind == "broken":
            payload["content"] = printable_bytes(line)
        group = str(payload.get("query_id") or payload.get("client_id") or number)
        group = group.encode("utf-8", "backslashreplace").decode()  # bytes that are not UTF-8 are lone surrogates in it
        records.append(
            {"kind": kind, "source": file.name, "row": number, "payload": json.dumps(payload), "group": group}
        )
    records.append({"kind": "ignored", "source": file.name, "row": ignored, "payload": "{}", "group": ""})
    return pa.Table.from_pylist(records, schema=UBI_RECORDS)


def join_ubi(
    tables: Sequence[pa.Table], source: UbiSource, pin_id_of: Mapping[str, str] | None
) -> tuple[list[RawBatch], int]:
    """Join the events of all files with the queries of all files.

    Args:
        pin_id_of: Their object id -> our pin id; ids that it lacks stay as they are. None: they are pin ids.

    Returns:
        Raw search log rows, one batch per file, and the number of lines ignored.
    """
    records = pa.concat_tables([UBI_RECORDS.empty_table(), *tables])
    records = records.sort_by([("source", "ascending"), ("row", "ascending")])
    ignored = 0
    queries: dict[str, dict[str, Any]] = {}
    lines: list[tuple[str, str, int, dict[str, Any]]] = []
    for record in records.to_pylist():
        if record["kind"] == "ignored":
            ignored += record["row"]
            continue
        payload = json.loads(record["payload"])
        lines.append((record["kind"], record["source"], record["row"], payload))
        if record["kind"] == "query" and isinstance(payload["query_id"], str):
            queries.setdefault(payload["query_id"], payload)

    found: dict[str, ReadRows] = {}
    for kind, name, number, payload in lines:
        read = found.setdefault(name, ReadRows(name))
        if kind == "broken":
            read.refuse(number, payload["reason"], payload["content"])
        elif kind == "query":
            for row in _impressions(payload, f"{name}:{number}", pin_id_of):
                read.add(number, row)
        else:
            read.add(number, _engagement(payload, queries, pin_id_of))
    return [found[name].batch(_LOG_COLUMNS, locale=source.locale) for name in sorted(found)], ignored


def _digest(document: Any, source: UbiSource) -> tuple[str, dict[str, Any]] | None:
    """Kind and compact content of a document; None: it is no row of a search log."""
    if not isinstance(document, dict):
        return "broken", {"reason": f"{rows.CORRUPT_ROW}: not a JSON object"}
    if "action_name" in document:
        return _digest_event(document, source)
    if "user_query" not in document:
        return "broken", {"reason": f"{rows.CORRUPT_ROW}: neither a UBI query nor a UBI event"}
    shown = next((document[name] for name in _SHOWN_FIELDS if document.get(name) is not None), None) or []
    if not isinstance(shown, list):
        return "broken", {"reason": f"{rows.WRONG_TYPE}: the objects shown are not a list"}
    if len(shown) > MAX_SHOWN:
        return "broken", {"reason": f"{rows.TOO_LONG}: {len(shown):,} objects shown, at most {MAX_SHOWN:,} are allowed"}
    return "query", {**{name: document.get(name) for name in _SAID}, "shown": shown}


def _digest_event(document: dict[str, Any], source: UbiSource) -> tuple[str, dict[str, Any]] | None:
    name = document["action_name"]
    action = source.actions.get(name) if isinstance(name, str) else None
    if action is None:
        return None
    attributes = document.get("event_attributes")
    thing = attributes.get("object") if isinstance(attributes, dict) else None
    if not isinstance(thing, dict) or thing.get("object_id") is None:
        return None
    if source.object_id_field is not None and thing.get("object_id_field") != source.object_id_field:
        return None
    place = attributes.get("position") if isinstance(attributes, dict) else None
    position = (place.get("ordinal") or place.get("index")) if isinstance(place, dict) else None
    payload = {name: document.get(name) for name in _SAID}
    return "event", {**payload, "action": action, "object_id": thing["object_id"], "position": position}


def _impressions(query: dict[str, Any], place: str, pin_id_of: Mapping[str, str] | None) -> Iterator[dict[str, Any]]:
    """One row per object shown, or one without a pin. Event ids repeat only where the log repeats the query."""
    ids = query["shown"] or [None]
    for position, object_id in enumerate(ids, start=1):
        yield {
            "event_id": _event_id(query["query_id"] or place, "impression", position, object_id),
            "timestamp": query["timestamp"], "query": query["user_query"], "pin_id": _translate(object_id, pin_id_of),
            "position": position if object_id is not None else None, "action": "impression",
            "client_id": query["client_id"],
        }  # fmt: skip


def _engagement(
    event: dict[str, Any], queries: Mapping[str, dict[str, Any]], pin_id_of: Mapping[str, str] | None
) -> dict[str, Any]:
    query = (queries.get(event["query_id"]) if isinstance(event["query_id"], str) else None) or {}
    shown: list[Any] = query.get("shown") or []
    object_id = event["object_id"]
    return {
        # All that tells two events apart: a client that sends the same event twice has made one.
        "event_id": _event_id(
            event["query_id"], event["client_id"], event["action"], object_id, event["timestamp"], event["position"]
        ),
        "timestamp": event["timestamp"],
        "query": query.get("user_query") or event["user_query"],
        "pin_id": _translate(object_id, pin_id_of),
        "position": shown.index(object_id) + 1 if object_id in shown else event["position"],
        "action": event["action"],
        "client_id": query.get("client_id") if client_id_of(event["client_id"]) is None else event["client_id"],
    }


def _event_id(*parts: Any) -> str:
    return content_key(_ID_RECIPE, *(None if part is None else str(part) for part in parts))


def _translate(object_id: Any, pin_id_of: Mapping[str, str] | None) -> Any:
    if pin_id_of is None or not isinstance(object_id, str | int):
        return object_id
    return pin_id_of.get(str(object_id), str(object_id))
