"""ingest: sources -> pins, boards, search_log, human_labels, and quarantine for the rows that cannot be used."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.config import Config, UbiSource, section_hash
from ray_app.base.errors import UserError
from ray_app.base.hashing import bucket_of
from ray_app.base.schemas import QUARANTINE
from ray_app.base.storage import Storage, StoredFile
from ray_app.cluster.buckets import map_buckets, shuffle
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
from ray_app.sources.validate import (
    KEYS,
    TABLES,
    PinIds,
    TableRules,
    in_source_order,
    refuse_repeated_keys,
    refuse_unknown_pins,
    settle,
    table_rules,
    valid_and_quarantine,
)
from ray_app.tables.buckets import bucketed_output, choose_num_buckets, read_bucket, write_bucket
from ray_app.tables.manifest import Bucket, Manifest, Output, read_manifest
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

logger = logging.getLogger(__name__)

VERSION = 5
FAILED = "manifests/ingest.failed.json"  # counts and reasons of the last run, if it failed


def run(cfg: Config, store: Storage) -> Manifest:
    """Read, check and write the four source tables.

    Files are read by tasks of Ray Data, whose shuffle brings rows of one key together, each bucket in a task that compares and
    writes its rows. Sources that fit into one bucket are read here. An absent source is an empty table. Human labels are few, and
    in one process. Events of the search log from more than a day after the present (`ingest.until`, or the
    clock) are refused; `info.present` says when that was. Rows of adjudicated sheets take the place of the raters' rows of their pairs, which go to
    quarantine as `replaced`; rows of a sheet that nobody has filled in yet are counted as ignored.

    Raises:
        UserError: a source is missing or corrupt, there are no pins, or more than `ingest.limits.max_error_rate` of a
            table's rows are bad. In the last case the counts and the quarantine table are written before.
    """
    now = present(cfg)
    opened = {table: open_source(cfg, table, now) for table in TABLES}
    sheets = open_adjudicated(cfg)
    num_buckets = _num_buckets(cfg, store, opened)
    stage = Stage(
        name="ingest",
        version=VERSION,
        inputs=[_identify(source) for source in (*opened.values(), sheets) if source],
        recipe=[cfg.ingest, num_buckets, cfg.tables.rows_per_file, cfg.features.external_embeddings, _key_check(cfg)],
        compute=partial(_write_tables, opened=opened, sheets=sheets, now=now, num_buckets=num_buckets),
    )
    return run_stage(stage, cfg, store)


def _write_tables(
    run: StageRun, opened: dict[str, SourceTable | None], sheets: SourceTable | None, now: datetime, num_buckets: int
) -> StageResult:
    store = run.store
    ingested: dict[str, _Ingested] = {"pins": _by_pin(run, "pins", opened["pins"], num_buckets)}
    pins = ingested["pins"].output("pins", run)
    ingested["boards"] = _by_pin(run, "boards", opened["boards"], num_buckets, pins)
    ingested["search_log"] = _log(run, opened["search_log"], num_buckets, pins)
    ingested |= _labels(run, opened["human_labels"], sheets, pins)
    counts, reasons = (
        _counts(ingested),
        {table: dict(sorted(found.reasons.items())) for table, found in ingested.items()},
    )
    quarantine = [file for found in ingested.values() for file in found.quarantine]
    if quarantine:
        run.add_output("quarantine", run.table_folder("quarantine"), quarantine, rows=counts["rows_quarantined"])
    else:
        run.write_table("quarantine", QUARANTINE.empty_table())
    try:
        _refuse_bad_sources(run.cfg, store, counts, reasons, ingested)
    except UserError as error:
        failure = {
            "error": str(error), "counts": counts, "reasons": reasons, "quarantine": [file.path for file in quarantine]
        }  # fmt: skip
        store.write_json(FAILED, failure)
        raise
    for table in ("pins", "boards", "search_log"):
        run.add_table(ingested[table].output(table, run))
    labels = pa.concat_tables([ingested[name].table for name in ("human_labels", SHEET) if name in ingested])
    run.write_table("human_labels", labels.sort_by([(name, "ascending") for name in KEYS["human_labels"]]))
    store.delete(FAILED)
    _warn_of_unknown_clients(run.cfg, counts)
    return StageResult(counts=counts, info={"reasons": reasons, "num_buckets": num_buckets, "present": now.isoformat()})


@dataclass(kw_only=True, slots=True)
class _Ingested:
    """A table, or a part of one: what was written of it, and counts."""

    num_rows: int = 0  # valid
    reasons: Counter[str] = field(default_factory=Counter)  # rows in quarantine by reason code
    buckets: list[Bucket] = field(default_factory=list)
    quarantine: list[StoredFile] = field(default_factory=list)
    table: pa.Table | None = None  # of human labels, which are few: the valid rows
    ignored: int = 0  # lines that are no rows of it
    lines: tuple[int, float] | None = None  # of a log of documents: how many, and the sum of their shares of bad rows
    num_unknown_clients: int = 0  # of the search log: rows

    @property
    def num_bad(self) -> int:
        """Rows in quarantine."""
        return self.reasons.total()

    @classmethod
    def together(cls, parts: Sequence["_Ingested"]) -> "_Ingested":
        """What the parts of a table are together."""
        reasons: Counter[str] = Counter()
        for part in parts:
            reasons.update(part.reasons)
        lines = [part.lines for part in parts if part.lines is not None]
        return cls(
            num_rows=sum(part.num_rows for part in parts),
            reasons=reasons,
            buckets=[bucket for part in parts for bucket in part.buckets],
            quarantine=[file for part in parts for file in part.quarantine],
            ignored=sum(part.ignored for part in parts),
            lines=(sum(num for num, _ in lines), sum(bad for _, bad in lines)) if lines else None,
            num_unknown_clients=sum(part.num_unknown_clients for part in parts),
        )

    def output(self, table: str, run: StageRun) -> Output:
        """Of the stage."""
        return bucketed_output(table, run.table_folder(table), self.buckets)


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """Writes what tasks make of a table. Picklable."""

    store: Storage
    table: str
    rules: TableRules
    folder: str
    quarantine_folder: str
    rows_per_file: int

    @classmethod
    def of(cls, run: StageRun, table: str, rules: TableRules) -> "_Writer":
        return cls(
            store=run.store, table=table, rules=rules, folder=run.table_folder(table),
            quarantine_folder=run.table_folder("quarantine"), rows_per_file=run.cfg.tables.rows_per_file,
        )  # fmt: skip

    def write(self, number: int, checked: pa.Table) -> _Ingested:
        """Write the valid rows of a bucket, and the refused ones to quarantine."""
        valid, quarantine = valid_and_quarantine(checked, self.rules)
        bucket = write_bucket(self.store, self.folder, number, valid, self.rows_per_file)
        unknown = valid["client_id"].null_count if self.table == "search_log" else 0
        written = self.write_quarantine(quarantine, number)
        return _Ingested(
            num_rows=valid.num_rows, reasons=written.reasons, buckets=[bucket], quarantine=written.quarantine,
            num_unknown_clients=unknown,
        )  # fmt: skip

    def write_quarantine(self, quarantine: pa.Table, number: int) -> _Ingested:
        """Write refused rows of a part (QUARANTINE); no file without any."""
        codes = (reason.partition(":")[0] for reason in quarantine["reason"].to_pylist())
        path = f"{self.quarantine_folder}/{self.table}-{number:04d}.parquet"
        files = [self.store.write_table(path, quarantine)] if quarantine.num_rows else []
        return _Ingested(reasons=Counter(codes), quarantine=files)


def _by_pin(
    run: StageRun, table: str, source: SourceTable | None, num_buckets: int, pins: Output | None = None
) -> _Ingested:
    """A table in whose key pins are: all rows of a key are in the bucket of their pin."""
    store = run.store
    if source is None:
        rules = table_rules(table, run.cfg.ingest.limits, None, run.cfg.features.external_embeddings)
        writer = _Writer.of(run, table, rules)
        nothing = rules.checked_schema.empty_table()
        return _Ingested.together(map_buckets(lambda number: writer.write(number, nothing), range(num_buckets)))
    reader, rules = replace(source, files=[]), source.rules  # what a task needs of it
    writer = _Writer.of(run, table, rules)

    def split(file: SourceFile) -> tuple[pa.Table, NDArray[np.int64]]:
        checked = reader.read(file)
        return checked, _bucket_of_rows(checked, num_buckets)

    def reduce(number: int, checked: pa.Table) -> _Ingested:
        rows = in_source_order([checked], rules)
        if pins is not None:
            rows = refuse_unknown_pins(rows, _pin_ids(store, pins, number), rules)
        return writer.write(number, refuse_repeated_keys(rows, rules))

    return _done(table, shuffle(source.files, split, reduce, num_buckets, rules.checked_schema))


def _log(run: StageRun, source: SourceTable | None, num_buckets: int, pins: Output) -> _Ingested:
    """The search log: rows of one event meet first, then rows of one pin; a row without a pin is in the bucket of its event.

    Raises:
        UserError: a file is corrupt, or lacks a column.
    """
    if source is None:
        return _by_pin(run, "search_log", None, num_buckets)
    store, rules, reader = run.store, source.rules, replace(source, files=[])
    writer, pin_id_of = _Writer.of(run, "search_log", rules), source.read_pin_id_map()
    num_parts = choose_num_buckets(source.size_bytes, run.cfg.tables.bucket_bytes)
    is_small = num_parts == num_buckets == 1
    between = f"tmp/ingest/{run.fingerprint}"
    schema = rules.checked_schema.append(_LINE_ROWS)

    def split_by_event(file: SourceFile) -> tuple[pa.Table, NDArray[np.int64]]:
        read = reader.read(file)
        return read, reader.partition_of(read, num_parts)

    def unrepeated(read: pa.Table) -> tuple[pa.Table, _Ingested]:
        """Rows of schema `schema`, and counts of a part."""
        checked, ignored = reader.check([read], pin_id_of)
        rows = refuse_repeated_keys(in_source_order(checked, rules), rules)
        if not reader.is_log_of_documents:  # a line is a row
            return rows.append_column(_LINE_ROWS, pa.array(np.ones(rows.num_rows, np.int64))), _Ingested(
                ignored=ignored
            )
        num_lines, line_rows = _lines(rows)
        return rows.append_column(_LINE_ROWS, line_rows), _Ingested(ignored=ignored, lines=(num_lines, 0.0))

    def by_event(number: int, read: pa.Table) -> tuple[str, _Ingested]:
        rows, counted = unrepeated(read)
        return store.write_table(f"{between}/part-{number:05d}.parquet", rows).path, counted

    def split_by_pin(path: str) -> tuple[pa.Table, NDArray[np.int64]]:
        rows = store.read_table(path)
        return rows, _bucket_of_rows(rows, num_buckets)

    def by_pin(number: int, rows: pa.Table) -> _Ingested:
        rows = rows.take(pc.sort_indices(rows, sort_keys=[("_source", "ascending"), ("_row", "ascending")]))
        line_rows, checked = rows[_LINE_ROWS.name], rows.select(rules.checked_schema.names)
        checked = refuse_unknown_pins(checked, _pin_ids(store, pins, number), rules)
        written = writer.write(number, checked)
        if reader.is_log_of_documents:
            bad = line_rows.filter(pc.is_valid(checked["_reason"])).to_numpy()
            written.lines = 0, float(np.sort(1.0 / bad).sum())
        return written

    if is_small:
        read = [split_by_event(file)[0] for file in source.files]
        rows, counted = unrepeated(pa.concat_tables([reader.read_schema.empty_table(), *read]))
        return _done("search_log", [counted, by_pin(0, rows)])
    try:
        parts = shuffle(source.files, split_by_event, by_event, num_parts, reader.read_schema)
        paths = [path for path, _ in parts]
        found = shuffle(paths, split_by_pin, by_pin, num_buckets, schema)
    finally:
        store.delete(between)
    return _done("search_log", [*(counted for _, counted in parts), *found])


_LINE_ROWS = pa.field("_line_rows", pa.int64())  # rows that the line of the source became


def _lines(checked: pa.Table) -> tuple[int, pa.ChunkedArray]:
    """Number of lines that rows are from, and for each row how many rows its line became.

    One line of a log of documents becomes a row per object that it shows. Counted by rows, one forged line would outvote a
    thousand others.
    """
    place = ["_source", "_row"]
    lines = checked.select(place).append_column("at", pa.array(np.arange(checked.num_rows)))
    counts = lines.group_by(place).aggregate([([], "count_all")])
    both = lines.join(counts, place, join_type="left outer").sort_by("at")
    return counts.num_rows, both["count_all"].cast(pa.int64())


def _bucket_of_rows(checked: pa.Table, num_buckets: int) -> NDArray[np.int64]:
    """Bucket of each row: of its pin, or of what else tells it from others, so that no bucket gets all rows without a pin."""
    ids = checked["pin_id"]
    if ids.null_count:
        other = checked["event_id"] if "event_id" in checked.column_names else checked["_row"].cast(pa.string())
        ids = pc.coalesce(ids, other, checked["_row"].cast(pa.string()))
    return bucket_of(ids.to_pylist(), num_buckets)


def _pin_ids(store: Storage, pins: Output, number: int) -> PinIds:
    return PinIds.of(read_bucket(store, pins, number, ["pin_id"])["pin_id"])


def _done(table: str, parts: Sequence[_Ingested]) -> _Ingested:
    whole = _Ingested.together(parts)
    logger.info("ingest: %s: %d rows, %d in quarantine", table, whole.num_rows, whole.num_bad)
    return whole


def _labels(
    run: StageRun, raters: SourceTable | None, sheets: SourceTable | None, pins: Output
) -> dict[str, _Ingested]:
    """Human labels, which are few, in this process: without the raters' rows that a verdict of the sheets replaces."""
    if raters is None:
        rules = table_rules("human_labels", run.cfg.ingest.limits)
        return {"human_labels": _Ingested(table=rules.schema.empty_table())}
    checked, ignored = read_source(raters)
    named = pa.concat_tables([rows.select(["pin_id"]) for rows in checked])["pin_id"]
    pin_ids = _known_pins(run.store, pins, named.drop_null().unique())
    writer = _Writer.of(run, "human_labels", raters.rules)

    def written(writer: _Writer, checked: Sequence[pa.Table], ignored: int) -> _Ingested:
        valid, quarantine = settle(checked, writer.rules, pin_ids)
        return replace(writer.write_quarantine(quarantine, 0), num_rows=valid.num_rows, table=valid, ignored=ignored)

    if sheets is None:
        return {"human_labels": written(writer, checked, ignored)}
    labels, _ = settle(checked, raters.rules, pin_ids)
    read = [read_sheet(file, sheets.rules) for file in sheets.files]
    judged = refuse_unlabelled(pa.concat_tables([rows for rows, _ in read]), labels, pin_ids)
    verdicts = written(_Writer.of(run, SHEET, sheets.rules), [judged], sum(num_blank for _, num_blank in read))
    assert verdicts.table is not None
    remaining = refuse_replaced(pa.concat_tables(checked), verdicts.table)
    logger.info("ingest: %d pairs adjudicated, %d rows not yet", verdicts.num_rows, verdicts.ignored)
    return {"human_labels": written(writer, [remaining], 0), SHEET: verdicts}


