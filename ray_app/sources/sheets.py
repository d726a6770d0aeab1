"""Sheets that people fill in with a spreadsheet: how one is written, and how its grades come back.

A sheet is a CSV file, a row per pair, whose grade is left empty until somebody has decided it. Verdicts on labelled pairs
take the place of the raters' grades (`ray_app/analysis/agreement/adjudication_sheet.py` chooses the pairs); first grades of pairs that
nobody has labelled are rows of human labels (`ray_app/analysis/measurement/next_queries.py` chooses them).
"""

import csv
import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import TableSource
from ray_app.base.errors import UserError
from ray_app.base.text import normalize_query, normalize_text
from ray_app.sources import rows
from ray_app.sources.adapters.table import read_table_file
from ray_app.sources.files import SourceFile
from ray_app.sources.rows import RawBatch
from ray_app.sources.validate import KEYS, PinIds, TableRules, check_batch, refuse

SHEET = "adjudicated"  # as a table of ingest: in counts and in quarantine
RATER = "adjudicated"  # rater_id of a verdict; `adjudicated:NAME` if the sheet names who gave it
KEY = tuple(KEYS[SHEET])
GRADE, ADJUDICATOR, NOTE = "adjudicated_grade", "adjudicator", "note"
TO_FILL = (GRADE, ADJUDICATOR, NOTE)
SHOWN = ("title", "caption")  # of a pin, for people
TO_GRADE = (*KEY, *SHOWN, "grade", "rater_id")  # the header by which a sheet of first grades is known
UNNAMED = "unnamed"  # rater_id of a first grade whose row does not say whose it is

# What spreadsheets take for the start of a formula, also behind blanks or in full width, maybe defused already.
_FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@＝＋－＠])")


def is_adjudicator(rater_id: str) -> bool:
    """Return True if a label is a verdict that replaced the raters' grades."""
    return rater_id == RATER or rater_id.startswith(f"{RATER}:")


def defuse(text: str) -> str:
    """A cell that no spreadsheet runs as a formula: what looks like one gets an apostrophe in front."""
    return f"'{text}" if _FORMULA.match(text) else text


def restore(cell: str) -> str:
    """The text that `defuse` made a cell of, or that a spreadsheet has already freed of its apostrophe."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def shown_texts(pin_texts: pa.Table, pin_ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """Columns of pins on a sheet: pin_id -> SHOWN; pins without a row in PIN_TEXTS are absent."""
    wanted = pc.is_in(pin_texts["pin_id"], value_set=pa.array(sorted(set(pin_ids)), pa.string()))
    rows_ = pin_texts.select(["pin_id", *SHOWN]).filter(wanted).to_pylist()
    return {row["pin_id"]: {name: normalize_text(row[name]) for name in SHOWN} for row in rows_}


def write_sheet(columns: Sequence[str], rows_: Sequence[Mapping[str, str]]) -> bytes:
    """A sheet as CSV: UTF-8 with the mark that spreadsheets know it by, every cell quoted and defused."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    writer.writerows([defuse(row.get(name, "")) for name in columns] for row in rows_)
    return text.getvalue().encode("utf-8-sig")


def num_filled(sheet: bytes) -> int:
    """Rows of a sheet in which somebody has written something; of a file that is no sheet, all its lines."""
    text = sheet.decode("utf-8-sig", "replace")
    try:
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error:
        return len(text.splitlines())
    ours = [lines[0].index(name) for name in TO_FILL if name in lines[0]] if lines else []
    if lines and not ours:
        return len(lines)
    return sum(any(i < len(line) and line[i].strip() for i in ours) for line in lines[1:])


def read_sheet(file: SourceFile, rules: TableRules) -> tuple[pa.Table, int]:
    """Checked rows of one sheet that carry a grade, and how many do not yet.

    Raises:
        UserError: the file is no such sheet.
    """
    _require_columns(file)
    source = TableSource(path=file.uri, format="csv", columns={"grade": GRADE, "rater_id": ADJUDICATOR})
    checked, num_blank = [rules.checked_schema.empty_table()], 0
    for batch in read_table_file(file, source, rules):
        judged = _graded(batch, lambda name: f"{RATER}:{name}" if name else RATER)
        num_blank += len(batch.rows) - len(judged.rows)
        checked.append(check_batch(judged, rules))
    return pa.concat_tables(checked), num_blank


