"""ingest: sources -> pins, boards, search_log, human_labels, and quarantine for the rows that cannot be used."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ray_app.config import Config, section_hash
from ray_app.errors import UserError
from ray_app.ingest.adjudicated import SHEET, read_sheet, refuse_replaced, refuse_unlabelled
from ray_app.ingest.files import SourceFile
from ray_app.ingest.rows import REPLACED, quarantine_table
from ray_app.ingest.sources import (
    ReadFile,
    SourceTable,
    open_adjudicated,
    open_human_labels,
    open_source,
    read_human_labels,
    read_source,
)
from ray_app.ingest.validate import KEYS, TABLES, settle, table_rules
from ray_app.manifest import Manifest, Output, StageRun
from ray_app.storage import Storage

logger = logging.getLogger(__name__)

VERSION = 1
FAILED = "manifests/ingest.failed.json"  # counts and reasons of the last run, if it failed
_USER_ERROR = "_user_error"


def run(cfg: Config, store: Storage) -> Manifest:
    """Read, check and write the four source tables.

    Of N files each is read by its own Ray task; what compares rows of different files happens here. An absent source
    is an empty table. Rows of adjudicated sheets take the place of the raters' rows of their pairs, which go to
    quarantine as `replaced`; rows of a sheet that nobody has filled in yet are counted as ignored.

    Raises:
        UserError: a source is missing or corrupt, there are no pins, or more than `ingest.limits.max_error_rate` of a
            table's rows are bad. In the last case the counts and the quarantine table are written before.
    """
    opened = {table: open_source(cfg, table) for table in TABLES}
    sheets = open_adjudicated(cfg)
    stage = StageRun(
        "ingest",
        cfg,
        store,
        version=VERSION,
        settings=[cfg.ingest, cfg.features.named_vectors],
        inputs=[_identify(source) for source in (*opened.values(), sheets) if source],
    )
    if (finished := stage.finished) is not None:
        return finished

    tables: dict[str, pa.Table] = {}
    quarantines: dict[str, pa.Table] = {}
    ignored: dict[str, int] = {}
    for table, source in opened.items():
        if table == "human_labels" and source and sheets:
            _adjudicate(source, sheets, tables, quarantines, ignored)
        else:
            tables[table], quarantines[table], ignored[table] = _ingest(cfg, table, source, tables.get("pins"))
    counts = _counts(tables, quarantines, ignored)
    reasons = {table: _reasons(rows) for table, rows in quarantines.items()}
    written = stage.write_table("quarantine", pa.concat_tables(quarantines.values()))
    try:
        _refuse_bad_sources(cfg, store, counts, reasons, written)
    except UserError as error:
        failure = {"error": str(error), "counts": counts, "reasons": reasons, "quarantine": written.files}
        store.write_json(FAILED, failure)
        raise
    if (verdicts := tables.pop(SHEET, None)) is not None:
        labels = pa.concat_tables([tables["human_labels"], verdicts])
        tables["human_labels"] = labels.sort_by([(name, "ascending") for name in KEYS["human_labels"]]).combine_chunks()
    for table, rows in tables.items():
        stage.write_table(table, _parts(rows, cfg.ingest.rows_per_file))
    store.delete(FAILED)
    return stage.finish(counts, info={"reasons": reasons})


def load_human_labels(
    cfg: Config, path: str, pin_ids: pa.Array | pa.ChunkedArray, key: str = "evaluate.human_labels"
) -> tuple[pa.Table, pa.Table]:
    """Human labels of another file, read and checked like those of `ingest.human_labels`.

    Args:
        cfg: Its adapter settings apply: a Chorus file has the columns query, docid, rating; a table its column map.
        path: File, folder or glob.
        pin_ids: The pins that may be named, string.
        key: Config key of the path, for messages.

    Returns:
        Valid rows (HUMAN_LABELS) and the others (QUARANTINE).

    Raises:
        UserError: there is no such file, or it lacks a column.
    """
    opened = open_human_labels(cfg, path, key)
    return settle([read_human_labels(opened)], opened.rules, pin_ids)


def _ingest(
    cfg: Config, table: str, source: SourceTable | None, pins: pa.Table | None
) -> tuple[pa.Table, pa.Table, int]:
    """Valid rows, quarantined rows and ignored lines of one table."""
    if source is None:
        rules = table_rules(table, cfg.ingest.limits, None, cfg.features.named_vectors)
        return rules.schema.empty_table(), quarantine_table(table, []), 0
    checked, ignored = read_source(source, _spread)
    valid, quarantine = settle(checked, source.rules, None if pins is None else pins["pin_id"])
    logger.info("ingest: %s: %d rows, %d in quarantine", table, valid.num_rows, quarantine.num_rows)
    return valid, quarantine, ignored


def _adjudicate(
    raters: SourceTable, sheets: SourceTable, tables: dict[str, pa.Table], quarantines: dict[str, pa.Table],
    ignored: dict[str, int],
) -> None:  # fmt: skip
    """Add the verdicts of the sheets, and the raters' rows without those that a verdict replaces."""
    pin_ids = tables["pins"]["pin_id"]
    checked, _ = read_source(raters, _spread)
    labels, _ = settle(checked, raters.rules, pin_ids)
    read = [read_sheet(file, sheets.rules) for file in sheets.files]
    judged = refuse_unlabelled(pa.concat_tables([rows for rows, _ in read]), labels, pin_ids)
    tables[SHEET], quarantines[SHEET] = settle([judged], sheets.rules, pin_ids)
    ignored[SHEET] = sum(num_blank for _, num_blank in read)
    remaining = refuse_replaced(pa.concat_tables(checked), tables[SHEET])
    tables["human_labels"], quarantines["human_labels"] = settle([remaining], raters.rules, pin_ids)
    logger.info("ingest: %d pairs adjudicated, %d rows not yet", tables[SHEET].num_rows, ignored[SHEET])


