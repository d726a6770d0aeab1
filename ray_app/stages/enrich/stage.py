"""enrich: pins, captions, boards and search log -> pin_texts."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.config import Config
from ray_app.base.hashing import buckets_of_hashes, text_keys
from ray_app.base.schemas import BOARDS, CAPTIONS, SEARCH_LOG
from ray_app.base.storage import Storage
from ray_app.base.text import TEXT_VERSION
from ray_app.cluster.buckets import map_buckets, shuffle
from ray_app.sources.held_out import HeldOut
from ray_app.stages.enrich.board_titles import TITLED_SAVES, title_forms, titled_saves
from ray_app.stages.enrich.pin_texts import PIN_COLUMNS, build_pin_texts, num_without_text
from ray_app.tables.buckets import (
    bucketed_output,
    common_num_buckets,
    read_bucket,
    write_bucket,
)
from ray_app.tables.manifest import Bucket, Manifest, Output, read_output, require_output
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 2
_SCHEMAS = {"pins": PIN_COLUMNS, "boards": BOARDS, "search_log": SEARCH_LOG, "captions": CAPTIONS}


def run(cfg: Config, store: Storage) -> Manifest:
    """Write pin_texts. Every human-labelled query counts as under evaluation: which of them train is decided later.

    So do the queries of `evaluate.human_labels`; and with `sample.until` no later event of the search log is read.

    Pins, captions, saves and events of a bucket are joined by one task, without a shuffle. Only how a board title is mostly
    written needs all saves under that title together.

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
    store, num_buckets = run.store, common_num_buckets(tables.values())
    excluded = held_out.queries | set(pc.unique(read_output(store, human, columns=["query"])["query"]).to_pylist())
    job = _EnrichJob(
        cfg=run.cfg, store=store, folder=run.table_folder("pin_texts"), tables=tables, excluded=excluded, held_out=held_out,
        forms=_title_forms(store, tables["boards"]) if num_buckets > 1 else None,
    )  # fmt: skip
    built = map_buckets(job.build, range(num_buckets))
    run.add_table(bucketed_output("pin_texts", job.folder, (bucket for bucket, _ in built)))
    counts: Counter[str] = Counter()
    for _, some in built:
        counts.update(some)
    return StageResult(counts={**counts, "excluded_queries": len(excluded)})


def _title_forms(store: Storage, boards: Output) -> dict[str, str]:
    """See `title_forms`; all saves under one title meet in a task."""

    def split(number: int) -> tuple[pa.Table, NDArray[np.int64]]:
        saves = titled_saves(read_bucket(store, boards, number))
        return saves, buckets_of_hashes(text_keys(saves["title"].to_pylist(), "title"), boards.num_buckets)

    def forms(_: int, saves: pa.Table) -> dict[str, str]:
        return title_forms(saves)

    found = shuffle(range(boards.num_buckets), split, forms, boards.num_buckets, TITLED_SAVES)
    return {title: form for some in found for title, form in some.items()}


@dataclass(frozen=True, kw_only=True)
class _EnrichJob:
    """What the tasks share."""

    cfg: Config
    store: Storage
    folder: str
    tables: dict[str, Output]
    excluded: frozenset[str]
    held_out: HeldOut
    forms: dict[str, str] | None  # None: there is one bucket

    def build(self, number: int) -> tuple[Bucket, dict[str, int]]:
        """Write the texts of one bucket's pins, and count them."""
        read = {
            name: read_bucket(self.store, output, number, _SCHEMAS[name].names) for name, output in self.tables.items()
        }
        log = self.held_out.past(read["search_log"])
        pins = read["pins"]
        texts = build_pin_texts(
            pins,
            titled_saves(read["boards"]),
            log.filter(pc.is_valid(log["pin_id"])),  # some rows name no pin: searches that showed nothing
            self.excluded,
            self.cfg.enrich,
            read.get("captions"),
            self.forms,
        )
        bucket = write_bucket(self.store, self.folder, number, texts, self.cfg.tables.rows_per_file)
        return bucket, {
            "rows_in": pins.num_rows,
            "rows_out": texts.num_rows,
            "rows_quarantined": 0,
            "pins_without_text": num_without_text(texts),
            "pins_with_caption": texts.num_rows - texts["caption"].null_count,
            "pins_with_board_titles": texts.num_rows - texts["board_titles"].null_count,
            "pins_with_engaged_queries": texts.num_rows - texts["engaged_queries"].null_count,
        }
