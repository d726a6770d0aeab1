"""Parquet, CSV and JSONL files with a column map, as raw batches."""

import csv
import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa

from ray_app.base.config import TableSource
from ray_app.base.errors import UserError
from ray_app.base.locales import UNKNOWN
from ray_app.sources import rows
from ray_app.sources.adapters.parquet import BATCH_BYTES, BATCH_ROWS, iter_parquet
from ray_app.sources.files import MAX_LINE_BYTES, SourceFile
from ray_app.sources.rows import RawBatch, ReadRows, printable_bytes
from ray_app.sources.validate import TableRules

Format = Literal["parquet", "csv", "jsonl"]
_ENDINGS: dict[str, Format] = {
    "parquet": "parquet", "pq": "parquet", "csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl",
}  # fmt: skip


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
    for part, given in (("columns", source.columns), ("constants", source.constants)):
        for name in given:
            if name not in rules.schema.names:
                near = difflib.get_close_matches(name, rules.schema.names, n=1, cutoff=0.4)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(rules.schema.names)}"
                raise UserError(f"{file.section}.{part}: {rules.table} has no column {name!r}{hint}")
    return {name: source.columns.get(name, name) for name in rules.schema.names if name not in source.constants}


def _format_of(file: SourceFile) -> Format:
    ending = file.basename.lower().removesuffix(".gz").removesuffix(".zip").rsplit(".", 1)[-1]
    if ending not in _ENDINGS:
        raise UserError(
            f"{file.section}.format: cannot tell it from the name {file.basename}; set parquet, csv or jsonl"
        )
    return _ENDINGS[ending]


def _require(present: Sequence[str], file: SourceFile, theirs: dict[str, str], rules: TableRules) -> list[str]:
    """Our columns that the file has; refuses a file without one that the table cannot do without, or that is mapped."""
    for name, their in theirs.items():
        needed = not rules.schema.field(name).nullable or their != name
        if needed and their not in present:
            hint = f", such as `locale: en-US`, or `locale: {UNKNOWN}` if it is not known" if name == "locale" else ""
            raise UserError(
                f"{file.section}.columns: {file.path} has no column {their!r} for {name} (it has "
                f"{', '.join(present)[:300]}); map {name} to one of them, or give it a value in {file.section}.constants{hint}"
            )
    return [name for name, their in theirs.items() if their in present]


def _read_parquet(file: SourceFile, theirs: dict[str, str], rules: TableRules) -> Iterator[RawBatch]:
    names: list[str] = []

    def choose(schema: pa.Schema) -> list[str]:
        names.extend(_require(schema.names, file, theirs, rules))
        for name in names:
            _require_values(schema.field(schema.names.index(theirs[name])), file, rules.schema.field(name))
        return [theirs[name] for name in names]

    start = 0
    lists = (field.type for field in rules.schema if pa.types.is_fixed_size_list(field.type))
    for batch in iter_parquet(file, choose, 8 * sum(vector.list_size for vector in lists)):
        columns = {name: _python_values(batch.column(theirs[name])) for name in names}
        yield RawBatch(source=file.name, rows=range(start, start + batch.num_rows), columns=columns)
        start += batch.num_rows


def _require_values(column: pa.Field, file: SourceFile, ours: pa.Field) -> None:
    """Refuse columns of lists where single values belong: what they come to is not known before they are decoded."""
    if not pa.types.is_nested(column.type):
        return
    is_vector = pa.types.is_fixed_size_list(ours.type) and hasattr(column.type, "value_type")
    if not is_vector or not pa.types.is_primitive(column.type.value_type):
        raise UserError(
            f"{file.section}.columns: column {column.name!r} of {file.path} is of the type {column.type}, which {ours.name} cannot "
            "be made of; map another column"
        )


def _python_values(array: pa.Array) -> Sequence[Any] | pa.Array:
    """Python values of an Arrow column; one bad value costs that value only."""
    if pa.types.is_fixed_size_list(array.type):
        return array  # vectors are checked as a whole
    if pa.types.is_dictionary(array.type):  # equal values are one object
        value_of = dict(enumerate(_python_values(array.dictionary)))
        return [value_of.get(code) for code in array.indices.to_pylist()]
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
        lines = _RecordLines(file.text_lines(raw))
        reader = csv.reader(lines)  # its lone surrogates are found by validation in the very cell
        header = next(reader, None)
        if header is None:
            return
        # Longer ones have a field that csv refuses, or too many; quotes within a field are written twice.
        lines.most_chars = min(MAX_LINE_BYTES, 2 * (csv.field_size_limit() + 2) * len(header))
        names = _require(header, file, theirs, rules)
        index = {name: header.index(theirs[name]) for name in names}
        read = ReadRows(file.name)
        number, num_chars = -1, 0
        while True:
            number += 1
            num_chars += lines.num_chars
            lines.num_chars = 0
            if len(read) >= BATCH_ROWS or num_chars > BATCH_BYTES:
                yield read.batch(names)
                read, num_chars = ReadRows(file.name), 0
            try:
                record = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                too_long = isinstance(error, _TooLongError) or "field larger" in str(error)
                read.refuse(number, f"{rows.TOO_LONG if too_long else rows.CORRUPT_ROW}: {error}", "")
                continue
            if len(record) == len(header):
                read.add(number, {name: record[i] for name, i in index.items()})
            elif record:  # an empty line is no row
                reason = f"{rows.CORRUPT_ROW}: {len(record):,} fields where the header has {len(header)}"
                content = rows.content_of({str(i): value for i, value in enumerate(record[: len(header)])})
                read.refuse(number, reason, content)
        yield read.batch(names)


class _TooLongError(csv.Error):
    pass


class _RecordLines:
    """Lines for `csv.reader` while its record, which quotes may spread over any number of lines, is not too long.

    Its fields are thereby counted before they are spelled out: a line of nothing but commas becomes no list of millions.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.num_chars = 0  # read since somebody set it to 0
        self.most_chars = MAX_LINE_BYTES  # of a record

    def __iter__(self) -> "_RecordLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.num_chars += len(line)
        if self.num_chars >= self.most_chars:
            raise _TooLongError(f"the record has {self.most_chars:,} characters or more")
        return line


def _read_jsonl(file: SourceFile, theirs: dict[str, str], rules: TableRules) -> Iterator[RawBatch]:
    read, num_bytes = ReadRows(file.name), 0
    for number, line in file.lines():
        row = parse_json_object(line)
        if isinstance(row, str):
            read.refuse(number, row, printable_bytes(line))
        else:
            read.add(number, row)
        num_bytes += len(line)
        if len(read) >= BATCH_ROWS or num_bytes > BATCH_BYTES:
            yield _jsonl_batch(file, theirs, rules, read)
            read, num_bytes = ReadRows(file.name), 0
    yield _jsonl_batch(file, theirs, rules, read)


def _jsonl_batch(file: SourceFile, theirs: dict[str, str], rules: TableRules, read: ReadRows) -> RawBatch:
    if read.rows:  # a key that no row has is a wrong map, not thousands of bad rows
        _require(list(dict.fromkeys(key for row in read.rows for key in row)), file, theirs, rules)
    batch = read.batch(list(theirs.values()))
    batch.columns = {name: batch.columns[their] for name, their in theirs.items()}
    return batch


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
