"""From a configured source to checked rows: which adapter reads what, one file at a time, and which rows must meet."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.config import ChorusSource, Config, Source, TableSource, UbiSource
from ray_app.base.errors import UserError
from ray_app.base.hashing import buckets_of_hashes, text_keys
from ray_app.sources.adapters import chorus
from ray_app.sources.adapters.table import read_table_file
from ray_app.sources.adapters.ubi import UBI_RECORDS, join_ubi, read_ubi_file
from ray_app.sources.client_ids import client_key
from ray_app.sources.files import SourceFile, find_files
from ray_app.sources.rows import RawBatch
from ray_app.sources.sheets import SHEET, first_grades, is_grading_sheet
from ray_app.sources.validate import TABLES, TableRules, check_batch, table_rules

FUTURE = timedelta(days=1)  # that an event may be ahead of the present: clocks and time zones are often wrong by hours


LABELS_FILE = "a file of human labels"
"""As a table of `ADAPTERS`: labels that are named alone (`evaluate.human_labels`), and not found below a folder."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Functions of one adapter for one table; `source` is the adapter's config. Exactly one of the three functions is set."""

    find: Callable[[str, str], list[SourceFile]] = find_files  # (path, config key) -> the table's files
    read: Callable[[SourceFile, Any, TableRules], Iterable[RawBatch]] | None = None  # (file, source, rules)
    read_together: Callable[[Sequence[SourceFile], Any], Iterable[RawBatch]] | None = None
    """(files, source), for files that say something only all together: they are few and small."""
    as_ubi: Callable[[Any], UbiSource] | None = None  # the files are a UBI log, and this is how it is read


def _read_labels_table(file: SourceFile, source: TableSource, rules: TableRules) -> Iterator[RawBatch]:
    return first_grades(file, rules) if is_grading_sheet(file) else read_table_file(file, source, rules)


def _chorus_log(source: ChorusSource) -> UbiSource:
    return UbiSource(path=source.path, locale=source.locale, id_map="ean")


# Config of an adapter -> table -> reader; a table that is absent is one that the adapter does not have.
ADAPTERS: dict[type, dict[str, Reader]] = {
    TableSource: {
        **dict.fromkeys((*TABLES, SHEET), Reader(read=read_table_file)),
        LABELS_FILE: Reader(read=_read_labels_table),
    },
    UbiSource: {"search_log": Reader(as_ubi=lambda source: source)},
    ChorusSource: {
        "pins": Reader(
            find=chorus.product_files, read=lambda file, source, _: chorus.read_products_file(file, source.locale)
        ),
        "search_log": Reader(find=chorus.log_files, as_ubi=_chorus_log),
        "human_labels": Reader(
            find=chorus.label_files, read_together=lambda files, source: chorus.read_labels(files, source.locale)
        ),
        LABELS_FILE: Reader(read=lambda file, source, _: [chorus.read_rated_csv(file, source.locale)]),
    },
}


