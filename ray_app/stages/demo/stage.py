"""demo: the demo dataset under `<output>/world`, as sources for ingest, and the truth for evaluate."""

import logging
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.base.config import Config, DemoConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage, StoredFile
from ray_app.cluster.tasks import results_of, start_task
from ray_app.demo.world import (
    image_files,
    join_location,
    num_parts,
    num_repins,
    part_bounds,
    part_tables,
    whole_tables,
)
from ray_app.tables.manifest import Manifest, manifest_path
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

logger = logging.getLogger(__name__)

VERSION = 2
WORLD = "world"
IMAGES = f"{WORLD}/images"
_NO_FILE = {"path": "", "sha256": "", "size_bytes": 0}


def run(cfg: Config, store: Storage) -> Manifest:
    """Write the world, each part of it in its own Ray task; a finished one is left alone while its settings stand.

    Picture files are no outputs of the manifest: people change one to see what is computed again, and that must not
    bring the old one back.

    Raises:
        UserError: the config has no demo section, or the storage cannot be written.
    """
    if cfg.demo is None:
        raise UserError(
            "demo: the config has no section `demo`; use configs/demo.yaml, or give ingest your own sources"
        )
    demo = cfg.demo
    image_root = join_location(store.uri, IMAGES)
    named = image_root if demo.pictures == "files" else None  # by the pins, so another place is another world
    stage = Stage(
        name="demo",
        version=VERSION,
        inputs=[],
        recipe=[demo, named],
        compute=partial(_write_demo, demo=demo, image_root=image_root),
    )
    return run_stage(stage, cfg, store)


def _write_demo(run: StageRun, demo: DemoConfig, image_root: str) -> StageResult:
    store = run.store
    # Manifest first: a kill must not leave one that vouches for half of another world.
    store.delete(manifest_path("demo"))
    store.delete(WORLD)
    parts = num_parts(demo)
    tasks = [start_task(write_part, demo, store, image_root, part, parts) for part in range(parts)]
    written: list[dict[str, Any]] = [row for rows in results_of(tasks) for row in rows]
    for table, rows in whole_tables(demo).items():
        number = sum(row["name"] == table for row in written)
        written.append(_write_table(store, table, number, rows))

    counts: Counter[str] = Counter(rows_in=0, rows_out=0, rows_quarantined=0)
    for row in written:
        counts[row["name"].replace("/", "_")] += row["rows"]
    for table in dict.fromkeys(row["name"] for row in written if row["path"]):
        files = sorted((row for row in written if row["name"] == table), key=lambda row: row["path"])
        stored = [StoredFile(path=r["path"], sha256=r["sha256"], size_bytes=r["size_bytes"]) for r in files]
        run.add_output(table.replace("/", "_"), f"{WORLD}/{table}", stored, rows=sum(r["rows"] for r in files))
    counts["rows_out"] = sum(row["rows"] for row in written if row["path"])
    return StageResult(counts=dict(counts))


def write_part(demo: DemoConfig, store: Storage, image_root: str, part: int, parts: int) -> list[dict[str, Any]]:
    """Write one part of the world: its rows of every table, and its pictures.

    Returns:
        One row per file (name of the table, path, sha256, size_bytes, rows), and one per count (path "").

    Raises:
        UserError: the storage cannot be written.
    """
    tables = part_tables(demo, part, parts, image_root)
    written = [_write_table(store, table, part, rows) for table, rows in tables.items()]
    bounds = part_bounds(demo.num_pins, part, parts)
    counts = {"repins": num_repins(demo, np.arange(*bounds))}
    if demo.pictures == "files":
        counts |= {"pictures": 0, "pictures_broken": 0}
        for picture in image_files(demo, *bounds):
            store.write_bytes(f"{IMAGES}/{picture.path}", picture.data)
            counts["pictures"] += 1
            counts["pictures_broken"] += picture.is_broken
    return [*written, *({"name": name, **_NO_FILE, "rows": count} for name, count in counts.items())]


def _write_table(store: Storage, table: str, number: int, rows: pa.Table) -> dict[str, Any]:
    file = store.write_table(f"{WORLD}/{table}/part-{number:05d}.parquet", rows)
    return {"name": table, "path": file.path, "sha256": file.sha256, "size_bytes": file.size_bytes, "rows": len(rows)}
