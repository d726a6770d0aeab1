"""The one validation of each source table: raw rows in, valid rows and quarantined rows out, none lost.

Two steps, so that files can be checked anywhere and compared where they meet: `check_batch` looks at rows one by one
(any file, any machine), `settle` at all rows with equal keys together (duplicates, references, order).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.config import IngestLimits
from ray_app.base.hashing import hash_pin_ids
from ray_app.base.schemas import BOARDS, HUMAN_LABELS, PINS, QUARANTINE, SEARCH_LOG, with_vectors
from ray_app.sources import rows
from ray_app.sources.cells import CellError, cell_check
from ray_app.sources.rows import RawBatch, content_of

KEYS = {
    "pins": ["pin_id"],
    "boards": ["board_id", "pin_id"],
    "search_log": ["event_id"],
    "human_labels": ["query", "locale", "pin_id", "rater_id"],
}
TABLES = tuple(KEYS)
KEYS["adjudicated"] = ["query", "locale", "pin_id"]  # human labels of which a pair has one

# Columns of a checked table beside its own: where a row comes from, and why it is refused (null: it is not).
_PROVENANCE = [
    pa.field("_source", pa.string()),
    pa.field("_row", pa.int64()),
    pa.field("_reason", pa.string()),
    pa.field("_content", pa.string()),
]


@dataclass(frozen=True, kw_only=True)
class TableRules:
    """Validation rules of one table's rows; picklable."""

    table: str  # one of KEYS
    schema: pa.Schema
    limits: IngestLimits
    grade_map: dict[int, int] | None = None
    client_key: bytes = field(default=b"", repr=False)  # of the search log: what client ids are hashed with
    latest_ms: int | None = None  # of the search log: later events have not happened; None: not checked

    @property
    def key(self) -> list[str]:
        """Columns that identify a row."""
        return KEYS[self.table]

    @property
    def checked_schema(self) -> pa.Schema:
        """The table's columns, nullable, and a row's place and reason."""
        return pa.schema([*(f.with_nullable(True) for f in self.schema), *_PROVENANCE])


def table_rules(
    table: str,
    limits: IngestLimits,
    grade_map: dict[int, int] | None = None,
    external_embeddings: dict[str, int] | None = None,
) -> TableRules:
    """Rules of a source table; pins have one more column per named vector."""
    schemas = {"pins": PINS, "boards": BOARDS, "search_log": SEARCH_LOG}
    schema = schemas.get(table, HUMAN_LABELS)
    if table == "pins":
        schema = with_vectors(schema, external_embeddings or {})
    return TableRules(table=table, schema=schema, limits=limits, grade_map=grade_map)


def check_batch(batch: RawBatch, rules: TableRules) -> pa.Table:
    """Check rows one by one; row i of the result is row i of the batch, then come its broken rows.

    Returns:
        `rules.checked_schema`: clean values, or nulls with `_reason` and `_content` where a row is refused. A row
        with several faults carries the first, in the order of the columns.
    """
    num_rows = len(batch.rows)
    reasons: list[str | None] = [None] * num_rows
    arrays: list[pa.Array] = []
    for column in rules.schema:
        values = batch.columns.get(column.name)
        if values is None:
            values = [None] * num_rows
        arrays.append(_check_column(values, column, rules, reasons))
    if rules.table == "search_log":
        _require_pin_of_engagement(arrays, rules.schema, reasons)
    broken = batch.broken
    bad = [i for i, reason in enumerate(reasons) if reason is not None]
    content: list[str | None] = [None] * num_rows
    for i in bad:
        content[i] = content_of({name: values[i] for name, values in batch.columns.items() if name != "client_id"})
    if broken:
        nulls = [pa.nulls(len(broken), array.type) for array in arrays]
        arrays = [pa.concat_arrays(pair) for pair in zip(arrays, nulls, strict=True)]
    arrays += [
        pa.array([batch.source] * num_rows + [batch.source] * len(broken), pa.string()),
        pa.array([*batch.rows, *(b.row for b in broken)], pa.int64()),
        pa.array([*reasons, *(b.reason for b in broken)], pa.string()),
        pa.array([*content, *(b.content for b in broken)], pa.string()),
    ]
    return pa.Table.from_arrays(arrays, schema=rules.checked_schema)


