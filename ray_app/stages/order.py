"""The stages of a run in the order in which they run: which of them a config switches on, and where their code is."""

from importlib import import_module
from typing import Any

from ray_app.base.config import Config

STAGES = (
    "demo", "ingest", "caption", "enrich", "zero_shot", "corpus_statistics", "engagement", "graph",
    "train_teacher", "sample", "label", "distill", "embed",
)  # fmt: skip


def enabled_stages(cfg: Config) -> list[str]:
    """Names of the stages that the config switches on, in order."""
    disabled = {name for name in ("demo", "engagement", "graph") if getattr(cfg, name) is None}
    if cfg.caption.model is None:
        disabled.add("caption")
    return [name for name in STAGES if name not in disabled]


def load_stage(name: str) -> Any:
    """Import the module of a stage, or of an analysis such as `evaluate`, with `run(cfg, store) -> Manifest`."""
    return import_module(f"ray_app.{'stages' if name in STAGES else 'analysis'}.{name}.stage")
