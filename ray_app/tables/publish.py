"""Write a release: the embeddings of all pins, and what they were made from."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import section_hash
from ray_app.base.errors import UserError
from ray_app.base.schemas import SCHEMA_VERSION, cast_to, release_schema
from ray_app.base.storage import Storage, StoredFile
from ray_app.tables.buckets import BUCKET
from ray_app.tables.current import move_current
from ray_app.tables.keys import KeySet, key_numbers
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Output
from ray_app.tables.release import Release, missing_files, read_parts, read_release

logger = logging.getLogger(__name__)

PART_BYTES = 16_000_000  # guessed: of vectors; a reader of parts holds one at a time, in some five copies
_ROWS = 65_536  # of ids and keys as Python objects at a time


Keyed = Callable[[int], pa.Table]
MapBuckets = Callable[[Callable[[int], Any], Sequence[int]], list[Any]]
"""(function of a bucket, buckets) -> its results, such as `ray_app.cluster.buckets.map_buckets`."""


def _in_this_process(function: Callable[[int], Any], buckets: Sequence[int]) -> list[Any]:
    return [function(bucket) for bucket in buckets]


def publish_release(
    store: Storage, keyed: Keyed, ledger: Ledger, dim: int, student_id: str, info: dict[str, Any] | None = None, *,
    sources: Mapping[str, Output], config: dict[str, Any], map_buckets: MapBuckets = _in_this_process,
) -> Release:  # fmt: skip
    """Join pins with their embeddings, bucket by bucket, write the release, and move CURRENT to it last.

    The id follows from the student, the content and the sources' content, so publishing the same again writes nothing
    new, and one id never means two things. A release whose own files or sources are damaged or gone is written again.

    Args:
        keyed: Bucket -> pin_id (unique) and content_key of its pins.
        ledger: Has a result for each content key; failed ones are left out and counted. Its number of buckets is that of `keyed`.
        student_id: Identity of the student; the content hash of the source `student`.
        info: JSON-able notes kept in release.json, such as recipes. Not part of the id.
        sources: What serving needs besides the vectors, by name. Garbage collection keeps these folders.
        config: Resolved; kept in release.json. Not part of the id: what it decides is in the sources' content.
        map_buckets: Where the buckets are read and written.

    Raises:
        UserError: a pin was never embedded, an embedding is not finite, or no pin has one.
    """
    assert "student" not in sources or sources["student"].content_hash == student_id
    buckets = range(ledger.num_buckets)
    found = map_buckets(partial(_identify, keyed, ledger), buckets)
    num_pins, num_missing = sum(good for good, _, _ in found), sum(bad for _, bad, _ in found)
    if num_pins == 0:
        raise UserError(f"none of {num_missing} pins has an embedding, so there is nothing to publish")
    content_hash = section_hash(*(pairs for _, _, pairs in found))
    hashes = {name: source.content_hash for name, source in sources.items()}
    release_id = section_hash(student_id, dim, content_hash, hashes, SCHEMA_VERSION)
    release = _intact_release(store, release_id)
    if release is None:
        written = map_buckets(partial(_write_bucket, keyed, ledger, dim, f"releases/{release_id}"), buckets)
        release = Release(
            id=release_id, student_id=student_id, dim=dim, num_pins=num_pins, num_missing=num_missing,
            content_hash=content_hash, files={file.path: file.sha256 for files in written for file in files},
            sources=dict(sources), config=config, schema_version=SCHEMA_VERSION, created_at=time.time(), info=info or {},
        )  # fmt: skip
        store.write_json(f"{release.folder}/release.json", asdict(release))
    move_current(store, release_id)
    logger.info("release %s: %d pins, %d without embedding", release_id, release.num_pins, release.num_missing)
    return release


def _pins(keyed: Keyed, bucket: int) -> pa.Table:
    """pin_id and content_key of a bucket, in the order of ids."""
    pins = keyed(bucket).select(["pin_id", "content_key"]).sort_by("pin_id").combine_chunks()
    ids = pins["pin_id"]
    if ids.null_count or pc.any(pc.equal(ids[1:], ids[:-1])).as_py():
        raise ValueError("a release needs unique, non-null pin ids")
    return pins


def _identify(keyed: Keyed, ledger: Ledger, bucket: int) -> tuple[int, int, str]:
    """Pins of a bucket with an embedding, those without, and a hash of the former's (pin_id, content_key) in the order of ids."""
    pins, present = _pins(keyed, bucket), ledger.keys(bucket)
    numbers = key_numbers(pins["content_key"])
    if missing := int((~present.keys.contains(numbers)).sum()):
        raise UserError(
            f"ledger {ledger.table}/{ledger.recipe}: {missing} of {pins.num_rows} keys have no result: run embed before "
            "publishing"
        )
    good = ~KeySet(key_numbers(present.errors["content_key"])).contains(numbers)
    digest = hashlib.sha256()
    for start in range(0, pins.num_rows, _ROWS):
        some = pins.slice(start, _ROWS).filter(pa.array(good[start : start + _ROWS]))
        for pair in zip(some["pin_id"].to_pylist(), some["content_key"].to_pylist(), strict=True):
            digest.update(json.dumps(pair).encode())
    return int(good.sum()), int((~good).sum()), digest.hexdigest()[:16]


def _write_bucket(keyed: Keyed, ledger: Ledger, dim: int, folder: str, bucket: int) -> list[StoredFile]:
    """Write a bucket of a release, in files of PART_BYTES at most; none of a bucket without embeddings."""
    pins = _pins(keyed, bucket)
    vectors = ledger.lookup(pins["content_key"], bucket)["embedding"]
    pins = pins.append_column("embedding", vectors).filter(pc.is_valid(vectors))
    numbers = pc.list_flatten(pins["embedding"]).to_numpy()
    if not np.isfinite(numbers).all():
        raise UserError("some embeddings hold NaN or infinity, which no search can rank; embed those pins again")
    rows, schema = max(1, PART_BYTES // (4 * dim)), release_schema(dim)
    parts = [pins.slice(start, rows) for start in range(0, pins.num_rows, rows)]
    return [
        ledger.store.write_table(
            f"{folder}/{BUCKET}={bucket:04d}/part-{number:05d}.parquet", cast_to(part, schema, "release")
        )
        for number, part in enumerate(parts)
    ]


def _intact_release(store: Storage, release_id: str) -> Release | None:
    """The release if it is there, opens, and all that it needs is there."""
    try:
        release = read_release(store, release_id)
        if release is None:
            return None
        for _ in read_parts(store, release):
            pass
    except UserError as error:  # damaged, or a part is gone
        logger.warning("writing the release again: %s", error)
        return None
    return None if missing_files(store, release) else release
