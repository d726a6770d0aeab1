"""Files and URLs of images: what they are now, and the hash of what they hold.

Reading is cheap beside captioning, but not free: a file that was hashed before is not read again while its size and time
of change are the same, nor a URL at all, since a URL is taken as immutable.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa

from ray_app.base.config import CaptionConfig, ImageLimits
from ray_app.base.content_key import content_key, recipe_id
from ray_app.base.images.decode import ImageError
from ray_app.base.images.fetch import HostBudget, is_url, normalize_location, stat_images
from ray_app.base.storage import Storage
from ray_app.cluster.blocks import actor_chain
from ray_app.cluster.executor import ModelWork
from ray_app.cluster.resources import PoolRequest
from ray_app.tables.buckets import read_bucket
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Output

IMAGE_HASHES = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),  # of location, size and time of change
        pa.field("sha256", pa.string()),  # of the file's bytes, hex
        pa.field("error", pa.string()),
    ]
)
READ_THREADS = 16  # a guess: downloads wait most of the time
_HASH_RECIPE = recipe_id(stage="picture_hashes", version=1)
_HASH_ROWS = 256  # files per committed block: what a crash can cost


def stat_fingerprint(store: Storage, pins: Output, limits: ImageLimits, folder: Path, number: int) -> str:
    """Identity of a bucket's files as they lie there now: an overwritten image changes it, though the table is the same.

    Args:
        store: Of the pins table.
        pins: The table.
        limits: Of images.
        folder: See `normalize_location`.
        number: Of the bucket.
    """
    images = read_bucket(store, pins, number, ["image"])["image"].unique().to_pylist()
    locations = sorted({normalize_location(image, folder) for image in images if image})
    digest = hashlib.sha256()
    for location, stat in zip(locations, stat_images(locations, limits), strict=True):
        digest.update(f"{location}\0{stat}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def file_keys(locations: Sequence[str], limits: ImageLimits) -> list[str]:
    """The key of each location as it is now, in the ledger of hashes.

    Args:
        locations: As `normalize_location` gives them.
        limits: Of images.
    """
    stats = stat_images(list(locations), limits)
    return [
        content_key(_HASH_RECIPE, location, *(() if is_url(location) else stat or (None,)))
        for location, stat in zip(locations, stats, strict=True)
    ]


def hash_work(cfg: CaptionConfig, store: Storage, num_buckets: int) -> ModelWork:
    """Model work of hashing files (content_key, location): ledger, readers, blocks."""
    return ModelWork(
        noun="images",
        ledger=Ledger(store, "picture_hashes", _HASH_RECIPE, IMAGE_HASHES, num_buckets),
        pool=PoolRequest(section="caption", num_actors=cfg.num_decode_tasks),
        chain=partial(actor_chain, HashUDF, {"limits": cfg.limits}),
        rows_per_block=_HASH_ROWS,
    )


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
