"""Releases: complete snapshots of pin embeddings, and the CURRENT pointer that is moved last.

    releases/<id>/part-00000.parquet   pin_id, content_key, embedding
    releases/<id>/release.json         written when the part is whole: without it the folder is no release
    releases/CURRENT                   JSON with the id of the release that is served

A reader goes CURRENT -> release.json -> part, so it sees the old release or the new one, never half of one.
"""

import hashlib
import logging
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.config import section_hash
from ray_app.errors import UserError
from ray_app.ledger.ledger import Ledger
from ray_app.schemas import SCHEMA_VERSION, cast_to, release_schema
from ray_app.storage import CorruptFileError, Storage, decode_table

logger = logging.getLogger(__name__)

CURRENT = "releases/CURRENT"


@dataclass(frozen=True, kw_only=True)
class Release:
    """One published, complete set of pin embeddings."""

    id: str
    student_id: str  # of the student that made the embeddings; another one's queries must not meet them
    dim: int
    num_pins: int
    num_missing: int  # pins without an embedding (their row is an error)
    content_hash: str  # of the (pin_id, content_key) pairs
    files: dict[str, str]  # path under the storage root -> sha256
    schema_version: int
    created_at: float  # Unix seconds
    info: dict[str, Any]

    @property
    def folder(self) -> str:
        """Folder of this release under the storage root."""
        return f"releases/{self.id}"


def publish_release(
    store: Storage, pins: pa.Table, ledger: Ledger, dim: int, student_id: str, info: dict[str, Any] | None = None
) -> Release:
    """Join pins with their embeddings, write the release, and move CURRENT to it last.

    The id follows from the student and the content, so publishing the same again writes nothing new.

    Args:
        store: Where `releases/` lies.
        pins: pin_id (unique) and content_key.
        ledger: Has a result for each content key; failed ones are left out and counted.
        dim: Numbers per embedding.
        student_id: Identity of the student.
        info: JSON-able notes kept in release.json, such as recipes. Not part of the id.

    Raises:
        UserError: a pin was never embedded, an embedding is not finite, or no pin has one.
    """
    table, num_missing = _join(pins, ledger, dim)
    content_hash = _pairs_hash(table)
    release_id = section_hash(student_id, dim, content_hash, SCHEMA_VERSION)
    release = _intact_release(store, release_id)
    if release is None:
        part = store.write_table(f"releases/{release_id}/part-00000.parquet", table)
        release = Release(
            id=release_id, student_id=student_id, dim=dim, num_pins=table.num_rows, num_missing=num_missing,
            content_hash=content_hash, files={part.path: part.sha256}, schema_version=SCHEMA_VERSION,
            created_at=time.time(), info=info or {},
        )  # fmt: skip
        store.write_json(f"{release.folder}/release.json", asdict(release))
    if _current_id(store) != release_id:
        store.write_json(CURRENT, {"id": release_id})
    logger.info("release %s: %d pins, %d without embedding", release_id, release.num_pins, num_missing)
    return release


def current_release(store: Storage) -> Release | None:
    """The release that CURRENT names; None if nothing was ever published.

    Raises:
        UserError: CURRENT names a release that is not there.
    """
    current = _current_id(store)
    if current is None:
        return None
    release = _read_release(store, current)
    if release is None:
        raise UserError(f"{store.shown}/{CURRENT} names release {current}, which is not there; run embed again")
    return release


