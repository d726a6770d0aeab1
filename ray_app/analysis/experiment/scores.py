"""Inputs of an experiment's models on the judged pairs, and their scores."""

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_app.analysis.experiment.variants import TRAINED_BY, Training
from ray_app.analysis.metrics.judgments import JudgedLabels
from ray_app.analysis.metrics.protocol import SystemScores
from ray_app.analysis.metrics.systems import score_baselines
from ray_app.base.config import Config, section_hash
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.cluster.encoders import zero_shot_queries, zero_shot_tower
from ray_app.features.catalogue import Catalogue
from ray_app.features.cosine import load_cosine_features
from ray_app.features.student import StudentFeatures, feature_inputs
from ray_app.models.checkpoint import load_calibration
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output, require_output
from ray_app.training.labelled_pairs import LabelledPairs


@dataclass(frozen=True, kw_only=True)
class ScoringInput:
    """Input of a model on the judged pairs; texts, locales and features (num_pairs, ...) row by row.

    `dim`: length that the student's vectors are cut to; None: whole.
    """

    model: Output
    system: str
    queries: list[str]
    pin_texts: list[str]
    locales: list[str]
    features: np.ndarray
    dim: int | None


class Inputs:
    """Inputs of models on the judged pairs; arms that read the same texts and features share them."""

    def __init__(self, judged: JudgedLabels) -> None:
        self.judged = judged
        self._made: dict[str, tuple[StudentFeatures, LabelledPairs, np.ndarray]] = {}
        self._baselines: dict[str, SystemScores] | None = None

    def of(self, training: Training, variant: Storage) -> ScoringInput:
        """For one training."""
        features, pairs, computed = self._features(training.cfg, variant)
        if training.system == "teacher":
            computed = self._teacher_features(training.cfg, variant, features.catalogue, pairs)
        model = require_output(variant, TRAINED_BY[training.system], training.system)
        return ScoringInput(
            model=model, system=training.system, queries=pairs.table["query"].to_pylist(),
            pin_texts=[features.catalogue.pairs.rendered[row] for row in pairs.pin_index],
            locales=pairs.table["locale"].to_pylist(), features=computed, dim=training.cfg.embed.truncate_dim,
        )  # fmt: skip

    def baseline(self, training: Training, cfg: Config, store: Storage) -> SystemScores:
        """Scores of a system that is not trained."""
        if self._baselines is None:
            features, pairs, _ = self._features(cfg, store)
            self._baselines = score_baselines(cfg, store, features, pairs, self.judged.calibration(features.catalogue))
        if training.system not in self._baselines:
            raise UserError(f"arm {training.name!r}: the run has no {training.system}; switch its stage on")
        return self._baselines[training.system]

    def _features(self, cfg: Config, variant: Storage) -> tuple[StudentFeatures, LabelledPairs, np.ndarray]:
        texts = require_output(variant, "enrich", "pin_texts"), require_output(variant, "zero_shot", "zero_shot_pins")
        read = [out.content_hash for out in (*texts, *feature_inputs(cfg, variant))]
        key = section_hash(cfg.features, cfg.pin_text, cfg.engagement, cfg.graph, *read)
        if key not in self._made:
            tables = CatalogueTables.of(cfg, variant)
            catalogue = self.judged.catalogue(tables)
            features = tables.student_features(catalogue, zero_shot_queries(cfg, variant))
            pairs = self.judged.pairs(catalogue)
            locales = pairs.table["locale"].to_pylist()
            computed = features.compute(pairs.queries, pairs.query_index, pairs.pin_index, locales)
            self._made[key] = features, pairs, computed
        return self._made[key]

    @staticmethod
    def _teacher_features(cfg: Config, variant: Storage, catalogue: Catalogue, pairs: LabelledPairs) -> np.ndarray:
        if not cfg.train_teacher.use_features:
            return np.zeros((len(pairs.query_index), 0), np.float32)
        cosine = load_cosine_features(variant, require_output(variant, "train_teacher", "teacher"))
        vectors = zero_shot_tower(cfg, variant, "query").encode(pairs.queries)
        return catalogue.teacher_features(cosine, pairs.queries, vectors, pairs.query_index, pairs.pin_index)


def score_pairs(cfg: Config, store: Storage, asked: ScoringInput) -> tuple[np.ndarray, int, float]:
    """Calibrated probabilities (num_pairs, 5), the model's number of weights, and the seconds that the pairs took."""
    from ray_app.models.bi_preparer import TOWERS
    from ray_app.models.student import Student
    from ray_app.models.tower_encoder import TowerEncoder
    from ray_app.stages.label.teacher import Teacher

    threads = os.cpu_count() or 1
    if asked.system == "teacher":
        teacher = Teacher(store, asked.model, cfg.label.dtype, cfg.label.batch_size, threads)
        started = time.monotonic()
        probs = teacher.score(asked.queries, asked.pin_texts, asked.features).probs
        seconds = time.monotonic() - started
        calibration = load_calibration(store, asked.model)
        if calibration is not None:
            probs = calibration.apply(probs, asked.locales)
        return probs, _num_parameters(teacher.model), seconds
    student = Student(store, asked.model)
    folder = local_folder(store, asked.model)
    vectors: dict[str, np.ndarray] = {}
    nothing = np.zeros((len(asked.queries), 0), np.float32)
    started = time.monotonic()
    for tower, texts in zip(TOWERS, (asked.queries, asked.pin_texts), strict=True):
        if asked.system == "feature_only_student":
            vectors[tower] = nothing
            continue
        distinct, place = np.unique(np.array(texts, dtype=object), return_inverse=True)
        encoder = TowerEncoder(folder, tower, cfg.embed.dtype, threads, asked.dim)
        found = encoder.encode(distinct.tolist(), cfg.embed.batch_size)
        found[distinct == ""] = 0.0  # as in a release: a pin without text has no vector
        vectors[tower] = found[place]
    probs = student.score(vectors["query"], vectors["pin"], asked.features, asked.locales)
    return probs, _num_parameters(student.model), time.monotonic() - started


def _num_parameters(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())