def _known_pins(store: Storage, pins: Output, wanted: pa.Array) -> PinIds:
    """Those of the pins that are in the catalogue; each bucket that could have some is read by a task."""
    buckets = bucket_of(wanted.to_pylist(), pins.num_buckets)

    def known(number: int) -> pa.Array:
        some = wanted.filter(pa.array(buckets == number))
        return some.filter(_pin_ids(store, pins, number).known(pa.chunked_array([some])))

    found = map_buckets(known, np.unique(buckets).tolist())
    return PinIds.of(pa.chunked_array(found, pa.string()))


def _num_buckets(cfg: Config, store: Storage, opened: Mapping[str, SourceTable | None]) -> int:
    if cfg.tables.num_buckets != "auto":
        return cfg.tables.num_buckets
    before = read_manifest(store, "ingest")
    largest = max(source.size_bytes for source in opened.values() if source is not None)
    return choose_num_buckets(largest, cfg.tables.bucket_bytes, before.info.get("num_buckets") if before else None)


def _counts(ingested: Mapping[str, _Ingested]) -> dict[str, int]:
    """Rows in, out and in quarantine, by table and in total."""
    counts: dict[str, int] = {}
    for table, found in ingested.items():
        counts |= {f"{table}_in": found.num_rows + found.num_bad, f"{table}_out": found.num_rows}
        counts[f"{table}_quarantined"] = found.num_bad
        if table in ("search_log", SHEET):  # lines that are no rows of it: page views, pairs that nobody decided yet
            counts[f"{table}_ignored"] = found.ignored
        if table == "search_log":
            counts["search_log_unknown_clients"] = found.num_unknown_clients
    for total in ("in", "out", "quarantined"):
        counts[f"rows_{total}"] = sum(counts[f"{table}_{total}"] for table in ingested)
    return counts


