"""Manifests of stages. A manifest is written last; its presence means that the stage's output is complete.

A stage is up to date when its manifest carries the fingerprint that it would get now. The fingerprint covers the
stage's settings, its version, and the *content* of its inputs, so an input that was rebuilt with equal content
recomputes nothing downstream.

A variant of a run, such as a variant of an experiment, has its own manifests in `manifests/variants/<variant>/`; for a stage
without one it uses the run's. Outputs of the run or of another variant with the same fingerprint are reused, so variants share all
that they have in common. `RetrainPolicy` lets a variant reuse only its own outputs under the very same config: else a variant whose
settings change few pins would be compared with itself.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ray_app.base.config import section_hash
from ray_app.base.errors import UserError, printable
from ray_app.base.schemas import SCHEMA_VERSION
from ray_app.base.storage import CorruptFileError, Storage, is_below, is_plain

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """One bucket of a table (`ray_app.tables.buckets`)."""

    files: list[str]  # paths under the storage root, at least one
    rows: int
    num_bytes: int
    content_hash: str  # of its files


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A table or a model that a stage wrote."""

    name: str
    path: str  # folder under the storage root
    files: list[str]  # paths under the storage root; a reader opens these and nothing else
    rows: int  # 0 for models
    content_hash: str  # of a table in buckets, that of its buckets' hashes
    buckets: list[Bucket] = field(default_factory=list)  # a power of two; none: all files are one bucket, or a model

    @property
    def num_buckets(self) -> int:
        """Number of buckets; 1 for a table without."""
        return max(1, len(self.buckets))

    @property
    def bucket_hashes(self) -> list[str]:
        """Content hash of each bucket."""
        return [bucket.content_hash for bucket in self.buckets] or [self.content_hash]

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Output":
        """Parse an output of a manifest or release: whoever can write there must not decide which files are opened.

        Raises:
            TypeError: other fields than these.
            ValueError: its files lie outside of its folder, or its hash is none.
        """
        raw = dict(raw)
        out = cls(**{**raw, "buckets": [Bucket(**one) for one in raw.get("buckets", [])]})
        if out.buckets and [path for bucket in out.buckets for path in bucket.files] != out.files:
            raise ValueError(f"output {out.name!r} has other files than its buckets")
        for path in out.files:
            if not is_plain(out.path) or not is_below(path, out.path):
                raise ValueError(f"output {out.name!r} names {path!r}, which is not in its folder")
        if not is_plain(out.path) or not is_hash(out.content_hash):
            raise ValueError(f"output {out.name!r} has the folder {out.path!r} and the hash {out.content_hash!r}")
        return out


_HASH = re.compile(r"[0-9a-f]{8,64}")


def is_hash(text: Any) -> bool:
    """Return True for a hexadecimal hash of ours; some become folder names."""
    return isinstance(text, str) and _HASH.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One finished stage."""

    stage: str
    fingerprint: str
    schema_version: int
    outputs: dict[str, Output]
    counts: dict[str, int]  # rows_in, rows_out, rows_quarantined and what else the stage counts
    info: dict[str, Any]  # recipes, scores, notes
    config: dict[str, Any]  # resolved
    settings: str  # hash of the stage's settings and versions
    inputs: dict[str, str]  # name -> content hash
    pin_texts: Output | None  # that a `RetrainPolicy` measures changes from; None for other stages
    wall_sec: float
    device_sec: float  # seconds of model work, summed over the workers
    rows_per_sec: float
    created_at: float  # Unix seconds
    versions: dict[str, str]
    git_commit: str | None

    def output(self, name: str) -> Output:
        """The output of that name."""
        return self.outputs[name]


VARIANTS = "variants"  # folder of the manifests of all views


def manifest_path(stage: str, variant: str = "") -> str:
    """Path of a stage's manifest."""
    return f"manifests/{VARIANTS}/{variant}/{stage}.json" if variant else f"manifests/{stage}.json"


def read_manifest(store: Storage, stage: str) -> Manifest | None:
    """The manifest of a finished stage, or None if it never finished, or finished with other code's tables.

    In a view: its own, or else the run's.
    """
    found = read_manifest_file(store, manifest_path(stage, store.variant), stage)
    return read_manifest_file(store, manifest_path(stage), stage) if found is None and store.variant else found


def read_manifest_file(store: Storage, path: str, stage: str) -> Manifest | None:
    """The manifest in that file; None without one that this code can use."""
    if not store.exists(path):
        return None
    raw = store.read_json(path)
    made_with = raw.get("schema_version") if isinstance(raw, dict) else None
    if made_with != SCHEMA_VERSION:
        logger.warning("%s was written with schema version %s; it will be recomputed", stage, made_with)
        return None
    try:
        outputs = {name: Output.from_json(out) for name, out in raw.pop("outputs").items()}
        pin_texts = Output.from_json(seen) if (seen := raw.pop("pin_texts")) is not None else None
        return Manifest(outputs=outputs, pin_texts=pin_texts, **raw)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        told = printable(str(error))
        logger.warning("%s has a manifest of another version of this code (%s); it will be recomputed", stage, told)
        return None


def require_output(store: Storage, stage: str, name: str) -> Output:
    """The named output of a finished stage.

    Raises:
        UserError: the stage has not run yet; the message is the command to run.
    """
    manifest = read_manifest(store, stage)
    if manifest is None or name not in manifest.outputs:
        raise UserError(f"{name} has not been computed yet: run `python pipelines/{stage}.py --config ...` first")
    return manifest.outputs[name]


def read_output(store: Storage, output: Output, columns: list[str] | None = None) -> pa.Table:
    """Read a table that a stage wrote (all of it, in the order written).

    Raises:
        CorruptFileError: a file is not what the stage wrote.
        UserError: a file or a column is not there.
    """
    return pa.concat_tables(read_output_files(store, output, columns))


def read_output_files(store: Storage, output: Output, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The table of `read_output` file by file, so that one at a time is in memory.

    Use nothing of it before the end: whether all files are what the stage wrote is known only then.

    Raises:
        UserError: as `read_output`.
    """
    hashes = {}
    for path in output.files:
        table, hashes[path] = store.read_table_and_hash(path, columns)
        yield table
    check_output(store, output, hashes)


def check_output(store: Storage, output: Output, sha256_by_path: dict[str, str]) -> None:
    """Compare what was read with what the stage wrote.

    Raises:
        CorruptFileError: a file is another one.
    """
    if output.buckets:
        found = [hash_files(output.path, {f: sha256_by_path[f] for f in bucket.files}) for bucket in output.buckets]
        unchanged = found == output.bucket_hashes
    else:
        unchanged = hash_files(output.path, sha256_by_path) == output.content_hash
    if not unchanged:
        where = f"{store.shown}/{output.path}"
        raise CorruptFileError(f"{where} was changed after it was written; delete that folder and run its stage again")


def hash_files(folder: str, sha256_by_path: dict[str, str]) -> str:
    """Identity of an output's content, whatever folder it lies in."""
    return section_hash({path.removeprefix(folder): sha for path, sha in sha256_by_path.items()})
