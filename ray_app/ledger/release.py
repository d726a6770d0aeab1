"""Releases: complete snapshots of pin embeddings, and the CURRENT pointer that is moved last.

    releases/<id>/part-00000.parquet   pin_id, content_key, embedding
    releases/<id>/release.json         written when the parts are whole: without it the folder is no release
    releases/CURRENT                   JSON with the id of the release that is served, and of the one served before

A reader goes CURRENT -> release.json -> parts, so it sees the old release or the new one, never half of one. A release
names all that serving it needs (models, texts, features), so it can be served, or rolled back to, after later training.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.config import section_hash
from ray_app.errors import UserError, printable
from ray_app.ledger.ledger import Ledger
from ray_app.ledger.vectors import GatheredVectors
from ray_app.manifest import Output, is_hash
from ray_app.schemas import SCHEMA_VERSION, cast_to, release_schema
from ray_app.storage import CorruptFileError, Storage, decode_table, is_below

logger = logging.getLogger(__name__)

CURRENT = "releases/CURRENT"
PART_BYTES = 16_000_000  # guessed: of vectors; a writer or reader of parts holds one at a time, in some five copies
_ROWS = 65_536  # of ids and keys as Python objects at a time


class Current(NamedTuple):
    """What CURRENT says."""

    id: str
    previous: str | None  # served before; None: nothing was


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


def publish_release(
    store: Storage, pins: pa.Table, ledger: Ledger, dim: int, student_id: str, info: dict[str, Any] | None = None, *,
    sources: Mapping[str, Output], config: dict[str, Any],
) -> Release:  # fmt: skip
    """Join pins with their embeddings, write the release, and move CURRENT to it last.

    The id follows from the student, the content and the sources' content, so publishing the same again writes nothing
    new, and one id never means two things. A release whose own files or sources are damaged or gone is written again.

    Args:
        store: Where `releases/` lies.
        pins: pin_id (unique) and content_key.
        ledger: Has a result for each content key; failed ones are left out and counted.
        dim: Numbers per embedding.
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


def promote(store: Storage, release_id: str) -> Release:
    """Serve a release from now on, after checking that it is whole and that all it needs is there.

    It stays until somebody promotes another one or `embed` publishes a new one; an `embed` that has nothing to do
    leaves it alone.

    Args:
        store: Where `releases/` lies.
        release_id: Its id, or the beginning of it if no other id begins so.

    Raises:
        UserError: there is no such release, it is damaged, or a file that it needs is gone. CURRENT is untouched then.
    """
    release = find_release(store, release_id)
    for _ in read_parts(store, release):
        pass
    if gone := missing_files(store, release):
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise UserError(
            f"release {release.id} cannot be served, files of its sources are gone: {gone[0]}{more}; "
            "promote another one, or run the stages and embed again"
        )
    move_current(store, release.id)
    return release


def rollback(store: Storage) -> Release:
    """Serve the release again that was served before the current one. Twice is where it started.

    Raises:
        UserError: nothing was served before, it is gone, or it cannot be served. CURRENT is untouched then.
    """
    now = read_current(store)
    if now is None or now.previous is None:
        raise UserError(
            f"no release was served before the current one, so there is none to go back to; {describe_releases(store)}"
        )
    if read_release(store, now.previous) is None:
        raise UserError(
            f"release {now.previous}, which was served before, was collected as garbage or is of another version of "
            f"this code; promote another one; {describe_releases(store)}"
        )
    return promote(store, now.previous)


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


def read_current(store: Storage) -> Current | None:
    """Ids that CURRENT holds, without looking at the releases; None if nothing was ever published.

    Raises:
        CorruptFileError: CURRENT is not what this module writes.
    """
    if not store.exists(CURRENT):
        return None
    raw = store.read_json(CURRENT)
    if not isinstance(raw, dict) or not isinstance(raw.get("id"), str):
        raise CorruptFileError(f"{store.shown}/{CURRENT} names no release; delete it and promote one")
    return Current(raw["id"], raw.get("previous"))


def current_release(store: Storage) -> Release | None:
    """The release that CURRENT names; None if nothing was ever published.

    Raises:
        UserError: CURRENT names a release that is not there.
    """
    now = read_current(store)
    if now is None:
        return None
    release = read_release(store, now.id)
    if release is None:
        raise UserError(
            f"{store.shown}/{CURRENT} names release {now.id}, which is not there or of another version of this code; "
            "run embed again"
        )
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
    return pa.concat_tables(read_parts(store, release, student_id))


def read_parts(store: Storage, release: Release, student_id: str | None = None) -> Iterator[pa.Table]:
    """The table of `open_release` part by part, each checked before it is given, so that one at a time is in memory.

    Use nothing of it before the end: that parts are too few or too many is known only then.

    Raises:
        UserError: as `open_release`.
    """
    require_student(release, student_id)
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


def require_student(release: Release, student_id: str | None) -> None:
    """Refuse a release of another student: its vectors and this one's queries give plausible nonsense.

    Raises:
        UserError: it was made by another student than `student_id`; None is not checked.
    """
    if student_id is not None and student_id != release.student_id:
        raise UserError(
            f"release {release.id} was made by student {release.student_id}, not {student_id}; "
            "run embed with this student first"
        )


def missing_files(store: Storage, release: Release) -> list[str]:
    """Files of a release and of its sources that are not there; whether they are whole is not looked at."""
    files = [*release.files, *(path for source in release.sources.values() for path in source.files)]
    return [path for path in files if not store.exists(path)]


def is_complete(store: Storage, release_id: str) -> bool:
    """Whether that release and all files that it needs are there."""
    try:
        release = read_release(store, release_id)
    except CorruptFileError:
        return False
    return release is not None and not missing_files(store, release)


def list_releases(store: Storage) -> list[Release]:
    """All complete releases, oldest first. Half-written ones have no release.json and are not listed, nor are torn ones."""
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


def _require_finite(table: pa.Table, where: str) -> None:
    column = table["embedding"]
    values = (chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks)
    if column.null_count or not all(np.isfinite(numbers).all() for numbers in values):
        raise UserError(
            f"{where}: some embeddings hold NaN or infinity, which no search can rank; embed those pins again"
        )


def _pairs_hash(pins: pa.Table, good: np.ndarray) -> str:
    """Of the (pin_id, content_key) pairs with a vector, in the order of pin ids."""
    digest = hashlib.sha256()
    for start in range(0, pins.num_rows, _ROWS):
        some = pins.slice(start, _ROWS).filter(pa.array(good[start : start + _ROWS]))
        for pair in zip(some["pin_id"].to_pylist(), some["content_key"].to_pylist(), strict=True):
            digest.update(json.dumps(pair).encode())
    return digest.hexdigest()[:16]


def move_current(store: Storage, release_id: str) -> None:
    """Let CURRENT name another release; the last step of a release, of `promote` and of `rollback`."""
    now = read_current(store)
    if now is None or now.id != release_id:
        store.write_json(CURRENT, Current(release_id, now.id if now else None)._asdict())


def describe_releases(store: Storage) -> str:
    """The ids of all releases, for error messages."""
    ids = [release.id for release in list_releases(store)]
    return f"there are: {', '.join(ids)}" if ids else "there are no releases; run embed"


def read_release(store: Storage, release_id: str) -> Release | None:
    """A release by its id; None if it is none of ours, absent or incomplete."""
    if not is_hash(release_id):  # it becomes the name of folders, here and on the machines that serve it
        logger.warning("ignoring a release with the id %r: it is none of ours", release_id)
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
