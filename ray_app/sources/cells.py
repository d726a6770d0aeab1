"""Checks of single values: each takes a raw value and gives the clean one, or raises `CellError` with a reason code."""

import base64
import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.base.config import IngestLimits
from ray_app.base.locales import UNKNOWN, canonical_locale
from ray_app.base.schemas import ACTIONS, NUM_GRADES
from ray_app.sources import rows
from ray_app.sources.client_ids import client_id_of, hash_client

Check = Callable[[Any], Any]

_IDS = ("pin_id", "board_id", "event_id", "rater_id", "guideline_version")
_MAX_POSITION = 2**31 - 1

# Epoch numbers below this are seconds, above it milliseconds: 1e11 s is the year 5138, 1e11 ms is March 1973.
_SECONDS_BELOW = 1e11
_FIRST_MS = int(datetime(1900, 1, 1, tzinfo=UTC).timestamp() * 1000)
_LAST_MS = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp() * 1000)


class CellError(Exception):
    """A value that its column does not take; the message starts with a reason code."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")


def cell_check(
    column: pa.Field, limits: IngestLimits, grade_map: dict[int, int] | None, client_key: bytes = b"",
    latest_ms: int | None = None,
) -> Check:  # fmt: skip
    """The check of one column of a source table.

    Args:
        column: Field of the table's schema; a null in a non-nullable one is `null_key`, but for a locale, which is
            UNKNOWN then.
        limits: Longest ids, queries and texts, in characters. Client ids, of which a hash is kept, may have any length.
        grade_map: Their grade -> ours; None: grades are 1..5 already.
        client_key: Of the hashes of client ids; empty: without one.
        latest_ms: Milliseconds since 1970 after which nothing can have happened yet; None: any time may be.
    """
    name = column.name
    if name == "locale":
        return _locale(limits.max_id_chars, None if column.nullable else UNKNOWN)
    if name == "grade":
        check = _grade(grade_map)
    elif name == "position":
        check = _position
    elif name == "action":
        check = _action
    elif pa.types.is_timestamp(column.type):
        check = _timestamp(name, latest_ms)
    elif pa.types.is_fixed_size_list(column.type):
        check = _vector(name, column.type.list_size)
    elif pa.types.is_binary(column.type):
        check = _bytes(name, limits.max_image_bytes)
    elif name == "client_id":
        check = _client(client_key)
    elif name in _IDS:
        check = _identifier(name, limits.max_id_chars)
    else:
        check = _text(name, limits.max_query_chars if name == "query" else limits.max_text_chars)
    return check if column.nullable else _required(name, check)


def _required(name: str, check: Check) -> Check:
    def checked(value: Any) -> Any:
        clean = check(value)
        if clean is None:
            raise CellError(rows.NULL_KEY, f"{name} is missing")
        return clean

    return checked


def _text(name: str, max_chars: int) -> Check:
    """Text as it is; empty and blank are null."""

    def checked(value: Any) -> str | None:
        if type(value) is not str:
            if _is_absent(value):
                return None
            raise CellError(rows.WRONG_TYPE, f"{name} is {type(value).__name__}, not text")
        if len(value) > max_chars:
            raise CellError(rows.TOO_LONG, f"{name} has {len(value):,} characters, at most {max_chars:,} are allowed")
        if not rows.is_utf8(value):
            raise CellError(rows.INVALID_UTF8, f"{name} is not UTF-8")
        return None if not value or value.isspace() else value

    return checked


def _bytes(name: str, max_bytes: int) -> Check:
    """Bytes as they are, or base64 text, which is what CSV and JSONL can hold; empty is null."""

    def checked(value: Any) -> bytes | None:
        if isinstance(value, str):
            try:
                value = base64.b64decode(value.removeprefix("data:").rpartition("base64,")[2], validate=True)
            except ValueError:
                raise CellError(rows.WRONG_TYPE, f"{name} is text, but not base64") from None
        if _is_absent(value) or value == b"":
            return None
        if not isinstance(value, bytes):
            raise CellError(rows.WRONG_TYPE, f"{name} is {type(value).__name__}, not bytes")
        if len(value) > max_bytes:
            raise CellError(rows.TOO_LONG, f"{name} has {len(value):,} bytes, at most {max_bytes:,} are allowed")
        return value

    return checked


def _identifier(name: str, max_chars: int) -> Check:
    """Text, or a whole number written out: many catalogues count their products."""
    text = _text(name, max_chars)

    def checked(value: Any) -> str | None:
        return text(str(value) if type(value) is int else value)

    return checked


def _client(key: bytes) -> Check:
    """The hash of a client's id; null: the client is unknown, which is no fault of the event."""

    def checked(value: Any) -> str | None:
        client_id = client_id_of(value)
        return None if client_id is None else hash_client(client_id, key)

    return checked


