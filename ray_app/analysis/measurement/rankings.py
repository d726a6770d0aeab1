"""Ranked result files: which pins a ranker shows for each query, best first.

CSV, JSONL and Parquet have the columns query, pin_id, rank or score, and maybe locale; TREC runs have lines of
`query Q0 pin_id rank score tag`, the query percent-encoded (`red%20balloon`) or an id that a file of topics explains.
A ranking that is read half is a wrong measurement that nothing shows, so whatever is odd in a file is an error.
"""

import csv
import difflib
import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq

from ray_app.base.errors import UserError
from ray_app.base.locales import canonical_locale
from ray_app.base.text import normalize_query
from ray_app.sources.adapters.table import parse_json_object
from ray_app.sources.files import SourceFile, find_files

COLUMNS = ("query", "locale", "pin_id", "rank", "score")
QueryKey = tuple[str, str]  # normalised query, locale
Row = tuple[str, Mapping[str, Any]]  # where it stands, such as "line 3"; its values

_TREC_FIELDS = 6
_BATCH_ROWS = 20_000


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Pins that a ranker shows."""

    name: str  # for messages and tables
    pins: dict[QueryKey, list[str]]  # query -> distinct pin ids, best first; an empty list: it found nothing


def read_ranking(
    path: str, key: str, default_locale: str | None, topics: Mapping[str, tuple[str, str | None]] | None = None
) -> Ranking:
    """Read a result file.

    Pins are put in the order of `rank` (lowest first), or of `score` (highest first) where there is no rank; in TREC
    runs by score, as trec_eval does. Ties go by pin_id, descending, as there; so the order of the rows does not matter.

    Args:
        path: Local path or URI; `.gz` and `.zip` are opened.
        key: The argument that named it, for messages.
        default_locale: Of rows without one; None: there must be none.
        topics: Of TREC runs: id -> query, and its locale or None; None: the ids are percent-encoded queries.

    Raises:
        UserError: names the file and the row: no file, no rows, an unknown, missing or empty column, a rank or score that
            is no number, no locale, a pin twice, or a query in two spellings that normalise alike.
    """
    file, kind = _open(path, key)
    places: dict[QueryKey, dict[str, tuple[float, str]]] = {}  # pin -> place in the order, and the row that said so
    spellings: dict[QueryKey, tuple[str, str]] = {}
    sort_by = None
    for at, row in _READERS[kind](file):
        where = f"{key}: {file.basename}, {at}"
        _check_columns(where, row)
        if sort_by is None:
            sort_by = "rank" if row.get("rank") is not None and kind != "trec" else "score"
        raw, named = str(_text(where, row, "query")), row.get("locale")
        if kind == "trec":
            raw, named = _topic(where, raw, topics)
        locale = _locale(where, named or default_locale)
        query = (normalize_query(raw), locale)
        if not query[0]:
            raise UserError(f"{where}: query is empty")
        before, seen_at = spellings.setdefault(query, (raw, at))
        if before != raw:
            raise UserError(
                f"{where}: {raw!r} is the query {before!r} of {seen_at} in another spelling; keep one of them"
            )
        pin = _text(where, row, "pin_id")
        place = _number(where, row, sort_by)
        pins = places.setdefault(query, {})
        if pin in pins:
            raise UserError(f"{where}: pin {pin!r} of query {raw!r} ({locale}) was in {pins[pin][1]}; keep one of them")
        pins[pin] = (place if sort_by == "rank" else -place, at)
    if not places:
        raise UserError(f"{key}: {file.basename} has no rows; give it a file of ranked results")
    ordered = {q: sorted(sorted(pins, reverse=True), key=lambda pin: pins[pin][0]) for q, pins in places.items()}
    return Ranking(name=file.basename, pins=dict(sorted(ordered.items())))


def read_topics(path: str, key: str) -> dict[str, tuple[str, str | None]]:
    """Lines of `id<TAB>query[<TAB>locale]` -> query and locale by id, for TREC runs; an error names the file and the line."""
    topics: dict[str, tuple[str, str | None]] = {}
    file = find_files(path, key)[0]
    for number, line in file.lines():
        where = f"{key}: {file.basename}, line {number + 1}"
        fields = _decode(where, line).split("\t")
        if len(fields) not in (2, 3) or not fields[0] or not normalize_query(fields[1]):
            raise UserError(f"{where}: not an id, a tab and a query, and maybe a tab and a locale")
        if fields[0] in topics:
            raise UserError(f"{where}: the id {fields[0]!r} came before")
        topics[fields[0]] = (fields[1], fields[2] if len(fields) == 3 and fields[2] else None)
    return topics


# --- formats ------------------------------------------------------------------------------------------------------


def _csv_rows(file: SourceFile) -> Iterator[Row]:
    with file.open_plain() as raw:
        reader = csv.reader(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""))
        try:
            header = next(reader, [])
            for record in reader:
                if len(record) == len(header):
                    yield f"line {reader.line_num}", dict(zip(header, record, strict=True))
                elif record:  # an empty line is no row
                    told = f"{len(record)} fields where the header has {len(header)}"
                    raise UserError(f"{file.key}: {file.basename}, line {reader.line_num}: {told}")
        except (csv.Error, UnicodeDecodeError) as error:
            told = f"{file.key}: {file.basename}, after line {reader.line_num}: not CSV in UTF-8 ({error})"
            raise UserError(told) from None


def _jsonl_rows(file: SourceFile) -> Iterator[Row]:
    for number, line in file.lines():
        row = parse_json_object(line)
        if isinstance(row, str):
            raise UserError(f"{file.key}: {file.basename}, line {number + 1}: {row.partition(': ')[2]}")
        yield f"line {number + 1}", row


def _parquet_rows(file: SourceFile) -> Iterator[Row]:
    number = 0
    with file.open_plain() as raw, pq.ParquetFile(raw) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


def _trec_rows(file: SourceFile) -> Iterator[Row]:
    for number, line in file.lines():
        fields = _decode(f"{file.key}: {file.basename}, line {number + 1}", line).split()
        if len(fields) != _TREC_FIELDS:
            told = f"{len(fields)} fields, a TREC run has {_TREC_FIELDS}: query Q0 pin_id rank score tag"
            raise UserError(f"{file.key}: {file.basename}, line {number + 1}: {told}")
        yield f"line {number + 1}", {"query": fields[0], "pin_id": fields[2], "score": fields[4]}


_READERS: dict[str, Callable[[SourceFile], Iterator[Row]]] = {
    "csv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows, "trec": _trec_rows,
}  # fmt: skip
_ENDINGS = {
    "csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet", "pq": "parquet",
    "trec": "trec", "run": "trec", "res": "trec", "txt": "trec",
}  # fmt: skip


def _open(path: str, key: str) -> tuple[SourceFile, str]:
    file, *others = find_files(path, key)
    if others:
        raise UserError(f"{key}: {path} is {len(others) + 1} files; a ranking is one file")
    kind = _ENDINGS.get(file.basename.lower().removesuffix(".gz").removesuffix(".zip").rpartition(".")[2])
    if kind is None:
        raise UserError(f"{key}: cannot tell the format of {file.basename}; name it .csv, .jsonl, .parquet or .trec")
    return file, kind


# --- cells --------------------------------------------------------------------------------------------------------


def _check_columns(where: str, row: Mapping[str, Any]) -> None:
    for name in row:
        if name not in COLUMNS:
            near = difflib.get_close_matches(str(name), COLUMNS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"a ranking has {', '.join(COLUMNS)}"
            raise UserError(f"{where}: unknown column {name!r}; {hint}")
    if "rank" not in row and "score" not in row:
        raise UserError(f"{where}: neither rank nor score; add one of these columns")


def _text(where: str, row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # ids that a Parquet or JSON file keeps as numbers
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {name} is {'missing' if value is None else 'empty or no text'}")
    return value


def _locale(where: str, locale: Any) -> str:
    if not locale:
        raise UserError(f"{where}: no locale; give the locale of such rows by --locale, as en-US (und: not known)")
    try:
        return canonical_locale(str(locale))
    except ValueError as fault:
        raise UserError(f"{where}: locale {locale!r} is {fault}") from None


def _number(where: str, row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    try:
        number = float(value) if value is not None and not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {name} must be a number, not {value!r}")
    return number


def _topic(where: str, name: str, topics: Mapping[str, tuple[str, str | None]] | None) -> tuple[str, str | None]:
    if topics is None:
        return unquote(name), None
    if name not in topics:
        raise UserError(f"{where}: the topics have no query with the id {name!r}")
    return topics[name]


def _decode(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error})") from None