def open_release(store: Storage, release: Release, student_id: str | None = None) -> pa.Table:
    """The release's table, `schemas.release_schema(dim)`, ordered by pin_id, after checking that it is what was published.

    Args:
        store: Where `releases/` lies.
        release: From `current_release` or `list_releases`.
        student_id: Of the student that will be used with it; None: not checked.

    Raises:
        UserError: damaged, incomplete, or made by another student.
    """
    where = f"release {release.id}"
    if student_id is not None and student_id != release.student_id:
        raise UserError(
            f"{where} was made by student {release.student_id}, not {student_id}; run embed with this student first"
        )
    parts = []
    for path, sha256 in release.files.items():
        data = store.read_bytes(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptFileError(f"{where}: {path} is damaged; delete its folder and run embed again")
        parts.append(decode_table(data, f"{store.shown}/{path}"))
    table = pa.concat_tables(parts)
    found = table.schema.field("embedding").type if "embedding" in table.column_names else None
    if found != release_schema(release.dim).field("embedding").type:
        raise UserError(f"{where}: its embeddings are {found}, not {release.dim} float32 numbers; run embed again")
    if table.num_rows != release.num_pins:
        raise UserError(f"{where}: {table.num_rows} rows, but release.json says {release.num_pins}; run embed again")
    _require_finite(table, where)
    return cast_to(table, release_schema(release.dim), where)


def list_releases(store: Storage) -> list[Release]:
    """All complete releases, oldest first. Half-written ones have no release.json and are not listed."""
    ids = [path.split("/")[1] for path in store.list_files("releases", "/release.json")]
    found = [release for release in (_read_release(store, release_id) for release_id in ids) if release is not None]
    return sorted(found, key=lambda release: (release.created_at, release.id))


def referenced_keys(store: Storage) -> pa.Array:
    """Content keys that some release holds: what `Ledger.collect_garbage` must keep."""
    columns = [open_release(store, release)["content_key"] for release in list_releases(store)]
    return pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()))


def collect_garbage(store: Storage, keep: int) -> list[str]:
    """Delete old and half-written releases; returns their ids. Must not run beside a publish.

    Args:
        store: Where `releases/` lies.
        keep: How many of the newest stay. The CURRENT one always stays, whatever its age.
    """
    current = _current_id(store)
    complete = [release.id for release in list_releases(store)]
    staying = set(complete[-keep:]) if keep > 0 else set()
    folders = {path.split("/")[1] for path in store.list_files("releases") if path.count("/") > 1}
    dropped = sorted(folders - staying - {current})
    for release_id in dropped:
        store.delete(f"releases/{release_id}/release.json")  # first: then a crash leaves what counts as half-written
        store.delete(f"releases/{release_id}")
    return dropped


def _join(pins: pa.Table, ledger: Ledger, dim: int) -> tuple[pa.Table, int]:
    """The release's rows by pin_id, and how many pins have no embedding."""
    if pc.count_distinct(pins["pin_id"]).as_py() != pins.num_rows or pins["pin_id"].null_count:
        raise ValueError("a release needs unique, non-null pin ids")
    try:
        results = ledger.lookup(pins["content_key"])
    except KeyError as error:
        raise UserError(f"{error.args[0]}: run embed before publishing") from None
    good = pc.and_(pc.is_null(results["error"]), pc.is_valid(results["embedding"]))
    columns = {"pin_id": pins["pin_id"], "content_key": pins["content_key"], "embedding": results["embedding"]}
    table = cast_to(pa.table(columns).filter(good), release_schema(dim), "release").sort_by("pin_id")
    if table.num_rows == 0:
        raise UserError(f"none of {pins.num_rows} pins has an embedding, so there is nothing to publish")
    _require_finite(table, "the new release")
    return table, pins.num_rows - table.num_rows


def _require_finite(table: pa.Table, where: str) -> None:
    column = table["embedding"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    if column.null_count or not np.isfinite(values).all():
        raise UserError(
            f"{where}: some embeddings hold NaN or infinity, which no search can rank; embed those pins again"
        )


def _pairs_hash(table: pa.Table) -> str:
    pairs = zip(table["pin_id"].to_pylist(), table["content_key"].to_pylist(), strict=True)
    return section_hash({pin_id: key for pin_id, key in pairs})


def _current_id(store: Storage) -> str | None:
    return str(store.read_json(CURRENT)["id"]) if store.exists(CURRENT) else None


def _read_release(store: Storage, release_id: str) -> Release | None:
    path = f"releases/{release_id}/release.json"
    if not store.exists(path):
        return None
    try:
        return Release(**store.read_json(path))
    except TypeError as error:
        logger.warning("ignoring %s, written by another version of this code: %s", path, error)
        return None


def _intact_release(store: Storage, release_id: str) -> Release | None:
    """The release if it is there and opens."""
    release = _read_release(store, release_id)
    if release is None:
        return None
    try:
        open_release(store, release)
    except UserError as error:  # damaged, or its part is gone
        logger.warning("writing the release again: %s", error)
        return None
    return release