class PinIds:
    """The pins that rows may name, as sorted 64-bit hashes: 8 bytes each, which the tasks of a machine share.

    Args:
        hashes: (num_pins,) uint64, in any order.
    """

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self._hashes = np.sort(hashes)

    @classmethod
    def of(cls, pin_ids: pa.Array | pa.ChunkedArray) -> "PinIds":
        """Build the set from a column of ids."""
        return cls(hash_pin_ids(pin_ids.to_pylist()))

    def known(self, pin_ids: pa.ChunkedArray) -> pa.Array:
        """Mask of the ids that are in the set; null for a null id. One in 10^9 other ids passes among 10^10 pins."""
        found = np.zeros(len(pin_ids), bool)
        if len(self._hashes):
            wanted = hash_pin_ids(pin_ids.to_pylist())
            place = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
            found = self._hashes[place] == wanted
        return pa.array(found, mask=pc.is_null(pin_ids).to_numpy(zero_copy_only=False))


def settle(checked: Sequence[pa.Table], rules: TableRules, pin_ids: PinIds | None = None) -> tuple[pa.Table, pa.Table]:
    """Compare all rows of a part: unknown pins and repeated keys are refused, the rest is put in the key's order.

    Of rows with one key the first stays: lowest source name, then lowest row. The result does not depend on the
    order in which files or batches arrive.

    Args:
        checked: Results of `check_batch`, with all rows of each key that they have.
        pin_ids: The pins that may be named; None: not checked.

    Returns:
        Valid rows under `rules.schema`, and quarantined rows under QUARANTINE; together as many as came in.
    """
    rows_ = in_source_order(checked, rules)
    if pin_ids is not None:
        rows_ = refuse_unknown_pins(rows_, pin_ids, rules)
    return valid_and_quarantine(refuse_repeated_keys(rows_, rules), rules)


def in_source_order(checked: Sequence[pa.Table], rules: TableRules) -> pa.Table:
    """All rows of a part, in the order of their sources' names and of their rows there."""
    rows_ = pa.concat_tables([rules.checked_schema.empty_table(), *checked])
    # Stable: rows of one line of a log (its impressions) keep their order.
    return rows_.take(pc.sort_indices(rows_, sort_keys=[("_source", "ascending"), ("_row", "ascending")]))


def refuse_unknown_pins(checked: pa.Table, pin_ids: PinIds, rules: TableRules) -> pa.Table:
    """The same rows; those of pins that are not in the catalogue are refused."""
    if "pin_id" not in rules.schema.names:
        return checked
    known = pc.fill_null(pin_ids.known(checked["pin_id"]), True)
    return _refuse_some(checked, pc.invert(known), f"{rows.UNKNOWN_PIN}: pin_id is not in pins")


def refuse_repeated_keys(checked: pa.Table, rules: TableRules) -> pa.Table:
    """The same rows; those whose key a row before them has, which is not refused itself, are refused."""
    good = np.flatnonzero(pc.is_null(checked["_reason"]).to_numpy())
    again = np.zeros(checked.num_rows, bool)
    again[good] = checked.select(rules.key).take(pa.array(good)).to_pandas().duplicated(keep="first").to_numpy()
    return _refuse_some(checked, pa.array(again), f"{rows.DUPLICATE_KEY}: {', '.join(rules.key)} came before")


