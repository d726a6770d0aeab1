"""Train the student on the teacher's soft labels with Ray Train, and the feature-only student beside it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ray_app.base.config import Config, DistillConfig, TrainConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.cluster.encoders import zero_shot_queries
from ray_app.cluster.example_files import Placed, WrittenExamples, num_files, with_calibration, write_examples
from ray_app.cluster.retrain import RetrainPolicy
from ray_app.cluster.train import resolved, train_on_ray
from ray_app.cluster.train_job import CalibrationPairs, TrainJob
from ray_app.features.lexical import FEATURES_VERSION
from ray_app.features.student import STUDENT_FEATURES_VERSION, drifting_inputs, feature_inputs
from ray_app.models.calibration import HUMAN_GRADES, MIN_PAIRS, TEACHER
from ray_app.models.checkpoint import calibration_info, load_calibration
from ray_app.models.encoder_usage import with_usage
from ray_app.models.head import FeatureScaler
from ray_app.models.model_card import Kind, model_card
from ray_app.models.model_sources import model_identity
from ray_app.models.truncation import student_truncation
from ray_app.stages.distill.examples import SoftExamples, ValidQueries, human_examples, some_without_locale
from ray_app.tables.manifest import Manifest, read_manifest, read_output, require_output
from ray_app.tables.model_files import add_model
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage
from ray_app.training.examples import Examples

logger = logging.getLogger(__name__)

VERSION = 4


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
        self.store.delete(_examples_folder(run))
        history, calibration = {}, {}
        for name, job in jobs.items():
            calibration[name] = calibration_info(self.store, add_model(run, name, job.model_folder))
            history[name] = self.store.read_json(f"{job.model_folder}/history.json")
        return StageResult(counts=counts, info={"history": history, "calibration": calibration, **info})

    def jobs(self, run: StageRun) -> tuple[dict[str, TrainJob], dict[str, int], dict[str, Any]]:
        """The training of both students, and counts and info for the manifest. Writes the examples."""
        cfg, store, tables = self.cfg, self.store, CatalogueTables.of(self.cfg, self.store)
        labels = read_output(store, require_output(store, "ingest", "human_labels"))
        splits = read_output(store, require_output(store, "train_teacher", "splits"))
        labelled = tables.pins(labels["pin_id"].unique().to_pylist())
        features = tables.student_features(labelled, zero_shot_queries(cfg, store))
        human, num_good, num_failed = human_examples(features, labels, splits), *self._count_soft_labels()
        is_valid, share = ValidQueries(cfg.distill.validation_fraction, cfg.seed, splits), 1.0
        soft_labels = require_output(store, "label", "soft_labels")
        buckets = list(range(soft_labels.num_buckets))
        if (multiple := cfg.distill.soft_label_ratio) is not None:
            alone = human_examples(features, labels, splits, weight=1.0)
            share = min(1.0, multiple * len(alone.order) / num_good)
            if not multiple:
                human, buckets = _choosing(alone, ValidQueries(0.1, cfg.seed)), []
        soft = SoftExamples(
            tables=tables, soft_labels=soft_labels, is_valid=is_valid, share=share,
            queries=require_output(store, "sample", "queries"),
            # Soft labels are raw: the teacher's temperatures are fitted anew without any label being computed again.
            calibration=load_calibration(store, require_output(store, "train_teacher", "teacher")),
        )  # fmt: skip
        loops = cfg.distill.train, cfg.distill.feature_train
        written = write_examples(
            store,
            _examples_folder(run),
            [*buckets, some_without_locale(human, features.names)],
            partial(_placed, soft),
            num_files(round(share * num_good) + len(human.order), loops),
            loops,
            len(features.names),
            in_tasks=len(buckets) > 1,
        )
        if not written.num_valid:
            logger.warning(
                "distill: no query is left for validation (distill.validation_fraction): the last epoch is kept"
            )
        held_out = human_examples(features, labels, splits, weight=1.0, split="valid", smoothing=0.0).examples
        truncation = student_truncation(cfg, *soft.some_pins()) if buckets else None
        jobs = student_jobs(
            cfg, store, features.names, written, f"models/{{name}}/{run.fingerprint}", _examples_folder(run),
            held_out if len(held_out) >= MIN_PAIRS or not buckets else None, num_good, truncation,
        )  # fmt: skip
        used = written.num_train + written.num_valid
        counts = {
            "rows_in": used + num_failed,
            "rows_out": used,
            "train_pairs": written.num_train,
            "valid_pairs": written.num_valid,
            "error_rows": num_failed,
        }
        return jobs, counts, {"features": features.names, "truncation": truncation}

    def _count_soft_labels(self) -> tuple[int, int]:
        """Soft labels, and those that are errors.

        Raises:
            UserError: all are.
        """
        made = read_manifest(self.store, "label")
        assert made is not None, "its output is an input"
        num_failed = made.counts["errors"]
        num_good = made.counts["rows_out"] - num_failed
        if not num_good:
            raise UserError(
                "label: no pair has a soft label, so there is nothing to distill; see the column `error` of soft_labels"
            )
        return num_good, num_failed


def _examples_folder(run: StageRun) -> str:
    return f"tmp/examples/distill-{run.fingerprint}"


def _placed(soft: SoftExamples, item: int | Placed) -> Placed:
    return item if isinstance(item, Placed) else soft.placed(item)


def _choosing(human: Placed, is_valid: ValidQueries) -> Placed:
    """The same with a part that chooses the epoch."""
    return replace(human, is_valid=is_valid.mask(human.examples.queries))


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
    cfg: Config, store: Storage, features: Sequence[str], written: WrittenExamples, folder: str, examples_folder: str,
    held_out: Examples | None, num_soft_labels: int = 0, truncation: dict[str, Any] | None = None,
) -> dict[str, TrainJob]:  # fmt: skip
    """The training of a student, and of the feature-only student, the baseline without towers, on the same pairs.

    Args:
        cfg: The run's.
        store: Where the examples are.
        features: Their names.
        written: The examples.
        folder: Of the models, with `{name}` in it.
        examples_folder: Of the examples.
        held_out: Human-labelled pairs of validation queries, with the grades as they were given, which probabilities are
            calibrated to; None: to the calibrated teacher's, of the validation pairs.
        num_soft_labels: That there are, if `soft_label_ratio` leaves some out.
        truncation: For the student's card, see `student_truncation`.

    Returns:
        name -> job.
    """
    distill = cfg.distill
    names: tuple[Kind, ...] = ("student", "feature_only_student") if distill.feature_only_student else ("student",)
    files = with_calibration(store, examples_folder, written.files, held_out)
    loops = {"student": distill.train, "feature_only_student": distill.feature_train}
    if distill.soft_label_ratio is not None:
        loops["student"] = _longer(distill.train, num_soft_labels // max(written.num_train, 1))
    return {
        name: TrainJob(
            build=partial(build_student, distill, written.scaler, name == "student"),
            files=files,
            cfg=loops[name],
            model_folder=folder.format(name=name),
            calibrate_on=CalibrationPairs(examples=None, fitted_to=TEACHER if held_out is None else HUMAN_GRADES),
            card=partial(
                model_card,
                kind=name,
                cfg=cfg,
                num_train=written.num_train,
                num_valid=written.num_valid,
                languages=written.locales,
                features=features,
                truncation=truncation if name == "student" else None,
            ),
        )
        for name in names
    }


def _longer(train: TrainConfig, times: int) -> TrainConfig:
    """More epochs, at most 8 times as many, so that a student with few pairs may finish learning.

    Its best epoch is chosen on validation pairs, so more epochs do not hurt it.
    """
    times = min(max(times, 1), 8)
    return train.model_copy(
        update={"epochs": train.epochs * times, "early_stopping_patience": train.early_stopping_patience * times}
    )
