"""Configs and manifests of runs that are never made: no model is loaded, and no source read but those that a test gives."""

from pathlib import Path

import pyarrow as pa

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.tables.manifest import Manifest
from ray_app.tables.stage_run import StageRun

UNREAD = {"adapter": "table", "path": "unread.csv"}


def config_tree(output: str | Path, **sections) -> dict:
    """What a config must have; `sections` take the place of those here."""
    models = {
        "features": {"zero_shot_model": "m"},
        "train_teacher": {"base_model": "m"},
        "distill": {"base_model": "m"},
    }
    return {"output": str(output), "ingest": {"pins": UNREAD}} | models | sections


def tiny_config(output: str | Path, **sections) -> Config:
    return Config.model_validate(config_tree(output, **sections))


def tiny_manifest(stage: str, **fields) -> Manifest:
    """With nothing in it but `fields`."""
    empty = {
        "fingerprint": "f", "schema_version": 1, "outputs": {}, "counts": {}, "info": {}, "config": {}, "settings": "s",
        "inputs": {}, "pin_texts": None, "wall_sec": 1.0, "device_sec": 0.0, "rows_per_sec": 1.0, "created_at": 0.0,
        "versions": {}, "git_commit": None,
    }  # fmt: skip
    return Manifest(stage=stage, **empty | fields)


def finished_stage(cfg: Config, store: Storage, stage: str, **tables: pa.Table) -> Manifest:
    """What a stage leaves: these tables and a manifest."""
    run = StageRun(stage, cfg, store, 1, settings=[], inputs=[])
    for name, table in tables.items():
        run.write_table(name, table)
    return run.finish({"rows_out": 0})
