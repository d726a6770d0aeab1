"""Stages as declarations, and one run of a stage: fingerprint, outputs, manifest.

def run(cfg, store):
    pins = require_output(store, "ingest", "pins")

    def compute(run: StageRun) -> StageResult:
        run.write_table("pin_texts", ...)
        return StageResult(counts={"rows_in": ..., "rows_out": ...})

    return run_stage(Stage(name="enrich", version=1, inputs=[pins], recipe=[cfg.enrich], compute=compute), cfg, store)
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa
from pydantic import BaseModel

from ray_app.base.config import Config, section_hash
from ray_app.base.schemas import SCHEMA_VERSION
from ray_app.base.storage import Storage, StoredFile
from ray_app.tables.manifest import (
    VARIANTS,
    Manifest,
    Output,
    hash_files,
    manifest_path,
    read_manifest_file,
)
from ray_app.tables.provenance import git_commit, package_versions

logger = logging.getLogger(__name__)

Setting = BaseModel | dict[str, Any] | str | int | float | None


class RetrainRule(Protocol):
    """Decides whether an earlier result may stand although the catalogue has changed (`ray_app.cluster.retrain`)."""

    @property
    def pin_texts(self) -> Output:
        """That changes are measured from."""

    def tolerates(self, store: Storage, manifest: Manifest, inputs: dict[str, str]) -> bool:
        """Return True if few pins have changed since an earlier run, and nothing else."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """Counts and notes of a stage; its outputs were written through the `StageRun`.

    Args:
        counts: rows_in, rows_out and what else the stage counts.
        info: Recipes, scores, notes.
        device_sec: Seconds of model work, summed over the workers.
    """

    counts: dict[str, int]
    info: dict[str, Any] = field(default_factory=dict)
    device_sec: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage as its `stage.py` declares it.

    Args:
        name: Name of the stage, and of its manifest unless `manifest_name` is given.
        version: Of its code: raised when equal inputs give another output than before.
        inputs: Outputs of other stages; their content is part of the fingerprint.
        recipe: Everything else that decides the result: config sections, recipes of models, versions.
        compute: Makes the outputs and writes them through the run; pure but for that.
        retrain_policy: Which changes of the catalogue an earlier result may survive.
        adapt: Makes outputs for the present catalogue from an earlier run that `retrain_policy` tolerates; None: the earlier outputs are kept.
        still_valid: Finished run -> False if it has to be repeated although its fingerprint fits, such as one with unreadable URLs.
    """

    name: str
    version: int
    inputs: Sequence[Output]
    recipe: Sequence[Setting]
    compute: "Callable[[StageRun], StageResult]"
    manifest_name: str | None = None
    retrain_policy: RetrainRule | None = None
    adapt: "Callable[[StageRun, Manifest], Manifest] | None" = None
    still_valid: Callable[[Manifest], bool] = lambda _: True


def run_stage(stage: Stage, cfg: Config, store: Storage) -> Manifest:
    """Run a stage unless an earlier run is still valid; returns the manifest."""
    run = StageRun.of(stage, cfg, store)
    finished = run.finished
    if finished is not None and stage.still_valid(finished):
        if finished.fingerprint == run.fingerprint or stage.adapt is None:
            return finished
        return stage.adapt(run, finished)
    result = stage.compute(run)
    return run.finish(result.counts, result.info, result.device_sec)


@dataclass
class StageRun:
    """One run of a stage: decides whether there is anything to do, collects outputs, and writes the manifest last."""

    stage: str
    cfg: Config
    store: Storage
    version: int  # of the stage's code: raised when equal inputs give another output than before
    settings: list[Setting]
    inputs: list[Output]
    name: str | None = None  # of the manifest, if not the stage's
    retrain_policy: RetrainRule | None = None
    _outputs: dict[str, Output] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, stage: Stage, cfg: Config, store: Storage) -> "StageRun":
        """The run that a stage's declaration asks for now."""
        return cls(
            stage.name, cfg, store, stage.version, list(stage.recipe), list(stage.inputs),
            name=stage.manifest_name, retrain_policy=stage.retrain_policy,
        )  # fmt: skip

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
        """The manifest of an earlier run with the same fingerprint, or one that `retrain_policy` tolerates, if its files exist.

        A variant reuses the manifest of the run or of another variant with the same fingerprint only. `retrain_policy` applies to its
        own manifest if the config is equal. The run reuses none of its variants.
        """
        name = self.name or self.stage
        own = manifest_path(name, self.store.variant)
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
        """Manifest paths of the run and of its other variants."""
        if not self.store.variant:
            return []
        variants = self.store.list_files(f"manifests/{VARIANTS}", f"/{name}.json")
        return [manifest_path(name), *(path for path in variants if path != own)]

    def _is_wanted(self, manifest: Manifest, may_drift: bool) -> bool:
        if manifest.settings != self.settings_hash:
            return False
        if manifest.fingerprint != self.fingerprint:
            if self.store.variant:
                may_drift = may_drift and manifest.config == self.cfg.model_dump(mode="json")
            retrain_policy = self.retrain_policy if may_drift else None
            if retrain_policy is None or not retrain_policy.tolerates(self.store, manifest, self.input_hashes):
                return False
        gone = [f for out in manifest.outputs.values() for f in out.files if not self.store.exists(f)]
        if gone:
            logger.warning("%s: %d output files are missing (%s ...); recomputing", self.stage, len(gone), gone[0])
        return not gone

    def table_folder(self, name: str) -> str:
        """Folder of a table output's files."""
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

    def add_table(self, output: Output) -> Output:
        """Register a table in buckets that tasks wrote (`ray_app.tables.buckets.bucketed_output`)."""
        self._outputs[output.name] = output
        return output

    def finish(
        self,
        counts: dict[str, int],
        info: dict[str, Any] | None = None,
        device_sec: float = 0.0,
        pin_texts: Output | None = None,
    ) -> Manifest:
        """Write the manifest. Call it last: from then on the outputs are official.

        Args:
            counts: See `StageResult`, as the next two.
            info: Notes.
            device_sec: Of model work.
            pin_texts: From which the next changes are measured; None: those that the stage has seen now.
        """
        if pin_texts is None and self.retrain_policy is not None:
            pin_texts = self.retrain_policy.pin_texts
        wall = time.monotonic() - self._started
        manifest = Manifest(
            stage=self.stage, fingerprint=self.fingerprint, schema_version=SCHEMA_VERSION, outputs=self._outputs,
            counts=counts, info=info or {}, config=self.cfg.model_dump(mode="json"), settings=self.settings_hash,
            inputs=self.input_hashes, pin_texts=pin_texts,
            wall_sec=round(wall, 3), device_sec=round(device_sec, 3),
            rows_per_sec=round(counts.get("rows_out", 0) / max(wall, 1e-9), 2), created_at=time.time(),
            versions=package_versions(), git_commit=git_commit(),
        )  # fmt: skip
        self.store.write_json(manifest_path(self.name or self.stage, self.store.variant), asdict(manifest))
        logger.info("%s: done in %.1f s, %s", self.stage, wall, counts)
        return manifest
