"""Index of a pins table's images by content: new, changed and repeated images are known before a model is loaded.

Reading is cheap beside captioning, but not free: a file that was hashed before is not read again while its size and time
of change are the same, nor a URL at all, since a URL is taken as immutable.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import CaptionConfig, ImageLimits
from ray_app.base.content_key import content_key, recipe_id
from ray_app.base.images.decode import ImageError
from ray_app.base.images.fetch import HostBudget, is_url, normalize_location, stat_images
from ray_app.base.storage import Storage
from ray_app.cluster.blocks import actor_chain
from ray_app.cluster.executor import ModelWork
from ray_app.cluster.resources import PoolRequest
from ray_app.tables.keys import KeySet
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Output

IMAGE_HASHES = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),  # of location, size and time of change
        pa.field("sha256", pa.string()),  # of the file's bytes, hex
        pa.field("error", pa.string()),
    ]
)
SOURCES = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),  # of the bytes and the recipe
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("location", pa.string()),  # path or URI; null: the bytes are in the pins table
        pa.field("part", pa.string()),  # file of the pins table
        pa.field("row", pa.int64()),  # in that file
    ]
)
READ_THREADS = 16  # a guess: downloads wait most of the time
_HASH_RECIPE = recipe_id(stage="picture_hashes", version=1)
_HASH_ROWS = 256  # files per committed block: what a crash can cost


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """The pictures of a pins table. Column i of `keys` and `errors` belongs to `pin_ids[i]`; one of both is null."""

    pin_ids: pa.Array  # pins that have a picture, in table order
    keys: pa.Array
    errors: pa.Array  # why a picture could not be read
    sources: pa.Table  # of schema SOURCES, one row per distinct picture
    num_without: int  # pins without a picture
    num_unreadable: int  # distinct locations
    num_unreadable_urls: int
    num_read: int  # files and URLs that had to be read now
    hashes: Ledger
    hash_keys: dict[str, str]  # content key of a URL's picture -> its key in `hashes`


class HashUDF:
    """Ray callable: reads files and hashes them; a file that cannot be read becomes an error row."""

    def __init__(self, limits: ImageLimits) -> None:
        self.limits = limits
        self.hosts = HostBudget()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Columns content_key, location -> IMAGE_HASHES."""
        with ThreadPoolExecutor(READ_THREADS) as threads:
            found = list(threads.map(self._hash, block["location"].to_pylist()))
        columns = {
            "content_key": block["content_key"],
            "sha256": pa.array([digest for digest, _ in found], pa.string()),
            "error": pa.array([error for _, error in found], pa.string()),
        }
        return pa.table(columns).cast(IMAGE_HASHES)

    def _hash(self, location: str) -> tuple[str | None, str | None]:
        try:
            return hashlib.sha256(self.hosts.read(location, self.limits)).hexdigest(), None
        except ImageError as error:
            return None, str(error)


def stat_fingerprint(images: Sequence[str | None], limits: ImageLimits) -> str:
    """Identity of the files as they lie there now: an overwritten picture changes it, though the table is the same."""
    locations = sorted({normalize_location(image) for image in images if image})
    digest = hashlib.sha256()
    for location, stat in zip(locations, stat_images(locations, limits), strict=True):
        digest.update(f"{location}\0{stat}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def find_images(cfg: CaptionConfig, store: Storage, pins: Output, recipe: str) -> ImageIndex:
    """Content keys of all pictures; reads what has not been read before, on Ray workers."""
    ids: list[str] = []
    embedded: list[tuple[str, str, int] | None] = []  # sha256, part, row
    locations: list[str | None] = []
    without = 0
    for part in pins.files:
        table = store.read_table(part, ["pin_id", "image", "image_bytes"])
        rows = zip(table["pin_id"].to_pylist(), table["image"].to_pylist(), table["image_bytes"], strict=True)
        for row, (pin_id, image, data) in enumerate(rows):
            if not data.is_valid and not image:
                without += 1
                continue
            ids.append(pin_id)
            known = (hashlib.sha256(data.as_buffer()).hexdigest(), part, row) if data.is_valid else None
            embedded.append(known)
            locations.append(None if data.is_valid else normalize_location(image))
    named = sorted({location for location in locations if location is not None})
    hashes = Ledger(store, "picture_hashes", _HASH_RECIPE, IMAGE_HASHES)
    hash_keys, found, num_read = _hash_files(cfg, hashes, named)
    unreadable = [location for location, (digest, _) in found.items() if digest is None]

    sources: dict[str, tuple[str, str | None, str | None, int | None]] = {}
    keys: list[str | None] = []
    errors: list[str | None] = []
    url_keys: dict[str, str] = {}
    for known, location in zip(embedded, locations, strict=True):
        digest, error = (known[0], None) if known else found[location or ""]
        keys.append(None if digest is None else content_key(recipe, digest))
        errors.append(error)
        key = keys[-1]
        if key is None or digest is None:
            continue
        if key in sources:
            continue
        sources[key] = (digest, location, known[1] if known else None, known[2] if known else None)
        if location is not None and is_url(location):
            url_keys[key] = hash_keys[location]
    columns = [list(sources), *([row[i] for row in sources.values()] for i in range(4))]
    return ImageIndex(
        pin_ids=pa.array(ids, pa.string()),
        keys=pa.array(keys, pa.string()),
        errors=pa.array(errors, pa.string()),
        sources=pa.table(columns, schema=SOURCES),
        num_without=without,
        num_unreadable=len(unreadable),
        num_unreadable_urls=sum(map(is_url, unreadable)),
        num_read=num_read,
        hashes=hashes,
        hash_keys=url_keys,
    )


def _hash_files(
    cfg: CaptionConfig, hashes: Ledger, locations: list[str]
) -> tuple[dict[str, str], dict[str, tuple[str | None, str | None]], int]:
    """By location: its key in `hashes`, and (sha256, error); and how many had to be read."""
    keys = [
        content_key(_HASH_RECIPE, location)
        if is_url(location)
        else content_key(_HASH_RECIPE, location, *(stat or (None,)))
        for location, stat in zip(locations, stat_images(locations, cfg.limits), strict=True)
    ]
    if not locations:
        return {}, {}, 0
    hashes.drop_errors()  # a server that was down may be up again
    wanted = pa.table({"content_key": pa.array(keys, pa.string()), "location": pa.array(locations, pa.string())})
    work = ModelWork(
        noun="pictures",
        ledger=hashes,
        pool=PoolRequest(section="caption", num_actors=cfg.num_decode_tasks),
        chain=partial(actor_chain, HashUDF, {"limits": cfg.limits}),
        rows_per_block=_HASH_ROWS,
    )
    counts = work.compute(wanted)
    found = hashes.lookup(wanted["content_key"])
    pairs = zip(found["sha256"].to_pylist(), found["error"].to_pylist(), strict=True)
    return dict(zip(locations, keys, strict=True)), dict(zip(locations, pairs, strict=True)), counts.computed


def forget_hashes(hashes: Ledger, keys: Sequence[str]) -> None:
    """Read these again next time: they turned out to be another picture."""
    present = hashes.present_keys()
    hashes.collect_garbage(
        KeySet.of([present.filter(pc.invert(pc.is_in(present, value_set=pa.array(keys, pa.string()))))])
    )
