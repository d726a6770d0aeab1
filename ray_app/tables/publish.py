"""Write a release: the embeddings of all pins, and what they were made from."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import section_hash
from ray_app.base.errors import UserError
from ray_app.base.schemas import SCHEMA_VERSION, cast_to, release_schema
from ray_app.base.storage import Storage
from ray_app.tables.current import move_current
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Output
from ray_app.tables.release import Release, missing_files, read_parts, read_release
from ray_app.tables.release_embeddings import GatheredVectors

logger = logging.getLogger(__name__)

PART_BYTES = 16_000_000  # guessed: of vectors; a writer or reader of parts holds one at a time, in some five copies
_ROWS = 65_536  # of ids and keys as Python objects at a time


def publish_release(
    store: Storage, pins: pa.Table, ledger: Ledger, dim: int, student_id: str, info: dict[str, Any] | None = None, *,
    sources: Mapping[str, Output], config: dict[str, Any],
) -> Release:  # fmt: skip
    """Join pins with their embeddings, write the release, and move CURRENT to it last.

    The id follows from the student, the content and the sources' content, so publishing the same again writes nothing
    new, and one id never means two things. A release whose own files or sources are damaged or gone is written again.

    Args:
        pins: pin_id (unique) and content_key.
        ledger: Has a result for each content key; failed ones are left out and counted.
        student_id: Identity of the student; the content hash of the source `student`.
        info: JSON-able notes kept in release.json, such as recipes. Not part of the id.
        sources: What serving needs besides the vectors, by name. Garbage collection keeps these folders.
        config: Resolved; kept in release.json. Not part of the id: what it decides is in the sources' content.

    Raises:
        UserError: a pin was never embedded, an embedding is not finite, or no pin has one.
    """
    assert "student" not in sources or sources["student"].content_hash == student_id
    pins = pins.select(["pin_id", "content_key"]).sort_by("pin_id").combine_chunks()
    ids = pins["pin_id"]
    if ids.null_count or pc.any(pc.equal(ids[1:], ids[:-1])).as_py():
        raise ValueError("a release needs unique, non-null pin ids")
    try:
        vectors = GatheredVectors(ledger, pins["content_key"], dim)
    except KeyError as error:
        raise UserError(f"{error.args[0]}: run embed before publishing") from None
    with vectors:
        num_pins = int(vectors.good.sum())
        if num_pins == 0:
            raise UserError(f"none of {pins.num_rows} pins has an embedding, so there is nothing to publish")
        content_hash = _pairs_hash(pins, vectors.good)
        hashes = {name: source.content_hash for name, source in sources.items()}
        release_id = section_hash(student_id, dim, content_hash, hashes, SCHEMA_VERSION)
        release = _intact_release(store, release_id)
        if release is None:
            release = Release(
                id=release_id, student_id=student_id, dim=dim, num_pins=num_pins, num_missing=pins.num_rows - num_pins,
                content_hash=content_hash, files=_write_parts(store, f"releases/{release_id}", pins, vectors),
                sources=dict(sources), config=config, schema_version=SCHEMA_VERSION, created_at=time.time(),
                info=info or {},
            )  # fmt: skip
            store.write_json(f"{release.folder}/release.json", asdict(release))
    move_current(store, release_id)
    logger.info("release %s: %d pins, %d without embedding", release_id, release.num_pins, release.num_missing)
    return release


def _write_parts(store: Storage, folder: str, pins: pa.Table, vectors: GatheredVectors) -> dict[str, str]:
    """Path -> sha256."""
    files = {}
    schema = release_schema(vectors.dim)
    for number, (rows, some) in enumerate(vectors.batches(max(1, PART_BYTES // (4 * vectors.dim)))):
        part = pins.take(rows).append_column(
            "embedding", pa.FixedSizeListArray.from_arrays(pa.array(some.reshape(-1)), vectors.dim)
        )
        written = store.write_table(f"{folder}/part-{number:05d}.parquet", cast_to(part, schema, "release"))
        files[written.path] = written.sha256
    return files


def _pairs_hash(pins: pa.Table, good: np.ndarray) -> str:
    """Hash of the (pin_id, content_key) pairs with an embedding, in the order of pin ids."""
    digest = hashlib.sha256()
    for start in range(0, pins.num_rows, _ROWS):
        some = pins.slice(start, _ROWS).filter(pa.array(good[start : start + _ROWS]))
        for pair in zip(some["pin_id"].to_pylist(), some["content_key"].to_pylist(), strict=True):
            digest.update(json.dumps(pair).encode())
    return digest.hexdigest()[:16]


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
