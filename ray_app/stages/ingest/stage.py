"""ingest: sources -> pins, boards, search_log, human_labels, and quarantine for the rows that cannot be used."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.base.config import Config, UbiSource, section_hash
from ray_app.base.errors import UserError
from ray_app.base.hashing import hash_pin_ids
from ray_app.base.schemas import QUARANTINE
from ray_app.base.storage import Storage, StoredFile
from ray_app.cluster.shuffle import shuffle
from ray_app.sources.client_ids import client_key, hash_client
from ray_app.sources.files import SourceFile
from ray_app.sources.rows import REPLACED
from ray_app.sources.sheets import SHEET, read_sheet, refuse_replaced, refuse_unlabelled
from ray_app.sources.source_reader import (
    SourceTable,
    open_adjudicated,
    open_source,
    present,
    read_source,
)
from ray_app.sources.validate import KEYS, TABLES, PinIds, settle, table_rules
from ray_app.tables.manifest import Manifest, Output
from ray_app.tables.partitions import num_partitions, partition_rows, rows_in_files, write_part
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

logger = logging.getLogger(__name__)

VERSION = 4
FAILED = "manifests/ingest.failed.json"  # counts and reasons of the last run, if it failed


def run(cfg: Config, store: Storage) -> Manifest:
    """Read, check and write the four source tables.

    Of N files each is read by its own Ray task. Rows of different files are compared in parts of `partition_bytes` of the
    source, cut by a hash of the key, each in a task that writes its own files; a source of one part is put together here.
    An absent source is an empty table. Events of the search log from more than a day after the present (`ingest.until`, or the
    clock) are refused; `info.present` says when that was. Rows of adjudicated sheets take the place of the raters' rows of their pairs, which go to
    quarantine as `replaced`; rows of a sheet that nobody has filled in yet are counted as ignored.

    Raises:
        UserError: a source is missing or corrupt, there are no pins, or more than `ingest.limits.max_error_rate` of a
            table's rows are bad. In the last case the counts and the quarantine table are written before.
    """
    now = present(cfg)
    opened = {table: open_source(cfg, table, now) for table in TABLES}
    sheets = open_adjudicated(cfg)
    stage = Stage(
        name="ingest",
        version=VERSION,
        inputs=[_identify(source) for source in (*opened.values(), sheets) if source],
        recipe=[cfg.ingest, cfg.features.external_embeddings, _key_check(cfg)],
        compute=partial(_write_tables, opened=opened, sheets=sheets, now=now),
    )
    return run_stage(stage, cfg, store)


def _write_tables(
    run: StageRun, opened: dict[str, SourceTable | None], sheets: SourceTable | None, now: datetime
) -> StageResult:
    cfg, store = run.cfg, run.store
    settled: dict[str, _Settled] = {"pins": _ingest(run, "pins", opened["pins"], None)}
    pin_ids = PinIds(settled["pins"].pin_hashes)
    for table, source in opened.items():
        if table == "pins":
            continue
        if table == "human_labels" and source and sheets:
            settled |= _adjudicate(source, sheets, pin_ids)
        else:
            settled[table] = _ingest(run, table, source, pin_ids)
    counts = _counts(settled)
    reasons = {table: _reasons(found.quarantine) for table, found in settled.items()}
    written = run.write_table("quarantine", pa.concat_tables(found.quarantine for found in settled.values()))
    try:
        _refuse_bad_sources(cfg, store, counts, reasons, settled, written)
    except UserError as error:
        failure = {"error": str(error), "counts": counts, "reasons": reasons, "quarantine": written.files}
        store.write_json(FAILED, failure)
        raise
    if (verdicts := settled.pop(SHEET, None)) is not None:
        raters = settled["human_labels"]
        labels = pa.concat_tables([raters.whole, verdicts.whole])
        raters.table = labels.sort_by([(name, "ascending") for name in KEYS["human_labels"]]).combine_chunks()
    for table, found in settled.items():
        if found.table is not None:
            run.write_table(table, rows_in_files(found.table, cfg.ingest.rows_per_file))
        else:
            run.add_output(table, run.table_folder(table), found.files, rows=found.num_rows)
    store.delete(FAILED)
    parts = {table: found.num_parts for table, found in settled.items()}
    _warn_of_unknown_clients(cfg, counts)
    return StageResult(counts=counts, info={"reasons": reasons, "parts": parts, "present": now.isoformat()})


@dataclass(kw_only=True, slots=True)
class _Settled:
    """A table, or a part of one: its valid rows, in memory or in files already, and what is beside them."""

    num_rows: int
    quarantine: pa.Table
    ignored: int = 0  # lines that are no rows of it
    table: pa.Table | None = None
    files: list[StoredFile] = field(default_factory=list)
    pin_hashes: NDArray[np.uint64]  # of pins; of other tables empty
    num_parts: int = 1
    lines: tuple[int, float] | None = None  # of a log of documents: how many, and the sum of their shares of bad rows
    num_unknown_clients: int = 0  # of the search log: rows

    @property
    def whole(self) -> pa.Table:
        """The rows of a table in memory."""
        assert self.table is not None
        return self.table


def _ingest(run: StageRun, table: str, source: SourceTable | None, pin_ids: PinIds | None) -> _Settled:
    ingest = run.cfg.ingest
    if source is None:
        rules = table_rules(table, ingest.limits, None, run.cfg.features.external_embeddings)
        return _settled([rules.schema.empty_table(), QUARANTINE.empty_table()], 0, table)
    if source.reads_files_together:
        checked, ignored = read_source(source)
        return _settled(settle(checked, source.rules, pin_ids), ignored, table)
    parts = num_partitions(source.size_bytes, ingest.partition_bytes)
    folder, store, rows_per_file = run.table_folder(table), run.store, ingest.rows_per_file
    reader = replace(source, files=[])  # what a task needs of it

    def split(file: SourceFile) -> list[pa.Table]:
        read = reader.read(file)
        return partition_rows(read, reader.partition_of(read, parts), parts)

    def join(number: int, read: list[pa.Table], shared: tuple[PinIds | None, dict[str, str] | None]) -> _Settled:
        pin_ids, pin_id_of = shared
        checked, ignored = reader.check(read, pin_id_of)
        found = _settled(settle(checked, reader.rules, pin_ids), ignored, table)
        if reader.is_log_of_documents:
            found.lines = _count_lines(checked, found.quarantine)
        if parts > 1:
            found.files, found.table = write_part(store, folder, number, found.whole, rows_per_file), None
        return found

    found = shuffle(source.files, split, join, parts, (pin_ids, source.read_pin_id_map()))
    whole = found[0] if parts == 1 else _together(found)
    logger.info("ingest: %s: %d rows, %d in quarantine", table, whole.num_rows, whole.quarantine.num_rows)
    return whole


def _settled(found: Sequence[pa.Table], ignored: int, table: str) -> _Settled:
    valid, quarantine = found
    hashes = hash_pin_ids(valid["pin_id"].to_pylist()) if table == "pins" else np.zeros(0, np.uint64)
    return _Settled(
        num_rows=valid.num_rows, quarantine=quarantine, ignored=ignored, table=valid, pin_hashes=hashes,
        num_unknown_clients=valid["client_id"].null_count if table == "search_log" else 0,
    )  # fmt: skip


def _count_lines(checked: Sequence[pa.Table], quarantine: pa.Table) -> tuple[int, float]:
    """Lines that became rows, and the sum over them of the share of their rows that are in quarantine.

    One line of a log becomes a row per object that it shows. Counted by rows, one forged line would outvote a thousand others.
    """
    place = pa.schema([("source", pa.string()), ("row", pa.int64())])
    rows = [pa.table([some["_source"], some["_row"]], place) for some in checked]
    lines = pa.concat_tables([place.empty_table(), *rows]).group_by(place.names).aggregate([([], "count_all")])
    bad = quarantine.select(place.names).cast(place).group_by(place.names).aggregate([([], "count_all")])
    both = bad.join(lines, place.names, right_suffix="_in_line", join_type="inner")
    shares = both["count_all"].to_numpy() / both["count_all_in_line"].to_numpy()
    return lines.num_rows, float(np.sort(shares).sum())


def _together(parts: Sequence[_Settled]) -> _Settled:
    """Parts that are in files already, as one table. Rows in quarantine are in the order of their source again."""
    quarantine = pa.concat_tables([part.quarantine for part in parts])
    return _Settled(
        num_rows=sum(part.num_rows for part in parts),
        quarantine=quarantine.sort_by([("source", "ascending"), ("row", "ascending")]),
        ignored=sum(part.ignored for part in parts),
        files=[file for part in parts for file in part.files],
        pin_hashes=np.concatenate([part.pin_hashes for part in parts]),
        num_parts=len(parts),
        lines=_sum_lines([part.lines for part in parts if part.lines is not None]),
        num_unknown_clients=sum(part.num_unknown_clients for part in parts),
    )


def _sum_lines(parts: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
    return (sum(num for num, _ in parts), sum(bad for _, bad in parts)) if parts else None


def _adjudicate(raters: SourceTable, sheets: SourceTable, pin_ids: PinIds) -> dict[str, _Settled]:
    """The verdicts of the sheets, and the raters' rows without those that a verdict replaces."""
    checked, _ = read_source(raters)
    labels, _ = settle(checked, raters.rules, pin_ids)
    read = [read_sheet(file, sheets.rules) for file in sheets.files]
    judged = refuse_unlabelled(pa.concat_tables([rows for rows, _ in read]), labels, pin_ids)
    verdicts = _settled(settle([judged], sheets.rules, pin_ids), sum(num_blank for _, num_blank in read), SHEET)
    remaining = refuse_replaced(pa.concat_tables(checked), verdicts.whole)
    logger.info("ingest: %d pairs adjudicated, %d rows not yet", verdicts.num_rows, verdicts.ignored)
    return {SHEET: verdicts, "human_labels": _settled(settle([remaining], raters.rules, pin_ids), 0, "human_labels")}


