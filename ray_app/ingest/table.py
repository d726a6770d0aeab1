"""Parquet, CSV and JSONL files with a column map, as raw batches."""

import csv
import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.config import TableSource
from ray_app.errors import UserError
from ray_app.ingest import rows
from ray_app.ingest.files import MAX_LINE_BYTES, SourceFile
from ray_app.ingest.rows import BrokenRow, RawBatch, printable_bytes, rows_to_columns
from ray_app.ingest.validate import TableRules
from ray_app.locales import UNKNOWN

BATCH_ROWS = 20_000  # bounds the Python objects alive at once; larger ones are not faster

Format = Literal["parquet", "csv", "jsonl"]
_ENDINGS: dict[str, Format] = {
    "parquet": "parquet",
    "pq": "parquet",
    "csv": "csv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
}


def read_table_file(file: SourceFile, source: TableSource, rules: TableRules) -> Iterator[RawBatch]:
    """Raw rows of one file, under our column names.

    Raises:
        UserError: the file is corrupt or of an unknown format, or lacks a column that the table needs.
    """
    theirs = _column_map(file, source, rules)
    kind = source.format or _format_of(file)
    if kind == "parquet":
        batches = _read_parquet(file, theirs, rules)
    elif kind == "csv":
        batches = _read_csv(file, theirs, rules)
    else:
        batches = _read_jsonl(file, theirs, rules)
    for batch in batches:
        for name, value in source.constants.items():
            batch.columns[name] = [value] * len(batch.rows)
        yield batch


def _column_map(file: SourceFile, source: TableSource, rules: TableRules) -> dict[str, str]:
    """Our column -> theirs, for the columns that come from the file."""
    section = file.key.removesuffix(".path")
    for part, given in (("columns", source.columns), ("constants", source.constants)):
        for name in given:
            if name not in rules.schema.names:
                near = difflib.get_close_matches(name, rules.schema.names, n=1, cutoff=0.4)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(rules.schema.names)}"
                raise UserError(f"{section}.{part}: {rules.table} has no column {name!r}{hint}")
    return {name: source.columns.get(name, name) for name in rules.schema.names if name not in source.constants}


def _format_of(file: SourceFile) -> Format:
    ending = file.basename.lower().removesuffix(".gz").removesuffix(".zip").rsplit(".", 1)[-1]
    if ending not in _ENDINGS:
        section = file.key.removesuffix(".path")
        raise UserError(f"{section}.format: cannot tell it from the name {file.basename}; set parquet, csv or jsonl")
    return _ENDINGS[ending]


def _require(present: Sequence[str], file: SourceFile, theirs: dict[str, str], rules: TableRules) -> list[str]:
    """Our columns that the file has; refuses a file without one that the table cannot do without, or that is mapped."""
    for name, their in theirs.items():
        needed = not rules.schema.field(name).nullable or their != name
        if needed and their not in present:
            section = file.key.removesuffix(".path")
            hint = f", such as `locale: en-US`, or `locale: {UNKNOWN}` if it is not known" if name == "locale" else ""
            raise UserError(
                f"{section}.columns: {file.path} has no column {their!r} for {name} (it has "
                f"{', '.join(present)[:300]}); map {name} to one of them, or give it a value in {section}.constants{hint}"
            )
    return [name for name, their in theirs.items() if their in present]


def _read_parquet(file: SourceFile, theirs: dict[str, str], rules: TableRules) -> Iterator[RawBatch]:
    with file.open_plain() as raw, pq.ParquetFile(raw) as parquet:
        names = _require(parquet.schema_arrow.names, file, theirs, rules)
        start = 0
        for batch in parquet.iter_batches(BATCH_ROWS, columns=[theirs[name] for name in names]):
            columns = {name: _python_values(batch.column(theirs[name])) for name in names}
            yield RawBatch(source=file.name, rows=range(start, start + batch.num_rows), columns=columns)
            start += batch.num_rows