def _locale(max_chars: int, unknown: str | None) -> Check:
    """A locale in its canonical form; absent, blank and UNKNOWN become `unknown`."""
    text = _text("locale", max_chars)

    def checked(value: Any) -> str | None:
        given = text(value)
        try:
            locale = UNKNOWN if given is None else canonical_locale(given)
        except ValueError as fault:
            raise CellError(rows.BAD_LOCALE, f"locale {str(given)[:80]!r} is {fault}") from None
        return unknown if locale == UNKNOWN else locale

    return checked


def _grade(grade_map: dict[int, int] | None) -> Check:
    def checked(value: Any) -> int | None:
        number = _whole_number("grade", value)
        if number is None:
            return None
        grade = number if grade_map is None else grade_map.get(number)
        if grade is None or not 1 <= grade <= NUM_GRADES:
            scale = f"1..{NUM_GRADES}" if grade_map is None else f"in the grade map {sorted(grade_map)}"
            raise CellError(rows.GRADE_OFF_SCALE, f"grade {number} is not {scale}")
        return grade

    return checked


def _position(value: Any) -> int | None:
    number = _whole_number("position", value)
    if number is not None and not 1 <= number <= _MAX_POSITION:
        raise CellError(rows.WRONG_TYPE, f"position {number} is not a rank from 1 up")
    return number


def _action(value: Any) -> str | None:
    if _is_absent(value) or value == "":
        return None
    if isinstance(value, str) and value in ACTIONS:
        return value
    raise CellError(rows.UNKNOWN_ACTION, f"{str(value)[:80]!r} is not one of {', '.join(ACTIONS)}")


def _timestamp(name: str, latest_ms: int | None) -> Check:
    """Milliseconds since 1970 (UTC) of a datetime, an ISO 8601 text (UTC if it names no zone) or an epoch number."""

    def checked(value: Any) -> int | None:
        if _is_absent(value) or value == "":
            return None
        try:
            number = _epoch_ms(value)
        except (ValueError, OverflowError):
            raise CellError(rows.BAD_TIMESTAMP, f"{name} {str(value)[:80]!r} is not a valid timestamp") from None
        if not _FIRST_MS <= number < _LAST_MS:
            raise CellError(rows.BAD_TIMESTAMP, f"{name} {str(value)[:80]!r} is not between 1900 and 2200")
        if latest_ms is not None and number > latest_ms:
            latest = datetime.fromtimestamp(latest_ms / 1000, UTC).isoformat(timespec="seconds")
            raise CellError(rows.FUTURE_EVENT, f"{name} {str(value)[:80]!r} is later than {latest}, a day from now")
        return number

    return checked


def _epoch_ms(value: Any) -> int:
    if isinstance(value, str):
        value = value.strip()
        value = (
            float(value) if value.replace(".", "", 1).isdigit() and len(value) > 8 else datetime.fromisoformat(value)
        )
    if isinstance(value, datetime):
        zoned = value if value.tzinfo else value.replace(tzinfo=UTC)
        return round(zoned.timestamp() * 1000)
    if isinstance(value, date):
        return round(datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp() * 1000)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("no time")
    return round(value * 1000 if abs(value) < _SECONDS_BELOW else value)


def _vector(name: str, dim: int) -> Check:
    def checked(value: Any) -> Any:
        if _is_absent(value):
            return None
        try:
            with np.errstate(over="ignore"):  # becomes infinite, which is refused below
                vector = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError, OverflowError):  # the last: an integer beyond all floats
            raise CellError(rows.BAD_VECTOR, f"{name} is not a list of numbers") from None
        if vector.shape != (dim,):
            raise CellError(rows.BAD_VECTOR, f"{name} has shape {vector.shape}, it must be ({dim},)")
        if not np.isfinite(vector).all():
            raise CellError(rows.BAD_VECTOR, f"{name} has values that are not finite")
        return vector

    return checked


def _whole_number(name: str, value: Any) -> int | None:
    if type(value) is int:
        return value
    if _is_absent(value):
        return None
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None
        try:
            return int(text) if len(text) < 20 else _not_whole(name, value)
        except ValueError:
            return _not_whole(name, value)
    if isinstance(value, float) and value.is_integer():  # pandas writes whole numbers with gaps as floats
        return int(value)
    return _not_whole(name, value)


def _not_whole(name: str, value: Any) -> int:
    raise CellError(rows.WRONG_TYPE, f"{name} {str(value)[:80]!r} is not a whole number")


def _is_absent(value: Any) -> bool:
    """None, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))