def _counts(tables: dict[str, pa.Table], quarantines: dict[str, pa.Table], ignored: dict[str, int]) -> dict[str, int]:
    """Rows in, out and in quarantine, by table and in total."""
    counts: dict[str, int] = {}
    for table, valid in tables.items():
        num_bad = quarantines[table].num_rows
        counts |= {f"{table}_in": valid.num_rows + num_bad, f"{table}_out": valid.num_rows}
        counts[f"{table}_quarantined"] = num_bad
        if table in ("search_log", SHEET):  # lines that are no rows of it: page views, pairs that nobody decided yet
            counts[f"{table}_ignored"] = ignored[table]
    for total in ("in", "out", "quarantined"):
        counts[f"rows_{total}"] = sum(counts[f"{table}_{total}"] for table in tables)
    return counts


def _refuse_bad_sources(
    cfg: Config, store: Storage, counts: dict[str, int], reasons: dict[str, dict[str, int]], quarantine: Output
) -> None:
    limit = cfg.ingest.limits.max_error_rate
    where = f"{store.shown}/{quarantine.files[0]}"
    for table, by_reason in reasons.items():
        faults = {code: times for code, times in by_reason.items() if code != REPLACED}
        num_rows, num_bad = counts[f"{table}_in"], sum(faults.values())
        if num_bad > limit * num_rows:
            common, times = max(faults.items(), key=lambda item: (item[1], item[0]))
            raise UserError(
                f"ingest.{table}: {num_bad:,} of {num_rows:,} rows are bad, more than ingest.limits.max_error_rate "
                f"({limit:g}) allows; most often {common} ({times:,}); the rows and reasons are in {where}"
            )
    if not counts["pins_out"]:
        found = f"all {counts['pins_in']:,} rows are bad, see {where}" if counts["pins_in"] else "it has no rows"
        raise UserError(f"ingest.pins.path: no pins in {cfg.ingest.pins.path}: {found}; give it a catalogue of pins")


def _reasons(quarantine: pa.Table) -> dict[str, int]:
    """Rows by reason code."""
    codes = (reason.partition(":")[0] for reason in quarantine["reason"].to_pylist())
    return dict(sorted(Counter(codes).items()))


def _parts(rows: pa.Table, rows_per_file: int) -> list[pa.Table]:
    """Slices of at most `rows_per_file` rows; one empty slice of an empty table."""
    return [rows.slice(start, rows_per_file) for start in range(0, max(rows.num_rows, 1), rows_per_file)]


def _identify(source: SourceTable) -> Output:
    """A source as a stage input: its content decides whether there is anything to do."""
    files = [*source.files, *source.ean_files]
    content = section_hash({f.path: f.content_id() for f in files})
    name = f"source:{source.table}"
    return Output(name=name, path=source.source.path, files=[f.path for f in files], rows=0, content_hash=content)


def _spread(read: ReadFile, files: Sequence[SourceFile]) -> list[pa.Table]:
    """Read files, each in its own Ray task if there are several and a cluster runs."""
    if len(files) > 1:
        import ray

        if ray.is_initialized():
            return _spread_on_ray(read, files)
    return [read(file) for file in files]


def _spread_on_ray(read: ReadFile, files: Sequence[SourceFile]) -> list[pa.Table]:
    import ray

    def read_one(batch: dict[str, Any]) -> pa.Table:
        try:
            return read(files[int(batch["file"][0])])
        except UserError as error:  # as data: Ray would wrap it in its own errors and a page of traceback
            return pa.table({_USER_ERROR: [str(error)]})

    numbers = [{"file": i} for i in range(len(files))]
    ds = ray.data.from_items(numbers, override_num_blocks=len(files)).map_batches(read_one, batch_size=1)
    tables = [block for block in ray.get(ds.to_arrow_refs()) if block.num_rows]
    errors = sorted(text for t in tables if _USER_ERROR in t.column_names for text in t[_USER_ERROR].to_pylist())
    if errors:
        raise UserError(errors[0])
    return tables
