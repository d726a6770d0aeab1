"""docs/config.md says of each key which stages a change recomputes; who trusts it must not be surprised by a bill."""

import re
import runpy
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pipeline_world import STAGES

from ray_app.base.config import Config, with_overrides
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.stages.order import load_stage
from ray_app.tables.manifest import Manifest
from ray_app.tables.stage_run import Stage, StageRun

Finished = tuple[Config, dict[str, Manifest]]

ROOT = Path(__file__).parents[2]
SECTIONS = (
    "ingest", "enrich", "engagement", "graph", "pin_text", "features", "train_teacher", "sample", "label", "distill", "embed",
    "evaluate", "ray", "prices", "retrain", "serve",
)  # fmt: skip


class Declared(Exception):
    """Instead of a run."""


def declared_settings(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Stage -> hash of the settings that it declares."""
    store, found = Storage(cfg.output), {}

    def keep(stage: Stage, cfg: Config, store: Storage) -> Manifest:
        found[stage.name] = StageRun.of(stage, cfg, store).settings_hash
        raise Declared

    for name in STAGES:
        with monkeypatch.context() as patch, pytest.raises(Declared):
            patch.setattr(load_stage(name), "run_stage", keep)
            load_stage(name).run(cfg, store)
    return found


def another(kind: Any, value: Any) -> Any:
    """A value that differs; None: there is none that is surely valid."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return next((part for part in reversed(parts) if part not in (value, "auto")), None)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.125
    choices = [part for part in parts if part is not type(None)]
    if value is None and choices and not isinstance(kind, type):
        return {int: 3, float: 0.5, bool: True}.get(
            typing.get_args(choices[0])[0] if typing.get_args(choices[0]) else choices[0]
        )
    return None


def test_the_reference_says_what_a_change_recomputes(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = finished[0]
    # `auto` as on a machine without bfloat16: where the CPU has it, `bfloat16` is no change.
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    page = runpy.run_path(str(ROOT / ".ci" / "config_reference.py"))
    before, wrong, tried = declared_settings(cfg, monkeypatch), [], 0
    for section in SECTIONS:
        kind = page["models_in"](Config.model_fields[section].annotation)[0]
        for key, field, _, _ in page["keys_of"](kind, f"{section}.", getattr(cfg, section)):
            node: Any = cfg
            for part in key.split("."):
                node = getattr(node, part, None)
            value = another(field.annotation, node)
            if value is None or page["models_in"](field.annotation):
                continue
            try:
                changed = declared_settings(with_overrides(cfg, {key: value}), monkeypatch)
            except UserError:  # not valid beside the other settings
                continue
            tried += 1
            found = {name for name in STAGES if changed[name] != before[name]}
            told = set(re.findall(r"[a-z_]+", page["recomputes"](key))) & set(STAGES)
            if found != told:
                wrong.append(f"{key}: {sorted(found)}, the page says {sorted(told)}")
    assert not wrong, "\n".join(wrong)
    assert tried > 100
