"""Fine-tune the teacher on human labels with Ray Train."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.base.columns import matrix_of
from ray_app.base.config import Config, TeacherConfig
from ray_app.base.content_key import content_key
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.cluster.encoders import zero_shot_tower
from ray_app.cluster.retrain import RetrainPolicy
from ray_app.cluster.train import resolved, train_on_ray
from ray_app.cluster.train_job import CalibrationPairs, TrainJob
from ray_app.features.catalogue import Catalogue
from ray_app.features.cosine import COSINE_FILE, COSINE_NAMES, load_cosine_features
from ray_app.features.lexical import FEATURES_VERSION
from ray_app.features.product_types import find_product_types
from ray_app.models.backbone import with_pooling
from ray_app.models.calibration import HUMAN_GRADES
from ray_app.models.checkpoint import calibration_info, finished_model
from ray_app.models.head import FeatureScaler
from ray_app.models.model_card import model_card
from ray_app.models.model_sources import load_model_config, model_identity
from ray_app.models.truncation import teacher_truncation
from ray_app.stages.train_teacher.pretrain import pseudo_labels
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Manifest, Output, read_output, require_output
from ray_app.tables.model_files import add_model, model_files
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage
from ray_app.training.examples import Examples
from ray_app.training.labelled_pairs import LabelledPairs
from ray_app.training.splits import queries_of, split_queries
from ray_app.training.targets import balance_shift, grade_weights, query_weights, smooth_targets

logger = logging.getLogger(__name__)

VERSION = 3
_PRETRAIN_PINS = 100_000  # whose titles are read for the warm-up: a few pairs of each kind are made of them


def build_teacher(cfg: TeacherConfig, scaler: FeatureScaler, store: Storage, pretrained_folder: str | None) -> object:
    """The teacher before training on human labels; imported late, since this runs in the training workers."""
    from ray_app.models.cross_encoder import CrossEncoder

    if pretrained_folder is None:
        return CrossEncoder.from_base(cfg, scaler)
    return CrossEncoder.from_pretrained(local_folder(store, finished_model(store, pretrained_folder)), scaler)


@dataclass(frozen=True, kw_only=True)
class _TeacherTraining:
    """The teacher of a run: whether it has to be trained, and on what."""

    cfg: Config
    store: Storage
    tables: CatalogueTables
    catalogue: Catalogue  # the labelled pins
    pairs: LabelledPairs
    inputs: Sequence[Output]

    @classmethod
    def of(cls, cfg: Config, store: Storage) -> "_TeacherTraining":
        cfg = cfg.model_copy(update={"train_teacher": resolved(cfg.train_teacher)})
        labels = require_output(store, "ingest", "human_labels")
        tables, label_table = CatalogueTables.of(cfg, store), read_output(store, labels)
        catalogue = tables.pins(label_table["pin_id"].unique().to_pylist())
        pairs = LabelledPairs.of(catalogue, label_table)
        if len(pairs.queries) < 3:
            raise UserError(
                f"ingest.human_labels has {len(pairs.queries)} queries; a teacher needs at least 3 (train, valid, test)"
            )
        # Only the labelled pins' texts count: a new pin elsewhere in the catalogue is no reason to train again.
        labelled_pins = Output(name="labelled_pins", path="", files=[], rows=0, content_hash=_content(catalogue, pairs))
        return cls(
            cfg=cfg, store=store, tables=tables, catalogue=catalogue, pairs=pairs, inputs=[labels, labelled_pins]
        )  # fmt: skip

    @property
    def stage(self) -> Stage:
        cfg, train_teacher = self.cfg, self.cfg.train_teacher
        return Stage(
            name="train_teacher",
            version=VERSION,
            inputs=self.inputs,
            recipe=[
                train_teacher.recipe, cfg.features, cfg.pin_text, cfg.seed, FEATURES_VERSION,
                model_identity(train_teacher.base_model, train_teacher.revision),
                # Its embeddings are features, and warm-up pairs: other bytes of that model are another teacher.
                *(zero_shot_tower(cfg, self.store, role).recipe for role in ("query", "pin")),
            ],
            compute=self.train,
            retrain_policy=RetrainPolicy.of(cfg, self.tables.pin_texts, "labelled_pins"),
        )  # fmt: skip

    @cached_property
    def splits(self) -> pa.Table:
        return split_queries(
            self.pairs.queries,
            self.cfg.train_teacher.test_fraction,
            self.cfg.train_teacher.validation_fraction,
            self.cfg.seed,
        )

    @cached_property
    def truncation(self) -> dict[str, Any]:
        pairs = self.pairs
        queries = [pairs.queries[i] for i in pairs.query_index]
        return teacher_truncation(self.cfg, self.catalogue.pin_texts, pairs.pin_index, queries)

    def jobs(self, run: StageRun) -> list[TrainJob]:
        folder = _folder(run)
        if model_files(self.store, folder) is not None:
            return []
        train_teacher = self.cfg.train_teacher
        with_pooling(
            train_teacher, load_model_config(train_teacher.base_model, train_teacher.revision)
        )  # refuse before workers start
        return teacher_jobs(self.cfg, self.tables, self.catalogue, self.pairs, self.splits, folder, self.truncation)

    def train(self, run: StageRun) -> StageResult:
        cfg, store, pairs, splits, folder = self.cfg, self.store, self.pairs, self.splits, _folder(run)
        run.write_table("splits", splits)
        if jobs := self.jobs(run):
            train_on_ray(f"train_teacher-{run.fingerprint}", jobs, cfg.seed, store, cfg.train_teacher)
        teacher = add_model(run, "teacher", folder)
        split_of = dict(zip(splits["query"].to_pylist(), splits["split"].to_pylist(), strict=True))
        splits_of_pairs = [split_of[pairs.queries[i]] for i in pairs.query_index]
        return StageResult(
            counts={"rows_in": len(splits_of_pairs), "rows_out": len(splits_of_pairs)}
            | {f"{name}_pairs": splits_of_pairs.count(name) for name in ("train", "valid", "test")},
            info={
                "history": store.read_json(f"{folder}/history.json"),
                "calibration": calibration_info(store, teacher),
                "truncation": self.truncation,
            },
        )


def _folder(run: StageRun) -> str:
    return f"models/teacher/{run.fingerprint}"


def pending_jobs(cfg: Config, store: Storage) -> list[TrainJob]:
    """The training that `run` would start, for a caller that trains many models on one group of workers."""
    training = _TeacherTraining.of(cfg, store)
    run = StageRun.of(training.stage, training.cfg, store)
    return [] if run.finished is not None else training.jobs(run)


def run(cfg: Config, store: Storage) -> Manifest:
    """Write the `teacher` model and the table `splits`."""
    training = _TeacherTraining.of(cfg, store)
    return run_stage(training.stage, training.cfg, store)


def teacher_jobs(
    cfg: Config, tables: CatalogueTables, catalogue: Catalogue, pairs: LabelledPairs, splits: pa.Table, folder: str,
    truncation: dict[str, Any] | None = None,
) -> list[TrainJob]:  # fmt: skip
    """The training of a teacher into `folder`: its warm-up, if there is one, and then the human labels.

    Args:
        tables: All pins.
        catalogue: The labelled pins, which `pairs` names.
    """
    store = tables.store
    vectors = zero_shot_tower(cfg, store, "query").encode(pairs.queries)
    cosine = load_cosine_features(store, tables.corpus_statistics)
    if cfg.train_teacher.use_features:
        features = catalogue.teacher_features(cosine, pairs.queries, vectors, pairs.query_index, pairs.pin_index)
    else:
        features = np.zeros((len(pairs.query_index), 0), np.float32)
    given = matrix_of(pairs.table["target"])
    examples = Examples(
        queries=pairs.table["query"].to_pylist(),
        pin_texts=[catalogue.pairs.rendered[row] for row in pairs.pin_index],
        locales=pairs.table["locale"].to_pylist(),
        features=features,
        targets=smooth_targets(given, cfg.train_teacher.label_smoothing),
        weights=query_weights(pairs.query_index, cfg.train_teacher.query_weight_exponent)
        * grade_weights(given, cfg.train_teacher.class_weight_exponent),
    )
    as_given = replace(examples, targets=given, weights=np.ones(len(given), np.float32))
    rows = {}
    for name in ("train", "valid"):
        chosen = queries_of(splits, name)
        rows[name] = np.flatnonzero([query in chosen for query in examples.queries])
    if not len(rows["valid"]):
        logger.warning(
            "train_teacher: no query is left for validation (train_teacher.validation_fraction is %g of %d queries): the last epoch is kept, and "
            "probabilities are not calibrated", cfg.train_teacher.validation_fraction, len(pairs.queries),
        )  # fmt: skip
    part = {name: examples.rows(index) for name, index in rows.items()}
    pretrain = (
        None if cfg.train_teacher.pretrain is None else _pretrain_job(cfg, store, tables, features.shape[1], folder)
    )
    scaler = FeatureScaler.fit(part["train"].features)
    job = TrainJob(
        build=partial(build_teacher, cfg.train_teacher, scaler, store, pretrain.model_folder if pretrain else None),
        train=part["train"],
        valid=part["valid"],
        cfg=cfg.train_teacher.train,
        model_folder=folder,
        extra_files={COSINE_FILE: cosine.to_json()},
        calibrate_on=CalibrationPairs(examples=as_given.rows(rows["valid"]), fitted_to=HUMAN_GRADES),
        logit_shift=balance_shift(given, cfg.train_teacher.class_weight_exponent) if cfg.train_teacher.class_weight_exponent else None,
        card=partial(
            model_card, kind="teacher", cfg=cfg, num_train=len(part["train"]), num_valid=len(part["valid"]),
            languages=sorted(set(part["train"].locales or [])),
            features=[*catalogue.pairs.names, *COSINE_NAMES] if cfg.train_teacher.use_features else [],
            truncation=truncation,
        ),
    )  # fmt: skip
    return [pretrain, job] if pretrain else [job]


def _pretrain_job(
    cfg: Config, store: Storage, tables: CatalogueTables, num_features: int, folder: str
) -> TrainJob | None:
    """Training on pairs that the catalogue grades; None if it grades none."""
    pretrain, catalogue = cfg.train_teacher.pretrain, tables.first_pins(_PRETRAIN_PINS)
    assert pretrain is not None
    typed = find_product_types(catalogue.pin_texts["title"].to_pylist(), pretrain.min_pins)
    if not typed:
        logger.warning(
            "train_teacher.pretrain: no title names a kind of thing in plain words; going on without a warm-up"
        )
        return None
    phrase_vectors = zero_shot_tower(cfg, store, "query").encode(sorted({pin.phrase for pin in typed}))
    examples = pseudo_labels(
        catalogue.pin_texts,
        typed,
        phrase_vectors,
        catalogue.text_vectors,
        num_features,
        cfg.pin_text,
        pretrain,
        cfg.seed,
    )
    logger.info("train_teacher: warm-up on %d pairs of %d kinds", len(examples), len(phrase_vectors))
    nothing = FeatureScaler(np.zeros(num_features), np.ones(num_features))
    return TrainJob(
        build=partial(build_teacher, cfg.train_teacher, nothing, store, None),
        train=examples,
        valid=examples.rows(np.arange(0)),
        cfg=pretrain.train,
        model_folder=f"{folder}-pretrain",
    )


def _content(catalogue: Catalogue, pairs: LabelledPairs) -> str:
    keys = catalogue.pin_keys(pairs.pin_index.tolist())
    return content_key("labelled pins", [keys[row] for row in pairs.pin_index.tolist()])
