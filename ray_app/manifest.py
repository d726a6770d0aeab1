"""What a stage did: the manifest, written last, whose presence means that the stage's output is complete.

A stage is up to date when its manifest carries the fingerprint that it would get now. The fingerprint covers the
stage's settings, its version, and the *content* of its inputs, so an input that was rebuilt with equal content
recomputes nothing downstream.

    run = StageRun("enrich", cfg, store, version=1, settings=[cfg.enrich], inputs=[pins, log])
    if (finished := run.finished) is not None:
        return finished
    run.write_table("pin_texts", table)
    return run.finish(counts={"rows_in": ..., "rows_out": ...})

A variant of a run, such as an arm of an experiment, is a view: its manifests lie apart, in `manifests/<view>/`, and a
stage that it has none of is the run's. Whatever the run or another view has made with the same fingerprint is taken over,
so that variants share all that they have in common. By `Drift` a view takes over nothing but what it has made itself under
the very same config: a variant whose settings change few pins would else be compared with itself.
"""

import logging
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from ray_app.config import Config, section_hash
from ray_app.errors import UserError, printable
from ray_app.schemas import SCHEMA_VERSION
from ray_app.storage import CorruptFileError, Storage, StoredFile, is_below, is_plain

logger = logging.getLogger(__name__)

_PACKAGES = ("ray", "torch", "transformers", "pyarrow", "numpy", "rank-bm25", "ir-measures")


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A table or a model that a stage wrote."""

    name: str
    path: str  # folder under the storage root
    files: list[str]  # paths under the storage root; a reader opens these and nothing else
    rows: int  # 0 for models
    content_hash: str

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Output":
        """What a manifest or a release says of an output: who can write there must not decide which files are opened.

        Raises:
            TypeError: other fields than these.
            ValueError: its files lie outside of its folder, or its hash is none.
        """
        out = cls(**raw)
        for path in out.files:
            if not is_plain(out.path) or not is_below(path, out.path):
                raise ValueError(f"output {out.name!r} names {path!r}, which is not in its folder")
        if not is_plain(out.path) or not is_hash(out.content_hash):
            raise ValueError(f"output {out.name!r} has the folder {out.path!r} and the hash {out.content_hash!r}")
        return out


_HASH = re.compile(r"[0-9a-f]{8,64}")


def is_hash(text: Any) -> bool:
    """Whether it is a hash of ours; some become names of folders."""
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
    pin_texts: list[str]  # files of the pin texts that a `Drift` is measured from; empty for other stages
    wall_sec: float
    device_sec: float  # seconds of model work, summed over the workers
    rows_per_sec: float
    created_at: float  # Unix seconds
    versions: dict[str, str]
    git_commit: str | None

    def output(self, name: str) -> Output:
        """The output of that name."""
        return self.outputs[name]


VIEWS = "views"  # folder of the manifests of all views


def manifest_path(stage: str, view: str = "") -> str:
    """Where a stage's manifest lies."""
    return f"manifests/{VIEWS}/{view}/{stage}.json" if view else f"manifests/{stage}.json"


def read_manifest(store: Storage, stage: str) -> Manifest | None:
    """The manifest of a finished stage, or None if it never finished, or finished with other code's tables.

    In a view: its own, or else the run's.
    """
    found = read_manifest_file(store, manifest_path(stage, store.view), stage)
    return read_manifest_file(store, manifest_path(stage), stage) if found is None and store.view else found


def read_manifest_file(store: Storage, path: str, stage: str) -> Manifest | None:
    """The manifest in that file; None without one that this code can use."""
    if not store.exists(path):
        return None
    raw = store.read_json(path)
    made_with = raw.get("schema_version") if isinstance(raw, dict) else None
    if made_with != SCHEMA_VERSION:
        logger.warning("%s was made with schema version %s; it will be made again", stage, made_with)
        return None
    try:
        outputs = {name: Output.from_json(out) for name, out in raw.pop("outputs").items()}
        return Manifest(outputs=outputs, **raw)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        told = printable(str(error))
        logger.warning("%s has a manifest of another version of this code (%s); it will be made again", stage, told)
        return None


