"""Index of a pins table's images by content: new, changed and repeated images are known before a model is loaded.

Images meet by key, whatever pins show them: first by that of the file, in the ledger of hashes, then by that of the content. What
travels is one small row for each image that a bucket of pins shows; image bytes stay where they are.
"""

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.config import CaptionConfig, ImageLimits
from ray_app.base.content_key import content_keys
from ray_app.base.images.fetch import is_url, normalize_location
from ray_app.base.storage import Storage
from ray_app.cluster.buckets import map_buckets, shuffle
from ray_app.cluster.executor import Wanted
from ray_app.stages.caption.image_files import file_keys, hash_work
from ray_app.tables.buckets import bucket_files
from ray_app.tables.keys import KeySet, first_rows, key_numbers
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Output

SOURCES = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),  # of the bytes and the recipe
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("location", pa.string()),  # path or URI; null: the bytes are in the pins table
        pa.field("part", pa.string()),  # file of the pins table
        pa.field("row", pa.int64()),  # in that file
    ]
)
IMAGES = pa.schema(
    [
        pa.field("bucket", pa.int32()),  # of the pins table
        pa.field("pin_rows", pa.list_(pa.int32())),  # its rows that show the image, ascending
        pa.field("location", pa.string()),  # as in SOURCES, as the next two
        pa.field("part", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("file_key", pa.string()),  # in the ledger of hashes; null: the bytes are in the pins table
        pa.field("sha256", pa.string()),  # null: not read yet, or unreadable
        pa.field("content_key", pa.string()),  # as in SOURCES; null: as sha256
        pa.field("error", pa.string()),  # why it is unreadable
    ]
)


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """The images of a pins table, as temporary files of rows. Picklable: tasks read the files that they work on.

    There are as many files as the pins table has buckets. An image is in that file which the leading bits of its content key
    decide, as its caption is in the ledger's bucket of that number.
    """

    store: Storage
    folder: str  # of the files
    hashes: Ledger  # of files, with as many buckets
    num_read: int  # files and URLs that had to be read now
    num_embedded: int  # rows whose bytes are in the pins table
    num_unreadable: int  # distinct files and URLs
    num_unreadable_urls: int
    first_error: str | None  # of an unreadable one, to show

    @property
    def num_buckets(self) -> int:
        """Number of files, and of buckets of the pins table."""
        return self.hashes.num_buckets

    def rows(self, number: int) -> pa.Table:
        """Rows of IMAGES by content key, in the order of the pins table; those without one are by the key of their file."""
        return self.store.read_table(_path(self.folder, "content", number))

    def sources(self, number: int) -> pa.Table:
        """The first row of each content key."""
        rows = self.rows(number)
        rows = rows.filter(pc.is_valid(rows["content_key"]))
        return rows.take(first_rows(key_numbers(rows["content_key"])))

    def wanted(self, by_key: bool = False) -> Wanted:
        """Each distinct image once, as rows of `ModelWork.compute` (SOURCES).

        Args:
            by_key: In the order of their keys, which are hashes: the first ones are a random sample. Else in that of the pins
                table.
        """
        columns = [*SOURCES.names, "bucket"]

        def keyed(number: int) -> pa.Table:
            rows = self.sources(number).select(columns)
            return rows.sort_by("content_key") if by_key else rows

        def place(rows: pa.Table) -> NDArray[np.int64]:
            # Images of one file of the pins table together: whoever needs one of them reads the whole file.
            by_content = self.hashes.buckets_of(rows["content_key"])
            return np.where(rows["location"].is_null().to_numpy(), rows["bucket"].to_numpy(), by_content)

        return Wanted(
            num_buckets=self.num_buckets,
            keyed=keyed,
            columns=lambda _, rows: rows.select(SOURCES.names),
            place=place if self.num_embedded else None,
        )

    def forget_changed_urls(self, keys: Collection[str]) -> None:
        """Read URLs again next time that turned out to be another image.

        Args:
            keys: Content keys of images that could not be read as they were hashed.
        """
        changed = pa.array(sorted(keys), pa.string())

        def urls(number: int) -> list[str]:
            rows = self.sources(number)
            rows = rows.filter(pc.is_in(rows["content_key"], value_set=changed))
            return [row["file_key"] for row in rows.to_pylist() if is_url(row["location"] or "")]

        numbers = np.unique(self.hashes.buckets_of(changed)).tolist()
        if found := [key for some in map_buckets(urls, numbers) for key in some]:
            map_buckets(partial(self.hashes.drop, KeySet.of([pa.array(found)])), range(self.num_buckets))


@contextmanager
def find_images(cfg: CaptionConfig, store: Storage, pins: Output, recipe: str) -> Iterator[ImageIndex]:
    """Content keys of all images; reads what has not been read before, on Ray workers.

    Args:
        cfg: Limits of images, and how many tasks read.
        store: Of the pins table.
        pins: The table.
        recipe: Of the content keys.

    Yields:
        The index, whose files are deleted afterwards.

    Raises:
        UserError: a file of the table is corrupt, or tasks died.
    """
    num_buckets, cwd, folder = pins.num_buckets, Path.cwd(), f"tmp/images/{recipe}"
    work = hash_work(cfg, store, num_buckets)
    hashes = work.ledger

    def by_file(number: int) -> tuple[pa.Table, NDArray[np.int64]]:
        rows = _images_of(store, pins, number, cwd, cfg.limits)
        return rows, hashes.buckets_of(pc.coalesce(rows["file_key"], rows["sha256"]))

    def write_by_file(number: int, rows: pa.Table) -> None:
        hashes.drop_errors(number)  # a server that was down may be up again
        store.write_table(_path(folder, "file", number), _in_table_order(rows))

    def files(number: int) -> pa.Table:
        rows = store.read_table(_path(folder, "file", number), ["file_key", "location"])
        return rows.filter(pc.is_valid(rows["file_key"])).rename_columns(["content_key", "location"])

    def by_content(number: int) -> tuple[pa.Table, NDArray[np.int64]]:
        rows = _with_hashes(store.read_table(_path(folder, "file", number)), hashes, number, recipe)
        return rows, hashes.buckets_of(pc.coalesce(rows["content_key"], rows["file_key"]))

    def write_by_content(number: int, rows: pa.Table) -> _Counts:
        rows = _in_table_order(rows)
        store.write_table(_path(folder, "content", number), rows)
        return _Counts.of(rows)

    try:
        shuffle(range(num_buckets), by_file, write_by_file, num_buckets, IMAGES)
        read = work.compute(Wanted(num_buckets=num_buckets, keyed=files, columns=lambda _, rows: rows))
        counts = shuffle(range(num_buckets), by_content, write_by_content, num_buckets, IMAGES)
        yield ImageIndex(
            store=store,
            folder=folder,
            hashes=hashes,
            num_read=read.computed,
            num_embedded=sum(some.embedded for some in counts),
            num_unreadable=sum(some.unreadable for some in counts),
            num_unreadable_urls=sum(some.unreadable_urls for some in counts),
            first_error=next((some.first_error for some in counts if some.first_error), None),
        )
    finally:
        store.delete(folder)


def _images_of(store: Storage, pins: Output, number: int, cwd: Path, limits: ImageLimits) -> pa.Table:
    """The distinct images that a bucket of pins shows, as rows of IMAGES in the order of the table; nothing is read of files."""
    images: dict[str, dict[str, Any]] = {}  # by location, or the bytes' hash
    begin = 0
    for part in bucket_files(pins, number):
        table = store.read_table(part, ["image", "image_bytes"])
        for row, (image, data) in enumerate(zip(table["image"].to_pylist(), table["image_bytes"], strict=True)):
            if data.is_valid:
                name = hashlib.sha256(data.as_buffer()).hexdigest()
                found = {"sha256": name, "part": part, "row": row}
            elif image:
                name = normalize_location(image, cwd)
                found = {"location": name}
            else:
                continue
            images.setdefault(name, {"bucket": number, "pin_rows": []} | found)["pin_rows"].append(begin + row)
        begin += table.num_rows
    files = [name for name, image in images.items() if "location" in image]
    for name, key in zip(files, file_keys(files, limits), strict=True):
        images[name]["file_key"] = key
    return pa.Table.from_pylist(list(images.values()), schema=IMAGES)


def _with_hashes(rows: pa.Table, hashes: Ledger, number: int, recipe: str) -> pa.Table:
    """Rows of IMAGES with hashes and errors of their files, which are in one bucket of the ledger, and with content keys."""
    asked = rows["file_key"].drop_null().unique()
    found, place = hashes.lookup(asked, number), pc.index_in(rows["file_key"], value_set=asked)
    sha256 = pc.coalesce(rows["sha256"], found["sha256"].take(place))
    keys = pc.if_else(pc.is_valid(sha256), content_keys(recipe, sha256), None)
    known = {"sha256": sha256, "content_key": keys, "error": found["error"].take(place)}
    return pa.table({name: known.get(name, rows[name]) for name in IMAGES.names}, schema=IMAGES)


class _Counts(NamedTuple):
    """Of one file of the index; see `ImageIndex`."""

    embedded: int
    unreadable: int
    unreadable_urls: int
    first_error: str | None

    @classmethod
    def of(cls, rows: pa.Table) -> "_Counts":
        failed = rows.filter(pc.is_valid(rows["error"]))
        failed = failed.take(first_rows(key_numbers(failed["file_key"])))
        errors = failed["error"].to_pylist()
        return cls(
            embedded=rows["location"].null_count,
            unreadable=len(errors),
            unreadable_urls=sum(map(is_url, failed["location"].to_pylist())),
            first_error=errors[0] if errors else None,
        )


def _in_table_order(rows: pa.Table) -> pa.Table:
    """Rows of IMAGES in the order in which the pins table shows them first."""
    place = pa.table({"bucket": rows["bucket"], "row": pc.list_element(rows["pin_rows"], 0)})
    return rows.take(pc.sort_indices(place, [("bucket", "ascending"), ("row", "ascending")]))


def _path(folder: str, kind: str, number: int) -> str:
    return f"{folder}/{kind}-{number:04d}.parquet"
