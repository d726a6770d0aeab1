"""ingest: sources -> pins, boards, search_log, human_labels, and quarantine for the rows that cannot be used."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ray_app.config import Config, section_hash
from ray_app.errors import UserError
from ray_app.ingest.files import SourceFile
from ray_app.ingest.rows import quarantine_table
from ray_app.ingest.sources import (
    ReadFile,
    SourceTable,
    open_human_labels,
    open_source,
    read_human_labels,
    read_source,
)
from ray_app.ingest.validate import TABLES, settle, table_rules
from ray_app.manifest import Manifest, Output, StageRun
from ray_app.storage import Storage

logger = logging.getLogger(__name__)

VERSION = 1
FAILED = "manifests/ingest.failed.json"  # counts and reasons of the last run, if it failed
_USER_ERROR = "_user_error"


def run(cfg: Config, store: Storage) -> Manifest:
    """Read, check and write the four source tables.

    Of N files each is read by its own Ray task; what compares rows of different files happens here. An absent source
    is an empty table.

    Raises:
        UserError: a source is missing or corrupt, there are no pins, or more than `ingest.limits.max_error_rate` of a
            table's rows are bad. In the last case the counts and the quarantine table are written before.
    """
    opened = {table: open_source(cfg, table) for table in TABLES}
    stage = StageRun(
        "ingest",
        cfg,
        store,
        version=VERSION,
        settings=[cfg.ingest, cfg.features.named_vectors],
        inputs=[_identify(source) for source in opened.values() if source],
    )
    if (finished := stage.finished) is not None:
        return finished

    tables: dict[str, pa.Table] = {}
    quarantines: list[pa.Table] = []
    counts: dict[str, int] = {}
    for table, source in opened.items():
        tables[table], quarantine, ignored = _ingest(cfg, table, source, tables.get("pins"))
        quarantines.append(quarantine)
        counts[f"{table}_in"] = tables[table].num_rows + quarantine.num_rows
        counts[f"{table}_out"] = tables[table].num_rows
        counts[f"{table}_quarantined"] = quarantine.num_rows
        if table == "search_log":
            counts["search_log_ignored"] = ignored  # lines that are no rows of this table, such as page views
    for total in ("in", "out", "quarantined"):
        counts[f"rows_{total}"] = sum(counts[f"{table}_{total}"] for table in TABLES)

    reasons = {table: _reasons(rows) for table, rows in zip(TABLES, quarantines, strict=True)}
    written = stage.write_table("quarantine", pa.concat_tables(quarantines))
    try:
        _refuse_bad_sources(cfg, store, counts, reasons, written)
    except UserError as error:
        failure = {"error": str(error), "counts": counts, "reasons": reasons, "quarantine": written.files}
        store.write_json(FAILED, failure)
        raise
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


def _refuse_bad_sources(
    cfg: Config, store: Storage, counts: dict[str, int], reasons: dict[str, dict[str, int]], quarantine: Output
) -> None:
    limit = cfg.ingest.limits.max_error_rate
    where = f"{store.shown}/{quarantine.files[0]}"
    for table in TABLES:
        num_rows, num_bad = counts[f"{table}_in"], counts[f"{table}_quarantined"]
        if num_bad > limit * num_rows:
            common, times = max(reasons[table].items(), key=lambda item: (item[1], item[0]))
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