def require_output(store: Storage, stage: str, name: str) -> Output:
    """The named output of a finished stage.

    Raises:
        UserError: the stage has not run yet; the message is the command to run.
    """
    manifest = read_manifest(store, stage)
    if manifest is None or name not in manifest.outputs:
        raise UserError(f"{name} is not there yet: run `python pipelines/{stage}.py --config ...` first")
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
    if hash_files(output.path, sha256_by_path) != output.content_hash:
        where = f"{store.shown}/{output.path}"
        raise CorruptFileError(f"{where} was changed after it was written; delete that folder and run its stage again")


def rows_in_files(rows: pa.Table, rows_per_file: int) -> list[pa.Table]:
    """Slices of at most `rows_per_file` rows; one empty slice of an empty table."""
    return [rows.slice(start, rows_per_file) for start in range(0, max(rows.num_rows, 1), rows_per_file)]


def write_part(store: Storage, folder: str, number: int | None, rows: pa.Table, rows_per_file: int) -> list[StoredFile]:
    """Files of one part of a table output whose parts are written apart, or of its only one (None); for `add_output`."""
    prefix = "part-" if number is None else f"part-{number:05d}-"
    slices = enumerate(rows_in_files(rows, rows_per_file))
    return [store.write_table(f"{folder}/{prefix}{i:05d}.parquet", some) for i, some in slices]


