"""Scores of every system on judged pairs: the baselines, the teacher, and the student as it would be served."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from ray_app.analysis.metrics.grading import fit_grade_thresholds
from ray_app.analysis.metrics.protocol import SystemScores
from ray_app.base.columns import matrix_or_zero
from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.base.text import render_pin_texts, tokenize
from ray_app.cluster.corpus_counts import count_corpus
from ray_app.cluster.encoders import student_tower, zero_shot_tower
from ray_app.features.bm25 import Bm25Index
from ray_app.features.catalogue import Catalogue
from ray_app.features.corpus import Tokenizer
from ray_app.features.student import StudentFeatures
from ray_app.models.checkpoint import load_calibration
from ray_app.models.head import expected_grade
from ray_app.models.student import Student
from ray_app.stages.label.labeller import Labeller
from ray_app.tables.manifest import Output, require_output
from ray_app.training.labelled_pairs import LabelledPairs

_BM25 = "bm25"  # the text's name among those that are counted


@dataclass(frozen=True, kw_only=True)
class Models:
    """The trained models that are measured."""

    teacher: Output
    student: Output
    feature_only_student: Output

    @classmethod
    def of(cls, store: Storage) -> "Models":
        """Those of a finished run.

        Raises:
            UserError: a stage has not run.
        """
        return cls(
            teacher=require_output(store, "train_teacher", "teacher"),
            student=require_output(store, "distill", "student"),
            feature_only_student=require_output(store, "distill", "feature_only_student"),
        )


def score_systems(
    cfg: Config, store: Storage, features: StudentFeatures, models: Models, judged: LabelledPairs,
    calibration: LabelledPairs,
) -> dict[str, SystemScores]:  # fmt: skip
    """Every system's scores, row by row as `judged.table`. Models' probabilities are calibrated.

    The texts of the features' catalogue must hold none of the judged queries. `calibration`: human-labelled pairs of
    training queries.
    """
    catalogue = features.catalogue
    systems = score_baselines(cfg, store, features, judged, calibration)

    locales = judged.table["locale"].to_pylist()
    computed = features.compute(judged.queries, judged.query_index, judged.pin_index, locales)
    nothing = np.zeros((len(computed), 0), np.float32)
    feature_only_student = Student(store, models.feature_only_student)
    systems["feature_only_student"] = graded(feature_only_student.score(nothing, nothing, computed, locales))

    labeller = Labeller(cfg=cfg, store=store, teacher=models.teacher)
    probs, _ = teacher_probs(labeller, catalogue, judged.queries, judged.query_index, judged.pin_index, locales)
    systems["teacher"] = graded(probs)

    rows, place = np.unique(judged.pin_index, return_inverse=True)
    texts, ids = ([column[row] for row in rows] for column in (catalogue.pairs.rendered, catalogue.pairs.pin_ids))
    pin_vectors = student_tower(cfg, store, models.student, "pin").encode(texts, ids)
    query_vectors = student_tower(cfg, store, models.student, "query").encode(judged.queries)
    student = Student(store, models.student)
    systems["student"] = graded(student.score(query_vectors[judged.query_index], pin_vectors[place], computed, locales))
    return systems


def score_baselines(
    cfg: Config, store: Storage, features: StudentFeatures, judged: LabelledPairs, calibration: LabelledPairs
) -> dict[str, SystemScores]:
    """Scores of BM25, the zero-shot cosine, and the vectors of `engagement` and `graph` where those are switched on.

    BM25 and the cosine read the same text, the zero-shot fields, unless `evaluate.bm25_fields` says otherwise. None of
    them knows grades, so for accuracy their scores are cut into grades by thresholds fitted on training queries.
    Arguments as of `score_systems`.
    """
    catalogue, zero_shot = features.catalogue, zero_shot_tower(cfg, store, "query")
    texts_of = partial(_bm25_texts, cfg)
    pin_texts = require_output(store, "enrich", "pin_texts")
    (corpus,) = count_corpus(store, pin_texts, texts_of, cfg.features.max_terms).terms.values()
    bm25 = Bm25Index.build(texts_of(catalogue.pin_texts)[_BM25][0], corpus=corpus)

    def score(pairs: LabelledPairs) -> dict[str, np.ndarray]:
        vectors = zero_shot.encode(pairs.queries)
        sides = {side.name: (side.tower.encode(vectors), side.pin_vectors) for side in features.aux_embeddings}
        return {"bm25": bm25.score_pairs(pairs.queries, pairs.query_index, pairs.pin_index)} | {
            f"{name}_cosine": np.einsum("nd,nd->n", q[pairs.query_index], p[pairs.pin_index]).astype(np.float64)
            for name, (q, p) in {"embedding": (vectors, catalogue.text_vectors), **sides}.items()
        }

    known, grades = score(calibration), calibration.table["grade"].to_numpy().astype(np.int64)
    return {
        name: SystemScores(score=found, thresholds=fit_grade_thresholds(known[name], grades) if len(grades) else None)
        for name, found in score(judged).items()
    }


def _bm25_texts(cfg: Config, pin_texts: pa.Table) -> dict[str, tuple[list[str], Tokenizer]]:
    fields = cfg.evaluate.bm25_fields or cfg.features.zero_shot_fields
    return {_BM25: (render_pin_texts(pin_texts, cfg.pin_text.model_copy(update={"fields": fields})), tokenize)}


def teacher_probs(
    labeller: Labeller, catalogue: Catalogue, queries: list[str], query_index: np.ndarray, pin_index: np.ndarray,
    locales: Sequence[str],
) -> tuple[np.ndarray, int]:  # fmt: skip
    """The teacher's calibrated probabilities of pairs, (n, 5), NaN where it failed; and how many were labelled now."""
    labels, counts = labeller.label(catalogue, queries, query_index, pin_index)
    probs, temperatures = matrix_or_zero(labels["probs"]), load_calibration(labeller.store, labeller.teacher)
    if temperatures is not None:
        probs = temperatures.apply(probs, locales)
    probs[np.array(labels["error"].is_valid())] = np.nan
    return probs, counts.computed


def graded(probs: np.ndarray) -> SystemScores:
    """Scores of a system that predicts grades: probs (n, 5), NaN in rows without."""
    probs = probs.astype(np.float64)
    return SystemScores(score=expected_grade(probs), probs=probs)