def _refuse_bad_sources(
    cfg: Config, store: Storage, counts: dict[str, int], reasons: dict[str, dict[str, int]],
    ingested: Mapping[str, _Ingested],
) -> None:  # fmt: skip
    limit = cfg.ingest.limits.max_error_rate
    for table, by_reason in reasons.items():
        where = ", ".join(f"{store.shown}/{file.path}" for file in ingested[table].quarantine[:1])
        faults = {code: times for code, times in by_reason.items() if code != REPLACED}
        what, num, num_bad = "rows", counts[f"{table}_in"], float(sum(faults.values()))
        if (lines := ingested[table].lines) is not None:
            what, (num, num_bad) = "lines", lines
        if num_bad > limit * num:
            common, times = max(faults.items(), key=lambda item: (item[1], item[0]))
            raise UserError(
                f"ingest.{table}: {num_bad:,.0f} of {num:,} {what} are bad, more than ingest.limits.max_error_rate "
                f"({limit:g}) allows; most often {common} ({times:,}); the rows and reasons are in {where}"
            )
    if not counts["pins_out"]:
        where = ", ".join(f"{store.shown}/{file.path}" for file in ingested["pins"].quarantine[:1])
        why = f"all {counts['pins_in']:,} rows are bad, see {where}" if counts["pins_in"] else "it has no rows"
        raise UserError(f"ingest.pins.path: no pins in {cfg.ingest.pins.path}: {why}; give it a catalogue of pins")


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