def valid_and_quarantine(checked: pa.Table, rules: TableRules) -> tuple[pa.Table, pa.Table]:
    """Valid rows under `rules.schema` in the order of their key, and refused ones under QUARANTINE in that of their source."""
    valid = checked.filter(pc.is_null(checked["_reason"])).sort_by([(name, "ascending") for name in rules.key])
    quarantine = _as_quarantine(checked.filter(pc.is_valid(checked["_reason"])), rules)
    order = pc.sort_indices(quarantine, sort_keys=[("source", "ascending"), ("row", "ascending")])
    return valid.select(rules.schema.names).cast(rules.schema).combine_chunks(), quarantine.take(order)


def _refuse_some(checked: pa.Table, lost: pa.Array | pa.ChunkedArray, reason: str) -> pa.Table:
    """The same rows; `lost` ones that were not refused before now are."""
    places = np.flatnonzero(pc.and_(lost, pc.is_null(checked["_reason"])).to_numpy(zero_copy_only=False))
    if not len(places):
        return checked
    refused = refuse(checked.take(pa.array(places)), reason)
    kept = np.setdiff1d(np.arange(checked.num_rows), places)
    both = pa.concat_tables([checked.take(pa.array(kept)), refused])
    return both.take(pa.array(np.argsort(np.concatenate([kept, places]), kind="stable")))


def _check_column(
    values: Sequence[Any] | pa.Array, column: pa.Field, rules: TableRules, reasons: list[str | None]
) -> pa.Array:
    """Clean values of one column; faults go to `reasons`, where there is none yet."""
    if isinstance(values, pa.Array) and (clean_vectors := _whole_vectors(values, column.type)) is not None:
        return clean_vectors
    if isinstance(values, pa.Array):
        values = values.to_pylist()
    latest_ms = rules.latest_ms if column.name == "timestamp" else None
    check = cell_check(column, rules.limits, rules.grade_map, rules.client_key, latest_ms)
    clean: list[Any] = []
    for i, value in enumerate(values):
        try:
            clean.append(check(value))
        except CellError as fault:
            clean.append(None)
            reasons[i] = reasons[i] or str(fault)
    if pa.types.is_timestamp(column.type):
        return pa.array(clean, pa.int64()).cast(column.type)
    return pa.array(clean, column.type)


def _whole_vectors(values: pa.Array, wanted: pa.DataType) -> pa.Array | None:
    """The vectors of a column that is right as a whole, without a look at each; None: look at each."""
    if not pa.types.is_fixed_size_list(values.type) or values.type.list_size != wanted.list_size:
        return None
    if not pa.types.is_floating(values.type.value_type) or values.flatten().null_count:
        return None
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is what is asked for next
        numbers = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return values.cast(wanted) if np.isfinite(numbers).all() else None


def _require_pin_of_engagement(arrays: list[pa.Array], schema: pa.Schema, reasons: list[str | None]) -> None:
    """Only an impression may be without a pin: a search that showed nothing."""
    pin = arrays[schema.get_field_index("pin_id")]
    action = arrays[schema.get_field_index("action")]
    lost = pc.and_(pc.is_null(pin), pc.fill_null(pc.not_equal(action, "impression"), False))
    for i in np.flatnonzero(lost.to_numpy(zero_copy_only=False)):
        reasons[i] = reasons[i] or f"{rows.NULL_KEY}: pin_id is missing"


def refuse(checked: pa.Table, reason: str) -> pa.Table:
    """Checked rows with a reason why they are refused, and their content."""
    names = [name for name in checked.column_names if not name.startswith("_")]
    content = [content_of(row) for row in checked.select(names).to_pylist()]
    for name, values in (("_reason", [reason] * len(content)), ("_content", content)):
        checked = checked.set_column(checked.column_names.index(name), name, pa.array(values, pa.string()))
    return checked


def _as_quarantine(refused: pa.Table, rules: TableRules) -> pa.Table:
    table = pa.array([rules.table] * refused.num_rows, pa.string())
    columns = [table, refused["_source"], refused["_row"], refused["_reason"], refused["_content"]]
    return pa.Table.from_arrays(columns, names=QUARANTINE.names).cast(QUARANTINE)