def _counts(settled: Mapping[str, _Settled]) -> dict[str, int]:
    """Rows in, out and in quarantine, by table and in total."""
    counts: dict[str, int] = {}
    for table, found in settled.items():
        num_bad = found.quarantine.num_rows
        counts |= {f"{table}_in": found.num_rows + num_bad, f"{table}_out": found.num_rows}
        counts[f"{table}_quarantined"] = num_bad
        if table in ("search_log", SHEET):  # lines that are no rows of it: page views, pairs that nobody decided yet
            counts[f"{table}_ignored"] = found.ignored
        if table == "search_log":
            counts["search_log_unknown_clients"] = found.num_unknown_clients
    for total in ("in", "out", "quarantined"):
        counts[f"rows_{total}"] = sum(counts[f"{table}_{total}"] for table in settled)
    return counts


def _refuse_bad_sources(
    cfg: Config, store: Storage, counts: dict[str, int], reasons: dict[str, dict[str, int]],
    settled: Mapping[str, _Settled], quarantine: Output,
) -> None:  # fmt: skip
    limit = cfg.ingest.limits.max_error_rate
    where = f"{store.shown}/{quarantine.files[0]}"
    for table, by_reason in reasons.items():
        faults = {code: times for code, times in by_reason.items() if code != REPLACED}
        what, num, num_bad = "rows", counts[f"{table}_in"], float(sum(faults.values()))
        if (lines := settled[table].lines) is not None:
            what, (num, num_bad) = "lines", lines
        if num_bad > limit * num:
            common, times = max(faults.items(), key=lambda item: (item[1], item[0]))
            raise UserError(
                f"ingest.{table}: {num_bad:,.0f} of {num:,} {what} are bad, more than ingest.limits.max_error_rate "
                f"({limit:g}) allows; most often {common} ({times:,}); the rows and reasons are in {where}"
            )
    if not counts["pins_out"]:
        why = f"all {counts['pins_in']:,} rows are bad, see {where}" if counts["pins_in"] else "it has no rows"
        raise UserError(f"ingest.pins.path: no pins in {cfg.ingest.pins.path}: {why}; give it a catalogue of pins")


