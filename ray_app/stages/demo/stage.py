"""demo: the built-in world under `<output>/world`, as sources for ingest, and the truth for evaluate."""

import logging
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.base.config import Config, DemoConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage, StoredFile
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
from ray_app.tables.stage_run import StageRun

logger = logging.getLogger(__name__)

VERSION = 2
WORLD = "world"
IMAGES = f"{WORLD}/images"
_USER_ERROR = "user_error"
_WRITTEN = pa.schema(
    [
        pa.field("name", pa.string()),  # of a table, or of a count
        pa.field("path", pa.string()),  # "": a count
        pa.field("sha256", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("rows", pa.int64()),
    ]
)
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
    stage = StageRun("demo", cfg, store, version=VERSION, settings=[demo, named], inputs=[])
    if (finished := stage.finished) is not None:
        return finished

    # Manifest first: a kill must not leave one that vouches for half of another world.
    store.delete(manifest_path("demo"))
    store.delete(WORLD)
    written = _make_parts(demo, store, image_root)
    for table, rows in whole_tables(demo).items():
        number = sum(row["name"] == table for row in written)
        written.append(_write_table(store, table, number, rows))

    counts: Counter[str] = Counter(rows_in=0, rows_out=0, rows_quarantined=0)
    for row in written:
        counts[row["name"].replace("/", "_")] += row["rows"]
    for table in dict.fromkeys(row["name"] for row in written if row["path"]):
        files = sorted((row for row in written if row["name"] == table), key=lambda row: row["path"])
        stored = [StoredFile(path=r["path"], sha256=r["sha256"], size_bytes=r["size_bytes"]) for r in files]
        stage.add_output(table.replace("/", "_"), f"{WORLD}/{table}", stored, rows=sum(r["rows"] for r in files))
    counts["rows_out"] = sum(row["rows"] for row in written if row["path"])
    return stage.finish(dict(counts))


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


def _make_parts(demo: DemoConfig, store: Storage, image_root: str) -> list[dict[str, Any]]:
    """`write_part` of every part, each in a Ray task."""
    import ray.data

    parts = num_parts(demo)

    def make(batch: dict[str, Any]) -> pa.Table:
        try:
            return pa.Table.from_pylist(write_part(demo, store, image_root, int(batch["id"][0]), parts), _WRITTEN)
        except UserError as error:  # as data: Ray would wrap it in its own errors and a page of traceback
            return pa.Table.from_pylist([{"name": _USER_ERROR, **_NO_FILE, "path": str(error), "rows": 0}], _WRITTEN)

    dataset = ray.data.range(parts, override_num_blocks=parts).map_batches(make, batch_size=1)
    dataset.set_name("demo")
    written = dataset.take_all()
    errors = sorted(row["path"] for row in written if row["name"] == _USER_ERROR)
    if errors:
        raise UserError(errors[0])
    return written