def hash_files(folder: str, sha256_by_path: dict[str, str]) -> str:
    """Identity of an output's content, whatever folder it lies in."""
    return section_hash({path.removeprefix(folder): sha for path, sha in sha256_by_path.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Lets what was learned from the catalogue stand while few pins have changed since (`retrain` in the config).

    Measured from the pins that the stage saw, so small changes add up. A pin that is gone is never tolerated: what was
    made may still name it.
    """

    pin_texts: Output
    inputs: tuple[str, ...]  # names of the stage's inputs that follow from the pins' texts
    max_share: float  # of pins that are new or say something else

    def tolerates(self, store: Storage, manifest: Manifest, inputs: dict[str, str]) -> bool:
        """Whether an earlier run differs from the present inputs only in few pins."""
        steady = {name: content for name, content in inputs.items() if name not in self.inputs}
        before = {name: content for name, content in manifest.inputs.items() if name not in self.inputs}
        if steady != before or not all(map(store.exists, manifest.pin_texts)) or not manifest.pin_texts:
            return False
        old = {row["pin_id"]: row for path in manifest.pin_texts for row in store.read_table(path).to_pylist()}
        new = {row["pin_id"]: row for row in read_output(store, self.pin_texts).to_pylist()}
        changed = sum(old.get(pin_id) != row for pin_id, row in new.items())
        kept = not old.keys() - new.keys() and changed <= self.max_share * len(new)
        logger.info(
            "%s: %d of %d pins changed since: %s", manifest.stage, changed, len(new), "kept" if kept else "again"
        )
        return kept


@dataclass
class StageRun:
    """One run of a stage: decides whether there is anything to do, collects outputs, and writes the manifest last."""

    stage: str
    cfg: Config
    store: Storage
    version: int  # of the stage's code: raised when equal inputs give another output than before
    settings: list[BaseModel | dict[str, Any] | str | int | float | None]
    inputs: list[Output]
    name: str | None = None  # of the manifest, if not the stage's
    drift: Drift | None = None
    _outputs: dict[str, Output] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    @property
    def input_hashes(self) -> dict[str, str]:
        """Content hash by input name."""
        return {out.name: out.content_hash for out in self.inputs}

    @property
    def settings_hash(self) -> str:
        """Identity of the settings and versions."""
        return section_hash(self.stage, self.version, SCHEMA_VERSION, *self.settings)

    @property
    def fingerprint(self) -> str:
        """Identity of this run: settings, versions and content of the inputs."""
        return section_hash(self.settings_hash, self.input_hashes)

    @property
    def finished(self) -> Manifest | None:
        """The manifest of an earlier run with the same fingerprint, or one that `drift` tolerates, if its files exist.

        A view takes one over from the run or another view, with the same fingerprint only. Its own may drift where the run's
        may, with the catalogue and not by the variant's settings. The run takes none from views.
        """
        name = self.name or self.stage
        own = manifest_path(name, self.store.view)
        for path in [own, *self._others(own, name)]:
            manifest = read_manifest_file(self.store, path, name)
            if manifest is None or not self._is_wanted(manifest, may_drift=path == own):
                continue
            logger.info("%s: up to date", self.stage)
            if path != own:
                self.store.write_json(own, asdict(manifest))
            return manifest
        return None

    def _others(self, own: str, name: str) -> list[str]:
        """Where else a view may find what it wants: in the run, and in other views."""
        if not self.store.view:
            return []
        views = self.store.list_files(f"manifests/{VIEWS}", f"/{name}.json")
        return [manifest_path(name), *(path for path in views if path != own)]

    def _is_wanted(self, manifest: Manifest, may_drift: bool) -> bool:
        if manifest.settings != self.settings_hash:
            return False
        if manifest.fingerprint != self.fingerprint:
            if self.store.view:
                may_drift = may_drift and manifest.config == self.cfg.model_dump(mode="json")
            drift = self.drift if may_drift else None
            if drift is None or not drift.tolerates(self.store, manifest, self.input_hashes):
                return False
        gone = [f for out in manifest.outputs.values() for f in out.files if not self.store.exists(f)]
        if gone:
            logger.warning("%s: %d output files are gone (%s ...); making them again", self.stage, len(gone), gone[0])
        return not gone

    def table_folder(self, name: str) -> str:
        """Where the files of a table output belong."""
        return f"tables/{name}/{self.fingerprint}"

    def write_table(self, name: str, tables: pa.Table | list[pa.Table]) -> Output:
        """Write a table output, one Parquet file per part."""
        parts = tables if isinstance(tables, list) else [tables]
        assert parts, f"{name}: an empty output is one empty table, so that its schema is known"
        folder = self.table_folder(name)
        files = [self.store.write_table(f"{folder}/part-{i:05d}.parquet", part) for i, part in enumerate(parts)]
        return self.add_output(name, folder, files, rows=sum(part.num_rows for part in parts))

    def add_output(self, name: str, folder: str, files: list[StoredFile], rows: int = 0) -> Output:
        """Register files that were written elsewhere, such as a model folder."""
        content = hash_files(folder, {f.path: f.sha256 for f in files})
        out = Output(name=name, path=folder, files=[f.path for f in files], rows=rows, content_hash=content)
        self._outputs[name] = out
        return out

    def finish(self, counts: dict[str, int], info: dict[str, Any] | None = None, device_sec: float = 0.0) -> Manifest:
        """Write the manifest. Call it last: from then on the outputs are official."""
        wall = time.monotonic() - self._started
        manifest = Manifest(
            stage=self.stage,
            fingerprint=self.fingerprint,
            schema_version=SCHEMA_VERSION,
            outputs=self._outputs,
            counts=counts,
            info=info or {},
            config=self.cfg.model_dump(mode="json"),
            settings=self.settings_hash,
            inputs=self.input_hashes,
            pin_texts=self.drift.pin_texts.files if self.drift else [],
            wall_sec=round(wall, 3),
            device_sec=round(device_sec, 3),
            rows_per_sec=round(counts.get("rows_out", 0) / max(wall, 1e-9), 2),
            created_at=time.time(),
            versions=package_versions(),
            git_commit=git_commit(),
        )
        self.store.write_json(manifest_path(self.name or self.stage, self.store.view), asdict(manifest))
        logger.info("%s: done in %.1f s, %s", self.stage, wall, counts)
        return manifest


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def git_commit() -> str | None:
    """Commit of the checkout that this code runs from; None outside a checkout."""
    try:
        out = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip() or None
