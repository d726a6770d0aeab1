"""Raw rows on their way from an adapter to validation: columns of Python values with their place in the source."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ray_app.base.schemas import QUARANTINE

MAX_CONTENT_CHARS = 2_000  # of a quarantined row

# Reason codes: what `reason` in the quarantine table starts with.
NULL_KEY = "null_key"
DUPLICATE_KEY = "duplicate_key"
WRONG_TYPE = "wrong_type"
GRADE_OFF_SCALE = "grade_off_scale"
INVALID_UTF8 = "invalid_utf8"
TOO_LONG = "too_long"
BAD_TIMESTAMP = "bad_timestamp"
FUTURE_EVENT = "future_event"
UNKNOWN_ACTION = "unknown_action"
UNKNOWN_PIN = "unknown_pin"
BAD_VECTOR = "bad_vector"
BAD_LOCALE = "bad_locale"
CORRUPT_ROW = "corrupt_row"
UNLABELLED_PAIR = "unlabelled_pair"
REPLACED = "replaced"  # no fault: a rater's grade of a pair that was adjudicated


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenRow:
    """A row that could not even be taken apart."""

    source: str
    row: int
    reason: str  # starts with a code
    content: str


@dataclass(kw_only=True, slots=True)
class RawBatch:
    """Rows of one file, column by column, nothing checked.

    Text that is not UTF-8 arrives with its bytes as lone surrogates (Python's `surrogateescape`), so that one bad
    byte costs one row and not the file.
    """

    source: str  # file name
    rows: Sequence[int]  # place of each row in its source, (num_rows,)
    columns: dict[str, Sequence[Any] | pa.FixedSizeListArray]  # each (num_rows,)
    broken: list[BrokenRow] = field(default_factory=list)


def rows_to_columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Columns of a list of dicts; an absent value is None."""
    return {name: [row.get(name) for row in rows] for name in names}


def content_of(row: Mapping[str, Any]) -> str:
    """A row as JSON of at most 2,000 characters, whatever is in it."""
    short = {name: _shorten(value) for name, value in row.items() if value is not None}
    return json.dumps(short, default=str)[:MAX_CONTENT_CHARS]  # ASCII: lone surrogates become \\udcXX


def is_utf8(text: str) -> bool:
    """Whether a text of a `RawBatch` was UTF-8 in its source."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def quarantine_table(table: str, rows: Sequence[BrokenRow]) -> pa.Table:
    """Rows under the QUARANTINE schema."""
    values = [(table, r.source, r.row, r.reason, r.content[:MAX_CONTENT_CHARS]) for r in rows]
    return pa.Table.from_pylist([dict(zip(QUARANTINE.names, row, strict=True)) for row in values], schema=QUARANTINE)


def printable_bytes(data: bytes) -> str:
    """Undecodable bytes as text for the quarantine table."""
    return data[:MAX_CONTENT_CHARS].decode("utf-8", "backslashreplace").rstrip("\r\n")


def _shorten(value: Any) -> Any:
    if isinstance(value, str):
        return value[:MAX_CONTENT_CHARS]
    if isinstance(value, bytes):
        return printable_bytes(value)
    if isinstance(value, list | tuple) and len(value) > 64:  # a vector
        return [*value[:8], f"... {len(value)} values"]
    return value