def _reasons(quarantine: pa.Table) -> dict[str, int]:
    """Rows by reason code."""
    codes = (reason.partition(":")[0] for reason in quarantine["reason"].to_pylist())
    return dict(sorted(Counter(codes).items()))


def _warn_of_unknown_clients(cfg: Config, counts: Mapping[str, int]) -> None:
    """Say once, early, why no query will count as engaged."""
    num_rows, unknown = counts["search_log_out"], counts["search_log_unknown_clients"]
    if unknown and not cfg.enrich.count_events_without_client:
        fix = "map client_id in ingest.search_log.columns"
        if isinstance(cfg.ingest.search_log, UbiSource):
            fix = "let the collector of the UBI log write client_id"
        logger.warning(
            "ingest: %d of %d rows of the search log do not say whose they are (client_id), so they support no engaged query, rate "
            "or example; %s, or see enrich.count_events_without_client",
            unknown,
            num_rows,
            fix,
        )


def _key_check(cfg: Config) -> str | None:
    """Tells keys apart without telling a key: with another one all hashes are others."""
    key = client_key(cfg.ingest) if cfg.ingest.search_log else b""
    return hash_client("key check", key) if key else None


def _identify(source: SourceTable) -> Output:
    """A source as a stage input: its content decides whether there is anything to do."""
    files = [*source.files, *source.ean_files]
    content = section_hash({f.path: f.content_id() for f in files})
    name = f"source:{source.table}"
    return Output(name=name, path=source.source.path, files=[f.path for f in files], rows=0, content_hash=content)
