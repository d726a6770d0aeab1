"""enrich: pins, captions, boards and search log -> pin_texts."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import Config
from ray_app.base.schemas import BOARDS, CAPTIONS, SEARCH_LOG
from ray_app.base.storage import Storage, StoredFile
from ray_app.base.text import TEXT_VERSION
from ray_app.cluster.shuffle import shuffle
from ray_app.sources.held_out import HeldOut
from ray_app.stages.enrich.board_titles import TITLED_SAVES, title_forms, titled_saves
from ray_app.stages.enrich.pin_texts import PIN_COLUMNS, build_pin_texts, num_without_text
from ray_app.tables.manifest import Manifest, Output, check_output, read_manifest, read_output, require_output
from ray_app.tables.partitions import partition_of, partition_rows, write_part
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 2
_SCHEMAS = {"pins": PIN_COLUMNS, "boards": BOARDS, "search_log": SEARCH_LOG, "captions": CAPTIONS}
_JOINED = {"boards": TITLED_SAVES}  # schema of the rows that meet, where it is not the table's own


def run(cfg: Config, store: Storage) -> Manifest:
    """Write pin_texts. Every human-labelled query counts as under evaluation: which of them train is decided later.

    So do the queries of `evaluate.human_labels`; and with `sample.until` no later event of the search log is read.

    It is group-bys over columns, by pin: of tables that ingest cut into parts, in as many parts, each by its own Ray task;
    else here. In a part pins are in the order of their ids.

    Raises:
        UserError: ingest has not run, or the caption stage, if there is a model for captions.
    """
    tables = {name: require_output(store, "ingest", name) for name in ("pins", "boards", "search_log")}
    human = require_output(store, "ingest", "human_labels")
    captions = None if cfg.caption.model is None else require_output(store, "caption", "captions")
    held_out = HeldOut.of(cfg)
    tables |= {"captions": captions} if captions else {}
    stage = Stage(
        name="enrich",
        version=VERSION,
        inputs=[*tables.values(), human, *held_out.inputs],
        recipe=[cfg.enrich, TEXT_VERSION, *held_out.settings],
        compute=partial(_enrich, tables=tables, human=human, held_out=held_out),
    )
    return run_stage(stage, cfg, store)


def _enrich(run: StageRun, tables: dict[str, Output], human: Output, held_out: HeldOut) -> StageResult:
    store = run.store
    excluded = held_out.queries | set(pc.unique(read_output(store, human, columns=["query"])["query"]).to_pylist())
    num_parts = _num_parts(store)
    job = _EnrichJob(
        cfg=run.cfg, store=store, folder=run.table_folder("pin_texts"), num_parts=num_parts, tables=tables,
        excluded=excluded, held_out=held_out,
    )  # fmt: skip
    items = [(name, path) for name, output in tables.items() for path in output.files]
    if num_parts == 1:
        built = [job.build(0, [job.split_by_pin(item)[0] for item in items], None)]
    else:
        titles = shuffle(tables["boards"].files, job.split_by_title, _forms, num_parts)
        forms = {title: form for part in titles for title, form in part.items()}
        built = shuffle(items, job.split_by_pin, job.build, num_parts, forms)
    for output in tables.values():
        check_output(store, output, {path: sha for path, sha in built[0].read.items() if path in output.files})
    rows = sum(part.counts["rows_out"] for part in built)
    run.add_output("pin_texts", job.folder, [file for part in built for file in part.files], rows=rows)
    counts: Counter[str] = Counter()
    for part in built:
        counts.update(part.counts)
    return StageResult(counts={**counts, "excluded_queries": len(excluded)})


def _num_parts(store: Storage) -> int:
    """One, if each of the tables is of one part; else as many as all together, since all of them meet."""
    ingest = read_manifest(store, "ingest")
    parts = ingest.info.get("parts", {}).values() if ingest else []
    return sum(parts) if max(parts, default=1) > 1 else 1


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Result of one part."""

    files: list[StoredFile]
    counts: dict[str, int]
    read: dict[str, str]  # SHA-256 of each file that rows were taken from


@dataclass(frozen=True, kw_only=True)
class _EnrichJob:
    """Arguments that all tasks share."""

    cfg: Config
    store: Storage
    folder: str
    num_parts: int
    tables: dict[str, Output]
    excluded: frozenset[str]
    held_out: HeldOut

    def split_by_title(self, path: str) -> list[pa.Table]:
        """A file of saves, cut so that all saves under a title meet."""
        saves = titled_saves(self.store.read_table(path))
        return partition_rows(saves, partition_of(saves["title"].to_pylist(), self.num_parts), self.num_parts)

    def split_by_pin(self, item: tuple[str, str]) -> list[pa.Table]:
        """A file of one of the tables, cut so that all rows of a pin meet; the tables carry their name and the file's hash."""
        name, path = item
        rows, sha = self.store.read_table_and_hash(path, _SCHEMAS[name].names)
        if name == "search_log":
            rows = self.held_out.past(rows)
        # Of the log some rows name no pin: searches that showed nothing.
        rows = titled_saves(rows) if name == "boards" else rows.filter(pc.is_valid(rows["pin_id"]))
        parts = partition_rows(rows, partition_of(rows["pin_id"].to_pylist(), self.num_parts), self.num_parts)
        return [part.replace_schema_metadata({"table": name, "path": path, "sha256": sha}) for part in parts]

    def build(self, number: int, read: list[pa.Table], forms: dict[str, str] | None) -> _Part:
        """The texts of one part's pins."""
        hashes, rows_of = {}, {name: [_JOINED.get(name, _SCHEMAS[name]).empty_table()] for name in self.tables}
        for rows in read:
            mark = {key.decode(): value.decode() for key, value in rows.schema.metadata.items()}
            hashes[mark["path"]] = mark["sha256"]
            rows_of[mark["table"]].append(rows.replace_schema_metadata())
        found = {name: pa.concat_tables(rows, promote_options="permissive") for name, rows in rows_of.items()}
        pins = found["pins"] if self.num_parts == 1 else found["pins"].sort_by("pin_id")
        texts = build_pin_texts(
            pins, found["boards"], found["search_log"], self.excluded, self.cfg.enrich, found.get("captions"), forms
        )
        part = number if self.num_parts > 1 else None
        return _Part(
            files=write_part(self.store, self.folder, part, texts, self.cfg.ingest.rows_per_file),
            counts={
                "rows_in": pins.num_rows,
                "rows_out": texts.num_rows,
                "rows_quarantined": 0,
                "pins_without_text": num_without_text(texts),
                "pins_with_caption": texts.num_rows - texts["caption"].null_count,
                "pins_with_board_titles": texts.num_rows - texts["board_titles"].null_count,
                "pins_with_engaged_queries": texts.num_rows - texts["engaged_queries"].null_count,
            },
            read=hashes,
        )


def _forms(number: int, saves: list[pa.Table], shared: None) -> dict[str, str]:
    return title_forms(pa.concat_tables(saves))