def is_grading_sheet(file: SourceFile) -> bool:
    """Return True for a sheet of first grades, as written by `write_sheet(TO_GRADE, ...)`."""
    return _header(file)[: len(TO_GRADE)] == list(TO_GRADE)


def first_grades(file: SourceFile, rules: TableRules) -> Iterator[RawBatch]:
    """Human labels: the rows of a sheet of first grades that have one; nothing checked."""
    source = TableSource(path=file.uri, format="csv")
    return (_graded(batch, lambda name: name or UNNAMED) for batch in read_table_file(file, source, rules))


def refuse_unlabelled(checked: pa.Table, labels: pa.Table, pin_ids: PinIds) -> pa.Table:
    """Refuse verdicts on pairs that no rater graded: mostly a query or id that the spreadsheet has changed.

    Args:
        pin_ids: All pins; that a pin is unknown is the better reason, and found later.
    """
    known, pins = _keys(labels), pin_ids.known(checked["pin_id"]).to_pylist()
    lost = [key not in known and bool(pin) for key, pin in zip(_key_rows(checked), pins, strict=True)]
    return _with_reason(checked, lost, f"{rows.UNLABELLED_PAIR}: no rater graded this query and pin")


def refuse_replaced(checked: pa.Table, verdicts: pa.Table) -> pa.Table:
    """Refuse the raters' grades of adjudicated pairs."""
    decided = _keys(verdicts)
    replaced = [key in decided for key in _key_rows(checked)]
    return _with_reason(checked, replaced, f"{rows.REPLACED}: the pair was adjudicated")


def _require_columns(file: SourceFile) -> None:
    header = _header(file)
    missing = [name for name in (*KEY, GRADE, ADJUDICATOR) if name not in header]
    if missing:
        raise UserError(
            f"{file.key}: {file.path} has no column {', '.join(missing)}; give it a sheet that pipelines/agreement.py "
            "wrote, saved as CSV in UTF-8 with commas"
        )


def _header(file: SourceFile) -> list[str]:
    _, line = next(file.lines(), (0, b""))
    try:
        return next(csv.reader([line.decode("utf-8-sig", "replace")]), [])
    except csv.Error:  # such as line ends of the Macintosh
        return []


def _graded(batch: RawBatch, rater_of: Callable[[str], str]) -> RawBatch:
    """The rows with a grade, as labels; `rater_of` makes a rater_id of who is named, or of an empty text."""
    columns: dict[str, list[Any]] = {name: [restore(str(c)) for c in batch.columns[name]] for name in KEY}
    columns["grade"] = [_grade(restore(str(cell))) for cell in batch.columns["grade"]]
    columns["rater_id"] = [rater_of(restore(str(cell)).strip()) for cell in batch.columns["rater_id"]]
    judged = [i for i, grade in enumerate(columns["grade"]) if grade]
    return RawBatch(
        source=batch.source,
        rows=[batch.rows[i] for i in judged],
        columns={name: [values[i] for i in judged] for name, values in columns.items()},
        broken=batch.broken,
    )


def _grade(cell: str) -> str:
    """Without blanks, and without the `.0` that a column with gaps gets in pandas and some spreadsheets."""
    return cell.strip().removesuffix(".0")


def _key_rows(table: pa.Table) -> Iterator[tuple[str, ...]]:
    """The pair of each row, spellings of one query alike: its raters are combined, so a verdict is on all of them."""
    for query, *rest in zip(*(table[name].to_pylist() for name in KEY), strict=True):
        yield normalize_query(query), *rest


def _keys(table: pa.Table) -> set[tuple[str, ...]]:
    return set(_key_rows(table))


def _with_reason(checked: pa.Table, refused: Collection[bool], reason: str) -> pa.Table:
    """Give rows that have no reason yet this one; they come last."""
    new = pc.and_(pa.array(refused, pa.bool_()), pc.is_null(checked["_reason"]))
    return pa.concat_tables([checked.filter(pc.invert(new)), refuse(checked.filter(new), reason)])
