"""Releases: complete snapshots of pin embeddings, and the CURRENT pointer that is moved last.

    releases/<id>/bucket=0007/part-00000.parquet   pin_id, content_key, embedding
    releases/<id>/release.json                     written when the parts are whole: without it the folder is no release
    releases/CURRENT                               JSON with the id of the release that is served, and of the one served before

A reader goes CURRENT -> release.json -> parts, so it sees the old release or the new one, never half of one. A release
names all that serving it needs (models, texts, features), so it can be served, or rolled back to, after later training.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.base.errors import UserError, printable
from ray_app.base.schemas import cast_to, release_schema
from ray_app.base.storage import CorruptFileError, Storage, decode_table, is_below
from ray_app.tables.manifest import Output, is_hash

logger = logging.getLogger(__name__)


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
    sources: dict[str, Output]  # models and tables that serving needs, by name; none of them is the pins' vectors
    config: dict[str, Any]  # resolved, of the run that published it first
    schema_version: int
    created_at: float  # Unix seconds
    info: dict[str, Any]

    @property
    def folder(self) -> str:
        """Folder of this release under the storage root."""
        return f"releases/{self.id}"


def find_release(store: Storage, release_id: str) -> Release:
    """The complete release of that id, or of the only id that begins so.

    Raises:
        UserError: there is none, or more than one; the message lists the ids that are there.
    """
    found = [release for release in list_releases(store) if release_id and release.id.startswith(release_id)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(release.id for release in found)
        raise UserError(f"{release_id!r} is the beginning of {len(found)} releases; write more of it: {ids}")
    raise UserError(f"there is no release {release_id!r}; {describe_releases(store)}")


def open_release(store: Storage, release: Release) -> pa.Table:
    """The release's table, `schemas.release_schema(dim)`, ordered by pin_id, after checking that it is what was published.

    Raises:
        UserError: damaged or incomplete.
    """
    return pa.concat_tables(read_parts(store, release))


def read_parts(store: Storage, release: Release) -> Iterator[pa.Table]:
    """The table of `open_release` part by part, each checked before it is given, so that one at a time is in memory.

    Use nothing of it before the end: that parts are too few or too many is known only then.

    Raises:
        UserError: as `open_release`.
    """
    where, schema, num_rows = f"release {release.id}", release_schema(release.dim), 0
    for path, sha256 in release.files.items():
        data = store.read_bytes(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptFileError(f"{where}: {path} is damaged; delete its folder and run embed again")
        table = decode_table(data, f"{store.shown}/{path}")
        del data
        found = table.schema.field("embedding").type if "embedding" in table.column_names else None
        if found != schema.field("embedding").type:
            raise UserError(f"{where}: its embeddings are {found}, not {release.dim} float32 numbers; run embed again")
        _require_finite(table, where)
        num_rows += table.num_rows
        yield cast_to(table, schema, where)
    if num_rows != release.num_pins or num_rows == 0:
        raise UserError(f"{where}: {num_rows} rows, but release.json says {release.num_pins}; run embed again")


def missing_files(store: Storage, release: Release) -> list[str]:
    """Files of a release and of its sources that are not there; whether they are whole is not looked at."""
    files = [*release.files, *(path for source in release.sources.values() for path in source.files)]
    return [path for path in files if not store.exists(path)]


def is_complete(store: Storage, release_id: str) -> bool:
    """Return True if that release and all files that it needs exist."""
    try:
        release = read_release(store, release_id)
    except CorruptFileError:
        return False
    return release is not None and not missing_files(store, release)


def list_releases(store: Storage) -> list[Release]:
    """All complete releases, oldest first. Incomplete ones have no release.json and are not listed, nor are corrupt ones."""
    found = []
    for path in store.list_files("releases", "/release.json"):
        try:
            release = read_release(store, path.split("/")[1])
        except CorruptFileError as error:
            logger.warning("ignoring a release: %s", error)
            continue
        if release is not None:
            found.append(release)
    return sorted(found, key=lambda release: (release.created_at, release.id))


def _require_finite(table: pa.Table, where: str) -> None:
    column = table["embedding"]
    values = (chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks)
    if column.null_count or not all(np.isfinite(numbers).all() for numbers in values):
        raise UserError(
            f"{where}: some embeddings hold NaN or infinity, which no search can rank; embed those pins again"
        )


def describe_releases(store: Storage) -> str:
    """The ids of all releases, for error messages."""
    ids = [release.id for release in list_releases(store)]
    return f"there are: {', '.join(ids)}" if ids else "there are no releases; run embed"


def read_release(store: Storage, release_id: str) -> Release | None:
    """A release by its id; None if it is none of ours, absent or incomplete."""
    if not is_hash(release_id):  # it becomes the name of folders, here and on the machines that serve it
        logger.warning("ignoring a release with the invalid id %r", release_id)
        return None
    path = f"releases/{release_id}/release.json"
    if not store.exists(path):
        return None
    raw = store.read_json(path)
    try:
        sources = {name: Output.from_json(source) for name, source in raw.pop("sources").items()}
        release = Release(sources=sources, **raw)
        stray = [name for name, sha in release.files.items() if not (is_below(name, release.folder) and is_hash(sha))]
    except (KeyError, TypeError, AttributeError) as error:
        logger.warning("ignoring %s, written by another version of this code: %s", path, printable(str(error)))
        return None
    except ValueError as error:
        raise CorruptFileError(f"{store.shown}/{path}: {error}; delete its folder and run embed again") from None
    if release.id != release_id:
        raise CorruptFileError(f"{store.shown}/{path} is of another release; delete its folder and run embed again")
    if stray or not (is_hash(release.student_id) and is_hash(release.content_hash)):
        raise CorruptFileError(
            f"{store.shown}/{path} names files or hashes that are none of a release; delete its folder and run embed again"
        )
    return release
