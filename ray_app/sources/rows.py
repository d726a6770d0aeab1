"""Raw rows on their way from an adapter to validation: columns of Python values with their place in the source."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

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


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that could not even be taken apart."""

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


class ReadRows:
    """Rows of one file as they are read, and those that could not be taken apart."""

    def __init__(self, source: str) -> None:
        self._source, self._numbers = source, list[int]()
        self.rows: list[dict[str, Any]] = []
        self.broken: list[BrokenRow] = []

    def __len__(self) -> int:
        return len(self.rows) + len(self.broken)

    def add(self, number: int, row: dict[str, Any]) -> None:
        """A row, by its place in the source."""
        self._numbers.append(number)
        self.rows.append(row)

    def refuse(self, number: int, reason: str, content: str) -> None:
        """A broken row."""
        self.broken.append(BrokenRow(number, reason, content))

    def batch(self, names: Sequence[str], **constants: str) -> RawBatch:
        """All of them, with the columns `names` and those of one value."""
        columns: dict[str, Any] = {**rows_to_columns(self.rows, names)}
        columns |= {name: [value] * len(self.rows) for name, value in constants.items()}
        return RawBatch(source=self._source, rows=self._numbers, columns=columns, broken=self.broken)


def rows_to_columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Columns of a list of dicts; an absent value is None."""
    return {name: [row.get(name) for row in rows] for name in names}


def content_of(row: Mapping[str, Any]) -> str:
    """A row as JSON of at most 2,000 characters, whatever is in it."""
    short = {name: _shorten(value) for name, value in row.items() if value is not None}
    return json.dumps(short, default=str)[:MAX_CONTENT_CHARS]  # ASCII: lone surrogates become \\udcXX


def is_utf8(text: str) -> bool:
    """Return True if a text of a `RawBatch` was valid UTF-8 in its source."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


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
