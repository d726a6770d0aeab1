"""A finished run of the tiny catalogue, made fault-free, and copies of it in which one stage is still to do."""

import csv
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pipeline_world import COLOURS, STAGES, THINGS, write_csv, write_source
from tiny_models import save_tiny_encoder

from ray_app.base.config import EmbedConfig
from ray_app.base.storage import Storage
from ray_app.models.text_encoder import stage_dtype
from ray_app.tables.current import read_current
from ray_app.tables.manifest import manifest_path, read_manifest

# Stages whose rows are committed one block after the other -> the ledger that they fill.
LEDGERS = {"zero_shot": "text_embeddings", "label": "soft_labels", "embed": "pin_embeddings"}
ROWS_PER_BLOCK = 4
# Settings of the release that was served before: another dtype than `auto` stands for on this machine.
OLD_RELEASE = [f"embed.dtype={'float32' if stage_dtype(EmbedConfig()) == 'bfloat16' else 'bfloat16'}"]


@dataclass
class World:
    """Config of the tiny run, its fault-free output, and what that holds."""

    folder: Path  # where all of it lies
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)  # stage -> its manifest in the fault-free run
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> of its work; on a busy machine these change
    num_blocks: dict[str, int] = field(default_factory=dict)  # stage -> that its ledger gets
    old_release: str = ""

    @classmethod
    def of(cls, folder: Path) -> "World":
        """What is made of it."""
        world = cls(folder=folder)
        store = Storage(str(world.reference))
        for stage in STAGES:
            if read_manifest(store, stage) is None:
                break
            manifest = world.manifests[stage] = store.read_json(manifest_path(stage))
            world.seconds[stage] = manifest["wall_sec"]
            if stage in LEDGERS:
                world.num_blocks[stage] = -(-manifest["counts"]["computed"] // ROWS_PER_BLOCK)
        if current := read_current(store):
            assert current.previous is not None
            world.old_release = current.previous
        return world

    @property
    def config(self) -> Path:
        """The YAML file."""
        return self.folder / "config.yaml"

    @property
    def reference(self) -> Path:
        """Output of the fault-free run. Nobody changes it: take a copy."""
        return self.folder / "run"

    def copy_before(self, stage: str, target: Path) -> Path:
        """A copy of the fault-free run without what `stage` made: the old release is served, and no ledger knows a row."""
        shutil.copytree(self.reference, target)
        manifest = self.manifests[stage]
        (target / "manifests" / f"{stage}.json").unlink()
        for output in manifest["outputs"].values():
            shutil.rmtree(target / output["path"])
        if stage in LEDGERS:
            for root in ("ledger", "claims"):
                shutil.rmtree(target / root / LEDGERS[stage], ignore_errors=True)
        if stage == "embed":
            shutil.rmtree(target / "releases" / manifest["info"]["release"])
            (target / "releases" / "CURRENT").write_text(json.dumps({"id": self.old_release, "previous": None}))
        return target


def make_world(folder: Path, run_stage: Callable[[str, list[str]], None], stages: tuple[str, ...] = STAGES) -> World:
    """Write the catalogue and its config, and run the stages without a fault; goes on with what is there.

    Args:
        folder: Where to.
        run_stage: Runs one stage of `folder`/config.yaml with these overrides to its end.
        stages: The first ones, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_source(folder, str(save_tiny_encoder(folder / "encoder")))
    _make_longer(folder)
    store = Storage(str(folder / "run"))
    for stage in stages:
        if read_manifest(store, stage) is None:
            if stage == "embed":
                run_stage(stage, OLD_RELEASE)
            run_stage(stage, [])
    return World.of(folder)


def _make_longer(folder: Path) -> None:
    """More pins, smaller blocks and more checkpoints, so that there is a middle of each stage to inject at."""
    with (folder / "pins.csv").open(newline="") as file:
        pins = list(csv.DictReader(file))
    more = [
        {"pin_id": f"{c}-{t}-{d}", "title": f"the {c} {t} for {d}", "description": f"a {d} {t}", "locale": "en-US"}
        for c, t, d in itertools.product(COLOURS, THINGS, COLOURS[:4])
    ]
    write_csv(folder / "pins.csv", [*pins, *more])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["tables"] = {"num_buckets": 4, "bucket_bytes": 4_000}  # so that rows are shuffled between tasks
    config["sample"]["num_pairs"] = 300
    config["label"] |= {"rows_per_block": ROWS_PER_BLOCK, "batch_size": 4}
    config["embed"] |= {"rows_per_block": ROWS_PER_BLOCK}
    often = {"epochs": 3, "early_stopping_patience": 3, "checkpoint_interval_sec": 0.3}
    for section, name in (("train_teacher", "train"), ("distill", "train"), ("distill", "feature_train")):
        config[section][name] |= often
    config["engagement"]["epochs"] = config["graph"]["epochs"] = 10
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
