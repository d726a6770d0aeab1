"""Train the student on the teacher's soft labels with Ray Train, and the feature-only student beside it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.base.config import Config, DistillConfig, TrainConfig
from ray_app.base.storage import Storage
from ray_app.cluster.encoders import zero_shot_queries
from ray_app.cluster.retrain import RetrainPolicy
from ray_app.cluster.train import resolved, train_on_ray
from ray_app.cluster.train_job import CalibrationPairs, TrainJob
from ray_app.features.catalogue import load_catalogue
from ray_app.features.lexical import FEATURES_VERSION
from ray_app.features.student import (
    QUERY_LOCALE_NAMES,
    STUDENT_FEATURES_VERSION,
    StudentFeatures,
    drifting_inputs,
    feature_inputs,
)
from ray_app.models.calibration import HUMAN_GRADES, MIN_PAIRS, TEACHER
from ray_app.models.checkpoint import calibration_info, load_calibration
from ray_app.models.encoder_usage import with_usage
from ray_app.models.head import FeatureScaler
from ray_app.models.model_card import Kind, model_card
from ray_app.models.model_sources import model_identity
from ray_app.models.truncation import student_truncation
from ray_app.stages.distill.examples import human_examples, soft_examples, split_by_query
from ray_app.tables.manifest import Manifest, read_output, require_output
from ray_app.tables.model_files import add_model
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage
from ray_app.training.examples import Examples

logger = logging.getLogger(__name__)

VERSION = 3
_UNKNOWN_LOCALE_SHARE = 0.05  # guessed


def build_student(cfg: DistillConfig, scaler: FeatureScaler, towers: bool) -> object:
    """The untrained student, with towers or features only; imported late, since this runs in the training workers."""
    from ray_app.models.bi_encoder import BiEncoder

    return BiEncoder.from_base(cfg, scaler) if towers else BiEncoder.feature_only_student(cfg, scaler)


@dataclass(frozen=True, kw_only=True)
class _Distilling:
    """The students of a run: whether they have to be trained, and on what."""

    cfg: Config
    store: Storage

    @classmethod
    def of(cls, cfg: Config, store: Storage) -> "_Distilling":
        distill = with_usage(resolved(cfg.distill))  # the base model's pooling and prompts are settings too
        return cls(cfg=cfg.model_copy(update={"distill": distill}), store=store)

    @property
    def stage(self) -> Stage:
        cfg, store, distill = self.cfg, self.store, self.cfg.distill
        pin_texts = require_output(store, "enrich", "pin_texts")
        return Stage(
            name="distill",
            version=VERSION,
            inputs=[
                require_output(store, "label", "soft_labels"), require_output(store, "ingest", "human_labels"),
                require_output(store, "train_teacher", "splits"), require_output(store, "train_teacher", "teacher"), pin_texts,
                *feature_inputs(cfg, store),
            ],
            recipe=[
                distill.recipe, cfg.features, cfg.pin_text, cfg.seed, FEATURES_VERSION, STUDENT_FEATURES_VERSION,
                model_identity(distill.base_model, distill.revision),
            ],
            compute=self.train,
            retrain_policy=RetrainPolicy.of(cfg, pin_texts, "pin_texts", *drifting_inputs(cfg)),
        )  # fmt: skip

    def train(self, run: StageRun) -> StageResult:
        jobs, counts, info = self.jobs(run)
        train_on_ray(f"distill-{run.fingerprint}", list(jobs.values()), self.cfg.seed, self.store, self.cfg.distill)
        history, calibration = {}, {}
        for name, job in jobs.items():
            calibration[name] = calibration_info(self.store, add_model(run, name, job.model_folder))
            history[name] = self.store.read_json(f"{job.model_folder}/history.json")
        return StageResult(counts=counts, info={"history": history, "calibration": calibration, **info})

    def jobs(self, run: StageRun) -> tuple[dict[str, TrainJob], dict[str, int], dict[str, Any]]:
        """The training of both students, and counts and info for the manifest."""
        cfg, store = self.cfg, self.store
        features = StudentFeatures.load(load_catalogue(cfg, store)[0], store, zero_shot_queries(cfg, store))
        # Soft labels are raw: the teacher's temperatures are fitted anew without any label being computed again.
        calibration = load_calibration(store, require_output(store, "train_teacher", "teacher"))
        soft = read_output(store, require_output(store, "label", "soft_labels"))
        taught, skipped = soft_examples(features, soft, calibration)
        catalogue = features.catalogue
        rows = catalogue.pairs.pin_rows(soft["pin_id"].unique().to_pylist())
        truncation = student_truncation(cfg, catalogue.pin_texts, rows)
        labels = read_output(store, require_output(store, "ingest", "human_labels"))
        splits = read_output(store, require_output(store, "train_teacher", "splits"))
        human, multiple = human_examples(features, labels, splits), cfg.distill.soft_label_ratio
        num_soft_labels = len(taught)
        if multiple is not None:
            alone = human_examples(features, labels, splits, weight=1.0)
            order = np.random.default_rng(cfg.seed).permutation(len(taught))  # smaller sets are parts of larger ones
            taught = taught.rows(np.sort(order[: round(multiple * len(alone))]))
            human = human if multiple else alone
        jobs, num_train, num_valid = student_jobs(
            cfg, features.names, taught, human, f"models/{{name}}/{run.fingerprint}", splits,
            held_out=human_examples(features, labels, splits, weight=1.0, split="valid", smoothing=0.0),
            num_soft_labels=num_soft_labels, truncation=truncation,
        )  # fmt: skip
        used = num_train + num_valid
        counts = {
            "rows_in": used + skipped,
            "rows_out": used,
            "train_pairs": num_train,
            "valid_pairs": num_valid,
            "error_rows": skipped,
        }
        return jobs, counts, {"features": features.names, "truncation": truncation}


def pending_jobs(cfg: Config, store: Storage) -> list[TrainJob]:
    """The training that `run` would start, for a caller that trains many models on one group of workers."""
    distilling = _Distilling.of(cfg, store)
    run = StageRun.of(distilling.stage, distilling.cfg, store)
    return [] if run.finished is not None else list(distilling.jobs(run)[0].values())


def run(cfg: Config, store: Storage) -> Manifest:
    """Write the models `student` and, if it is wanted, `feature_only_student`."""
    distilling = _Distilling.of(cfg, store)
    return run_stage(distilling.stage, distilling.cfg, store)


def student_jobs(
    cfg: Config, features: Sequence[str], taught: Examples, human: Examples, folder: str, splits: pa.Table,
    held_out: Examples, names: Sequence[Kind] | None = None, num_soft_labels: int = 0,
    truncation: dict[str, Any] | None = None,
) -> tuple[dict[str, TrainJob], int, int]:  # fmt: skip
    """The training of a student, and of the feature-only student, the baseline without towers, on the same pairs.

    Args:
        cfg: The run's.
        features: Their names.
        taught: Soft-labelled pairs; a share of their queries chooses the best epoch. May be empty: then a share of the
            human-labelled queries does.
        human: Human-labelled pairs of training queries, trained on too.
        folder: Of the models, with `{name}` in it.
        splits: Which human-labelled queries train and choose: their soft labels are on the same side.
        held_out: Human-labelled pairs of validation queries, with the grades as they were given: if there are enough,
            probabilities are calibrated to them, else to the calibrated teacher's.
        names: Which of the two; None: as `distill.feature_only_student` says.
        num_soft_labels: That there are, if `soft_label_ratio` leaves some out.
        truncation: For the student's card, see `student_truncation`.

    Returns:
        name -> job, and the numbers of training and validation pairs.
    """
    distill = cfg.distill
    if len(taught):
        train, valid = split_by_query(taught, distill.validation_fraction, cfg.seed, splits)
        train = Examples.concatenate([train, human])
    else:
        train, valid = split_by_query(human, 0.1, cfg.seed)
    calibrate_on = CalibrationPairs(examples=held_out, fitted_to=HUMAN_GRADES)
    if len(held_out) < MIN_PAIRS and len(taught):
        calibrate_on = CalibrationPairs(examples=valid, fitted_to=TEACHER)
    if not len(valid):
        logger.warning("distill: no query is left for validation (distill.validation_fraction): the last epoch is kept")
    train = _some_without_locale(train, features, cfg.seed)
    names = names or (("student", "feature_only_student") if distill.feature_only_student else ("student",))
    scaler = FeatureScaler.fit(train.features)
    loops = {"student": distill.train, "feature_only_student": distill.feature_train}
    if distill.soft_label_ratio is not None:
        loops["student"] = _longer(distill.train, num_soft_labels // max(len(train), 1))
    jobs: dict[str, TrainJob] = {
        name: TrainJob(
            build=partial(build_student, distill, scaler, name == "student"),
            train=train,
            valid=valid,
            cfg=loops[name],
            model_folder=folder.format(name=name),
            calibrate_on=calibrate_on,
            card=partial(
                model_card,
                kind=name,
                cfg=cfg,
                num_train=len(train),
                num_valid=len(valid),
                languages=sorted(set(train.locales or [])),
                features=features,
                truncation=truncation if name == "student" else None,
            ),
        )
        for name in names
    }
    return jobs, len(train), len(valid)


def _some_without_locale(examples: Examples, names: Sequence[str], seed: int) -> Examples:
    """The same, but the locale of a few queries is unknown to the features.

    Logs name the locale of each query; requests may not. A student that never saw an unknown one would take every pin for
    one in a foreign language.
    """
    columns = np.flatnonzero([name in QUERY_LOCALE_NAMES for name in names])
    rows = np.flatnonzero(np.random.default_rng([seed, 3]).random(len(examples)) < _UNKNOWN_LOCALE_SHARE)
    features = examples.features.copy()
    features[np.ix_(rows, columns)] = 0.0
    return replace(examples, features=features)


def _longer(train: TrainConfig, times: int) -> TrainConfig:
    """More epochs, at most 8 times as many, so that a student with few pairs may finish learning.

    Its best epoch is chosen on validation pairs, so more epochs do not hurt it.
    """
    times = min(max(times, 1), 8)
    return train.model_copy(
        update={"epochs": train.epochs * times, "early_stopping_patience": train.early_stopping_patience * times}
    )
