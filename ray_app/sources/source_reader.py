"""From a configured source to checked rows: which adapter reads what, one file at a time, and which rows must meet."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.config import ChorusSource, Config, Source, TableSource, UbiSource
from ray_app.base.errors import UserError
from ray_app.sources.adapters import chorus
from ray_app.sources.adapters.table import read_table_file
from ray_app.sources.adapters.ubi import join_ubi, read_ubi_file
from ray_app.sources.client_ids import client_key
from ray_app.sources.files import SourceFile, find_files
from ray_app.sources.rows import RawBatch
from ray_app.sources.sheets import SHEET, first_grades, is_grading_sheet
from ray_app.sources.validate import TableRules, check_batch, table_rules
from ray_app.tables.partitions import partition_of

FUTURE = timedelta(days=1)  # that an event may be ahead of the present: clocks and time zones are often wrong by hours


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """One source table before anything is read: its files, and the rules for its rows."""

    table: str
    source: Source
    files: list[SourceFile]
    rules: TableRules
    ean_files: list[SourceFile] = field(default_factory=list)  # products whose EANs the log uses as ids
    sheets: list[SourceFile] = field(default_factory=list)  # those of its files that are sheets of first grades

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def is_log_of_documents(self) -> bool:
        """Whether its files hold queries and events that must be joined first."""
        return self.table == "search_log" and not isinstance(self.source, TableSource)

    @property
    def reads_files_together(self) -> bool:
        """Whether its files say something only all together: they are few and small."""
        return self.table == "human_labels" and isinstance(self.source, ChorusSource)

    def read(self, file: SourceFile) -> pa.Table:
        """Rows of one file: checked ones, or those of a log of documents as they are (UBI_RECORDS).

        Raises:
            UserError: the file is corrupt, or lacks a column.
        """
        if self.is_log_of_documents:
            return read_ubi_file(file, self._ubi)
        if isinstance(self.source, TableSource):
            return _check(read_table_file(file, self.source, self.rules), self.rules)
        assert isinstance(self.source, ChorusSource)
        return _check(chorus.read_products_file(file, self.source.locale), self.rules)

    def partition_of(self, read: pa.Table, num_parts: int) -> NDArray[np.int64]:
        """Part of each row of `read`: rows of one key, or queries and events that belong together, meet in one."""
        if self.is_log_of_documents:
            return partition_of(read["group"].to_pylist(), num_parts)
        key = (read[name].to_pylist() for name in self.rules.key)
        whole = ["\0".join(map(str, values)) for values in zip(*key, strict=True)]
        parts = partition_of(whole, num_parts)
        refused = pc.is_valid(read["_reason"]).to_numpy(zero_copy_only=False)
        return np.where(refused, read["_row"].to_numpy() % num_parts, parts)  # their keys may all be null

    def read_pin_id_map(self) -> dict[str, str] | None:
        """Id in the log -> pin id; None: the log has pin ids."""
        return chorus.read_ean_map(self.ean_files) if self.ean_files else None

    def check(self, read: Sequence[pa.Table], pin_id_of: Mapping[str, str] | None) -> tuple[list[pa.Table], int]:
        """Checked rows of a part, in any order, and how many of its lines are no rows of this table."""
        if not self.is_log_of_documents:
            return list(read), 0
        batches, ignored = join_ubi(read, self._ubi, pin_id_of)
        return [check_batch(batch, self.rules) for batch in batches], ignored

    @property
    def _ubi(self) -> UbiSource:
        source = self.source
        if isinstance(source, UbiSource):
            return source
        assert isinstance(source, ChorusSource)
        return UbiSource(path=source.path, locale=source.locale)


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
    key = f"ingest.{table}.path"
    files, eans = _find(cfg, table, source, key)
    grade_map = None if isinstance(source, UbiSource) else source.grade_map
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
    if opened.reads_files_together:
        assert isinstance(opened.source, ChorusSource)
        return [_check(chorus.read_labels(opened.files, opened.source.locale), opened.rules)], 0
    return opened.check([opened.read(file) for file in opened.files], opened.read_pin_id_map())


def open_human_labels(cfg: Config, path: str, key: str) -> SourceTable:
    """A file of human labels read as `ingest.human_labels` says: same column map, locale and grade map.

    A sheet that `pipelines/compare.py --next` wrote is known by its header, and has our columns and grades.

    Raises:
        UserError: there is no such file.
    """
    source = cfg.ingest.human_labels or cfg.ingest.pins
    if isinstance(source, UbiSource):
        raise UserError("ingest.human_labels.adapter: ubi has no human labels; use table or chorus")
    moved = source.model_copy(update={"path": path})
    if isinstance(source, TableSource) and cfg.ingest.human_labels is None:
        moved = TableSource(path=path)  # the pins' column map says nothing about labels
    files = find_files(path, key)
    sheets = [file for file in files if is_grading_sheet(file)]
    if len(sheets) == len(files):
        moved = TableSource(path=path, format="csv")
    rules = table_rules("human_labels", cfg.ingest.limits, moved.grade_map)
    return SourceTable(table="human_labels", source=moved, files=files, rules=rules, sheets=sheets)


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
    source, rules = opened.source, opened.rules
    if isinstance(source, ChorusSource):
        return _check((chorus.read_rated_csv(file, source.locale) for file in opened.files), rules)
    assert isinstance(source, TableSource)
    graded = (
        first_grades(file, rules) if file in opened.sheets else read_table_file(file, source, rules)
        for file in opened.files
    )
    return pa.concat_tables(_check(batches, rules) for batches in graded)


def _find(cfg: Config, table: str, source: Source, key: str) -> tuple[list[SourceFile], list[SourceFile]]:
    """Files of a source, and those that its object ids must be looked up in."""
    if isinstance(source, TableSource):
        return find_files(source.path, key), []
    if isinstance(source, UbiSource):
        if table != "search_log":
            raise UserError(f"ingest.{table}.adapter: ubi reads only search_log; use table or chorus")
        eans = _ean_files(cfg) if source.id_map == "ean" else []
        return find_files(source.path, key), eans
    if table == "pins":
        return chorus.product_files(source.path, key), []
    if table == "search_log":
        return [chorus.log_file(source.path, key)], _ean_files(cfg)
    if table == "human_labels":
        return chorus.label_files(source.path, key), []
    raise UserError(f"ingest.{table}.adapter: chorus has no {table}; use table, or leave ingest.{table} out")


def _ean_files(cfg: Config) -> list[SourceFile]:
    if not isinstance(cfg.ingest.pins, ChorusSource):
        raise UserError("ingest.search_log.id_map: ean needs `ingest.pins.adapter: chorus`, whose products have EANs")
    return chorus.product_files(cfg.ingest.pins.path, "ingest.pins.path")


def _check(batches: Iterable[RawBatch], rules: TableRules) -> pa.Table:
    return pa.concat_tables([rules.checked_schema.empty_table(), *(check_batch(batch, rules) for batch in batches)])