def _reader(source: Source, table: str) -> Reader:
    found = ADAPTERS[type(source)].get(table)
    if found is None:
        table = "human_labels" if table == LABELS_FILE else table
        raise UserError(
            f"ingest.{table}.adapter: {source.adapter} has no {table}; use another adapter, or leave ingest.{table} out"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """One source table before anything is read: its files, and the rules for its rows."""

    table: str
    source: Source
    files: list[SourceFile]
    rules: TableRules
    ean_files: list[SourceFile] = field(default_factory=list)  # products whose EANs the log uses as ids

    @property
    def size_bytes(self) -> int:
        """Total size of its files, in bytes."""
        return sum(file.size_bytes for file in self.files)

    @property
    def _reader(self) -> Reader:
        return _reader(self.source, self.table)

    @property
    def is_log_of_documents(self) -> bool:
        """Return True if its files hold queries and events that must be joined first."""
        return self._reader.as_ubi is not None

    @property
    def reads_files_together(self) -> bool:
        """Return True if its files can only be read together: they are few and small."""
        return self._reader.read_together is not None

    def read(self, file: SourceFile) -> pa.Table:
        """Rows of one file: checked ones, or those of a log of documents as they are (UBI_RECORDS).

        Raises:
            UserError: the file is corrupt, or lacks a column.
        """
        reader = self._reader
        if reader.as_ubi is not None:
            return read_ubi_file(file, reader.as_ubi(self.source))
        assert reader.read is not None
        return _check(reader.read(file, self.source, self.rules), self.rules)

    @property
    def read_schema(self) -> pa.Schema:
        """Schema of what `read` gives."""
        return UBI_RECORDS if self.is_log_of_documents else self.rules.checked_schema

    def partition_of(self, read: pa.Table, num_parts: int) -> NDArray[np.int64]:
        """Part of each row of `read`: rows of one key, or queries and events that belong together, meet in one."""
        if self.is_log_of_documents:
            return buckets_of_hashes(text_keys(read["group"].to_pylist(), "key"), num_parts)
        key = (read[name].to_pylist() for name in self.rules.key)
        whole = ["\0".join(map(str, values)) for values in zip(*key, strict=True)]
        parts = buckets_of_hashes(text_keys(whole, "key"), num_parts)
        refused = pc.is_valid(read["_reason"]).to_numpy(zero_copy_only=False)
        return np.where(refused, read["_row"].to_numpy() % num_parts, parts)  # their keys may all be null

    def read_pin_id_map(self) -> dict[str, str] | None:
        """Id in the log -> pin id; None: the log has pin ids."""
        return chorus.read_ean_map(self.ean_files) if self.ean_files else None

    def check(self, read: Sequence[pa.Table], pin_id_of: Mapping[str, str] | None) -> tuple[list[pa.Table], int]:
        """Checked rows of a part, in any order, and how many of its lines are no rows of this table."""
        as_ubi = self._reader.as_ubi
        if as_ubi is None:
            return list(read), 0
        batches, ignored = join_ubi(read, as_ubi(self.source), pin_id_of)
        return [check_batch(batch, self.rules) for batch in batches], ignored


def open_source(cfg: Config, table: str, now: datetime | None = None) -> SourceTable | None:
    """Find the files of one of `ingest.pins`, `boards`, `search_log`, `human_labels`; None: not configured.

    Args:
        now: The present, for the search log: events more than `FUTURE` later are refused. None: of the config or the clock.

    Raises:
        UserError: there are no files, the adapter cannot give such a table, or the log's clients have no key.
    """
    source: Source | None = getattr(cfg.ingest, table)
    if source is None:
        return None
    reader = _reader(source, table)
    files = reader.find(source.path, f"ingest.{table}.path")
    eans = _ean_files(cfg) if reader.as_ubi is not None and reader.as_ubi(source).id_map == "ean" else []
    grade_map = getattr(source, "grade_map", None)  # a log of documents has none
    rules = table_rules(table, cfg.ingest.limits, grade_map, cfg.features.external_embeddings)
    if table == "search_log":
        latest = (now or present(cfg)) + FUTURE
        rules = replace(rules, client_key=client_key(cfg.ingest), latest_ms=round(latest.timestamp() * 1000))
    return SourceTable(table=table, source=source, files=files, rules=rules, ean_files=eans)


def present(cfg: Config) -> datetime:
    """`ingest.until`, or else the clock."""
    return cfg.ingest.until or datetime.now(UTC)


def read_source(opened: SourceTable) -> tuple[list[pa.Table], int]:
    """Checked rows of a source in this process, and how many of its lines are no rows of this table.

    Raises:
        UserError: a file is corrupt, or lacks a column.
    """
    if (read_together := opened._reader.read_together) is not None:
        return [_check(read_together(opened.files, opened.source), opened.rules)], 0
    return opened.check([opened.read(file) for file in opened.files], opened.read_pin_id_map())


def open_human_labels(cfg: Config, path: str, key: str) -> SourceTable:
    """A file of human labels read as `ingest.human_labels` says: same column map, locale and grade map.

    A sheet that `pipelines/compare.py --next` wrote is known by its header, and has our columns and grades.

    Raises:
        UserError: there is no such file.
    """
    source = cfg.ingest.human_labels or cfg.ingest.pins
    _reader(source, LABELS_FILE)  # it has labels
    moved = source.model_copy(update={"path": path})
    if isinstance(source, TableSource) and cfg.ingest.human_labels is None:
        moved = TableSource(path=path)  # the pins' column map says nothing about labels
    files = find_files(path, key)
    if all(map(is_grading_sheet, files)):
        moved = TableSource(path=path, format="csv")
    rules = table_rules("human_labels", cfg.ingest.limits, getattr(moved, "grade_map", None))
    return SourceTable(table=LABELS_FILE, source=moved, files=files, rules=rules)


def open_adjudicated(cfg: Config) -> SourceTable | None:
    """The sheets of `ingest.adjudicated`; None: not configured.

    Raises:
        UserError: there is no such file, or no raters whose grades it could replace.
    """
    path, key = cfg.ingest.adjudicated, "ingest.adjudicated"
    if path is None:
        return None
    if cfg.ingest.human_labels is None:
        raise UserError(f"{key}: there are no raters' grades to replace; set ingest.human_labels, or leave {key} out")
    rules = table_rules(SHEET, cfg.ingest.limits)
    return SourceTable(table=SHEET, source=TableSource(path=path), files=find_files(path, key), rules=rules)


def read_human_labels(opened: SourceTable) -> pa.Table:
    """Checked rows of `open_human_labels`; a Chorus file has the columns query, docid, rating."""
    return pa.concat_tables(map(opened.read, opened.files))


def _ean_files(cfg: Config) -> list[SourceFile]:
    if not isinstance(cfg.ingest.pins, ChorusSource):
        raise UserError("ingest.search_log.id_map: ean needs `ingest.pins.adapter: chorus`, whose products have EANs")
    return chorus.product_files(cfg.ingest.pins.path, "ingest.pins.path")


def _check(batches: Iterable[RawBatch], rules: TableRules) -> pa.Table:
    return pa.concat_tables([rules.checked_schema.empty_table(), *(check_batch(batch, rules) for batch in batches)])
