"""The arms of the lessons: which models are compared, and how each differs from the run's own."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ray_app.config import Config, TextField

TEXT_FEATURES, LABEL_SCALING = "text_features", "label_scaling"
HUMAN_ONLY = "human labels only"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One model beside the run's own.

    Args:
        lesson: TEXT_FEATURES or LABEL_SCALING.
        name: For tables.
        model: What kind it is.
        cfg: The run's config with what is different.
        multiple: Of a student: soft-labelled pairs over human-labelled ones; 0: human labels only.
    """

    lesson: str
    name: str
    model: Literal["teacher", "student"]
    cfg: Config
    multiple: int = 0

    @property
    def slug(self) -> str:
        """Name of its output and folder."""
        letters = "".join(c if c.isalnum() else "-" for c in f"{self.lesson}-{self.name}".lower())
        return "-".join(part for part in letters.split("-") if part)


def arms_of(cfg: Config) -> list[Arm]:
    """All arms of a config, in the order of the tables."""
    before: list[list[TextField]] = [[], *cfg.lessons.text_features]
    arms = [
        Arm(lesson=TEXT_FEATURES, name=fields_name(fields, last), model="teacher", cfg=reading(cfg, fields))
        for last, fields in zip(before, cfg.lessons.text_features, strict=False)
    ]
    if cfg.lessons.label_multiples:
        arms.append(Arm(lesson=LABEL_SCALING, name=HUMAN_ONLY, model="student", cfg=cfg))
    for multiple in sorted(cfg.lessons.label_multiples):
        arms.append(Arm(lesson=LABEL_SCALING, name=f"{multiple}x", model="student", cfg=cfg, multiple=multiple))
    return arms


def reading(cfg: Config, fields: list[TextField]) -> Config:
    """The config of a system that reads only those fields of a pin, in the order of the run's own."""
    kept = [name for name in cfg.pin_text.fields if name in fields]
    return cfg.model_copy(update={"pin_text": cfg.pin_text.model_copy(update={"fields": kept})})


def fields_name(fields: list[TextField], before: list[TextField]) -> str:
    """Such as `caption`; or what comes on top of the row before, such as `+ link text`."""
    if not before or not set(before) < set(fields):
        return ", ".join(name.replace("_", " ") for name in fields)
    return "+ " + ", ".join(name.replace("_", " ") for name in fields if name not in before)


def longer(cfg: Config, num_pairs: int, full_pairs: int) -> Config:
    """The config of a student with fewer pairs: more epochs, at most 8 times as many, so that it may finish learning.

    Its best epoch is chosen on validation pairs, so more epochs do not hurt it.
    """
    train = cfg.distill.train
    times = int(np.clip(full_pairs // max(num_pairs, 1), 1, 8))
    more = train.model_copy(update={"epochs": train.epochs * times, "patience": train.patience * times})
    return cfg.model_copy(update={"distill": cfg.distill.model_copy(update={"train": more})})