def _python_values(array: pa.Array) -> Sequence[Any] | pa.Array:
    """Python values of an Arrow column; one bad value costs that value only."""
    if pa.types.is_fixed_size_list(array.type):
        return array  # vectors are checked as a whole
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        binary = array.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in binary]
    except (ValueError, OverflowError):  # a time that Python's datetime cannot hold
        return [_python_value(scalar) for scalar in array]


def _python_value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return f"{getattr(scalar, 'value', '?')} ({scalar.type})"


def _read_csv(file: SourceFile, theirs: dict[str, str], rules: TableRules) -> Iterator[RawBatch]:
    with file.open_plain() as raw:
        reader = csv.reader(file.text_lines(raw))  # its lone surrogates are found by validation in the very cell
        header = next(reader, None)
        if header is None:
            return
        names = _require(header, file, theirs, rules)
        index = {name: header.index(theirs[name]) for name in names}
        good: list[tuple[int, list[str]]] = []
        broken: list[BrokenRow] = []
        number = -1
        while True:
            number += 1
            try:
                record = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                code = rows.TOO_LONG if "field larger" in str(error) else rows.CORRUPT_ROW
                broken.append(BrokenRow(source=file.name, row=number, reason=f"{code}: {error}", content=""))
                continue
            if len(record) == len(header):
                good.append((number, record))
            elif record:  # an empty line is no row
                reason = f"{rows.CORRUPT_ROW}: {len(record)} fields where the header has {len(header)}"
                content = rows.content_of(dict(enumerate(record)))  # type: ignore[arg-type]
                broken.append(BrokenRow(source=file.name, row=number, reason=reason, content=content))
            if len(good) + len(broken) >= BATCH_ROWS:
                yield _csv_batch(file, index, good, broken)
                good, broken = [], []
        yield _csv_batch(file, index, good, broken)


def _csv_batch(
    file: SourceFile, index: dict[str, int], good: list[tuple[int, list[str]]], broken: list[BrokenRow]
) -> RawBatch:
    columns: dict[str, Any] = {name: [record[i] for _, record in good] for name, i in index.items()}
    return RawBatch(source=file.name, rows=[number for number, _ in good], columns=columns, broken=broken)


def _read_jsonl(file: SourceFile, theirs: dict[str, str], rules: TableRules) -> Iterator[RawBatch]:
    good: list[tuple[int, dict[str, Any]]] = []
    broken: list[BrokenRow] = []
    for number, line in file.lines():
        row = parse_json_object(line)
        if isinstance(row, str):
            broken.append(BrokenRow(source=file.name, row=number, reason=row, content=printable_bytes(line)))
        else:
            good.append((number, row))
        if len(good) + len(broken) >= BATCH_ROWS:
            yield _jsonl_batch(file, theirs, rules, good, broken)
            good, broken = [], []
    yield _jsonl_batch(file, theirs, rules, good, broken)


def _jsonl_batch(
    file: SourceFile,
    theirs: dict[str, str],
    rules: TableRules,
    good: list[tuple[int, dict[str, Any]]],
    broken: list[BrokenRow],
) -> RawBatch:
    if good:  # a key that no row has is a wrong map, not thousands of bad rows
        _require(list(dict.fromkeys(key for _, row in good for key in row)), file, theirs, rules)
    found = rows_to_columns([row for _, row in good], list(theirs.values()))
    columns = {name: found[their] for name, their in theirs.items()}
    return RawBatch(source=file.name, rows=[number for number, _ in good], columns=columns, broken=broken)


def parse_json_object(line: bytes, max_bytes: int = MAX_LINE_BYTES) -> dict[str, Any] | str:
    """The JSON object of a line of `SourceFile.lines(max_bytes)`, or the reason why it is none."""
    if len(line) > max_bytes:
        return f"{rows.TOO_LONG}: the line has more than {max_bytes:,} bytes"
    try:
        try:
            value = json.loads(line)
        except UnicodeDecodeError:
            value = json.loads(line.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        return f"{rows.CORRUPT_ROW}: not JSON ({error})"
    except RecursionError:
        return f"{rows.CORRUPT_ROW}: nested too deeply"
    return value if isinstance(value, dict) else f"{rows.CORRUPT_ROW}: not a JSON object"
