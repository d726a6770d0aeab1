"""Pins with pictures, and the config of a caption run over them."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_app.base.config import Config
from ray_app.base.hashing import bucket_of
from ray_app.base.schemas import PINS
from ray_app.base.storage import Storage
from ray_app.tables.buckets import bucketed_output, split_rows, write_bucket
from ray_app.tables.stage_run import StageRun

COLOURS = ((220, 40, 40), (40, 160, 60), (40, 80, 220), (240, 220, 60), (20, 20, 20), (240, 240, 240))


def picture(number: int, size: int = 48, kind: str = "PNG") -> bytes:
    """The file of a picture of random squares; another one for each number."""
    from PIL import Image

    rng = np.random.default_rng(number)
    squares = rng.integers(0, len(COLOURS), (4, 4))
    pixels = np.array(COLOURS, np.uint8)[squares].repeat(size // 4, 0).repeat(size // 4, 1)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def write_images(folder: Path, numbers) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in numbers:
        path = folder / f"{number}.png"
        path.write_bytes(picture(number))
        paths.append(str(path))
    return paths


def write_pins(
    store: Storage,
    images: list[str | bytes | None],
    titles: list[str] | None = None,
    parts: int = 1,
    num_buckets: int | None = None,
) -> None:
    """What `ingest` leaves: a pin per image, given as a location, as bytes or not at all; in files, or in buckets of two files."""
    columns = {
        "pin_id": [f"p{i}" for i in range(len(images))],
        "image": [image if isinstance(image, str) else None for image in images],
        "image_bytes": [image if isinstance(image, bytes) else None for image in images],
        "title": titles or [f"title {i}" for i in range(len(images))],
    }
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(images))]
    table = pa.Table.from_pylist(rows, schema=PINS)
    run = StageRun("ingest", make_config(store.uri), store, 1, settings=[], inputs=[])
    if num_buckets is None:
        size = -(-len(rows) // parts)
        run.write_table("pins", [table.slice(start, size) for start in range(0, len(rows), size)])
    else:
        folder, cut = run.table_folder("pins"), bucket_of(columns["pin_id"], num_buckets)
        buckets = enumerate(split_rows(table, cut, num_buckets))
        some = [write_bucket(store, folder, i, part, -(-part.num_rows // 2) or 1) for i, part in buckets]
        run.add_table(bucketed_output("pins", folder, some))
    run.finish(counts={"rows_in": len(rows), "rows_out": len(rows)})


def make_config(output: str, **caption) -> Config:
    tree = {
        "output": output,
        "ingest": {name: {"adapter": "table", "path": "x.csv"} for name in ("pins", "search_log", "human_labels")},
        "features": {"zero_shot_model": "none"},
        "train_teacher": {"base_model": "none"},
        "distill": {"base_model": "none"},
        "caption": {"batch_size": 4, "rows_per_block": 8, "max_new_tokens": 10, "dtype": "float32"} | caption,
    }
    return Config.model_validate(tree)
