"""One model to train, as stages describe it and training workers get it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_app.base.config import TrainConfig
from ray_app.training.examples import Examples

JOB_FILE = "job.json"  # in a checkpoint: which job it is of, and the bytes of its files


@dataclass(frozen=True, kw_only=True)
class CalibrationPairs:
    """Pairs that temperatures are fitted on.

    Args:
        examples: Not trained on, with locales; targets without label smoothing, and weights that balance no grade. None: they
            are in the job's files.
        fitted_to: What the targets are, for the model card: see `ray_app.models.calibration`.
    """

    examples: Examples | None
    fitted_to: str


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One model to train.

    Args:
        build: Makes the untrained model in the worker; must be picklable and cheap to send.
        train: Examples that are trained on; None: they are in `files`.
        valid: Examples that choose the best epoch; may be empty. None: they are in `files`.
        cfg: The loop's settings.
        model_folder: Of the finished model under the storage root; a job whose folder is finished is skipped.
        extra_files: name -> text, saved beside the model.
        card: Makes the model card from the keywords `history` and `calibration`; None: no card.
        calibrate_on: What temperatures are fitted on; None: the model is not calibrated.
        files: Examples that have been written; None: those given here are to be.
    """

    build: Callable[[], Any]
    cfg: TrainConfig
    model_folder: str
    train: Examples | None = None
    valid: Examples | None = None
    extra_files: dict[str, str] = field(default_factory=dict)
    card: Callable[..., str] | None = None
    calibrate_on: "CalibrationPairs | None" = None
    files: "ExampleFiles | None" = None
    logit_shift: np.ndarray | None = None
    """(5,) float, added to the trained model's logits, which must then have `shift_logits`; None: nothing."""

    def seed_of(self, run: int) -> int:
        """The job's own seed, or that of the run."""
        return run if self.cfg.seed is None else self.cfg.seed


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleFiles:
    """Location of a job's examples."""

    train: list[str]
    train_rows: list[int]
    train_weight: float
    valid: list[str]
    calibrate_on: list[str]  # none: the model is not calibrated
