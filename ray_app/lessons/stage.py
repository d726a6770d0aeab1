"""Train the arms of the lessons in one Ray Train run, and score judged pairs with them in one Ray task."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_app.config import Config
from ray_app.distill.features import StudentFeatures, drifting_inputs, feature_inputs
from ray_app.distill.stage import human_examples, soft_examples, student_jobs
from ray_app.lessons.arms import LABEL_SCALING, TEXT_FEATURES, Arm, arms_of, longer
from ray_app.manifest import Drift, Manifest, Output, StageRun, read_output, require_output
from ray_app.models.checkpoint import model_files
from ray_app.models.sources import model_identity
from ray_app.storage import Storage
from ray_app.teach.catalogue import Catalogue
from ray_app.teach.pairs import LabelledPairs
from ray_app.teach.stage import teacher_jobs
from ray_app.training.stage import TrainJob, train_on_ray

VERSION = 1


def run(cfg: Config, store: Storage) -> Manifest:
    """Write one model per arm; none if the config asks for no lessons."""
    names = {
        "ingest": ("human_labels",), "enrich": ("pin_texts",), "zero_shot": ("zero_shot_pins",),
        "teach": ("splits",), "label": ("soft_labels",),
    }  # fmt: skip
    inputs = {name: require_output(store, stage, name) for stage, names_ in names.items() for name in names_}
    beside = feature_inputs(cfg, store)
    run = StageRun(
        "lessons", cfg, store, VERSION,
        settings=[
            cfg.lessons, cfg.teach.recipe, cfg.distill.recipe, cfg.features, cfg.pin_text, cfg.seed,
            model_identity(cfg.teach.base_model, cfg.teach.revision),
            model_identity(cfg.distill.base_model, cfg.distill.revision),
        ],
        inputs=[*inputs.values(), *beside],
        drift=Drift(
            pin_texts=inputs["pin_texts"],
            inputs=("pin_texts", "zero_shot_pins", *drifting_inputs(cfg)),
            max_share=cfg.retrain.max_changed_share,
        ),
    )  # fmt: skip
    if (finished := run.finished) is not None:
        return finished
    arms = arms_of(cfg)
    folder = f"models/lessons/{run.fingerprint}"
    tables = {
        name: read_output(store, inputs[name]) for name in ("human_labels", "splits", "pin_texts", "zero_shot_pins")
    }
    jobs: list[TrainJob] = []
    for arm in arms:
        if arm.lesson == TEXT_FEATURES:
            catalogue = Catalogue.of(arm.cfg, tables["pin_texts"], tables["zero_shot_pins"])
            pairs = LabelledPairs.of(catalogue, tables["human_labels"], cfg.teach.target_smoothing)
            jobs += teacher_jobs(arm.cfg, store, catalogue, pairs, tables["splits"], f"{folder}/{arm.slug}")
    scaled = [arm for arm in arms if arm.lesson == LABEL_SCALING]
    sizes: dict[str, int] = {}
    if scaled:
        features = StudentFeatures.load(Catalogue.of(cfg, tables["pin_texts"], tables["zero_shot_pins"]), store)
        soft = read_output(store, inputs["soft_labels"])
        students, sizes = _scaling_jobs(scaled, features, soft, tables, folder)
        jobs += students
    if jobs:
        train_on_ray(f"lessons-{run.fingerprint}", jobs, cfg.seed, store, cfg.distill)
    for arm in arms:
        files = model_files(store, f"{folder}/{arm.slug}")
        assert files is not None
        run.add_output(arm.slug, f"{folder}/{arm.slug}", files)
    return run.finish({"rows_in": len(arms), "rows_out": len(arms), "models": len(arms)}, info={"pairs": sizes})


def _scaling_jobs(
    arms: list[Arm], features: StudentFeatures, soft: pa.Table, tables: Mapping[str, pa.Table], folder: str
) -> tuple[list[TrainJob], dict[str, int]]:
    """A student per number of labels, and the number of its training pairs."""
    cfg = arms[0].cfg
    human = human_examples(features, tables["human_labels"], tables["splits"], weight=1.0)
    taught, _ = soft_examples(features, soft)
    order = np.random.default_rng(cfg.seed).permutation(len(taught))  # the smaller sets are parts of the larger ones
    beside = human if cfg.distill.human_label_weight > 0 else human.rows(np.arange(0))
    jobs: list[TrainJob] = []
    sizes: dict[str, int] = {}
    for arm in arms:
        chosen = taught.rows(np.sort(order[: arm.multiple * len(human)]))
        size = len(chosen) if arm.multiple else len(human)
        made, sizes[arm.name], _ = student_jobs(
            longer(arm.cfg, size, len(taught)),
            features.names,
            chosen,
            beside if arm.multiple else human,
            f"{folder}/{arm.slug}",
            ("student",),
        )
        jobs += made.values()
    return jobs, sizes


@dataclass(frozen=True, kw_only=True)
class PairsToScore:
    """What an arm is shown of the judged pairs; texts, locales and features (num_pairs, ...) row by row."""

    output: Output
    model: str  # teacher or student
    queries: list[str]
    pin_texts: list[str]
    locales: list[str]
    features: np.ndarray


def score_arms(cfg: Config, store: Storage, parts: Mapping[str, PairsToScore]) -> dict[str, np.ndarray]:
    """Probabilities (num_pairs, 5) by arm. One task scores all: there are few pairs, and a process costs seconds."""
    import ray

    if not ray.is_initialized():
        ray.init()

    @ray.remote(num_cpus=1)
    def score() -> dict[str, np.ndarray]:
        return {name: _score(cfg, store, part) for name, part in parts.items()}

    found: dict[str, np.ndarray] = ray.get(score.remote())
    return found


def _score(cfg: Config, store: Storage, part: PairsToScore) -> np.ndarray:
    from ray_app.distill.student import Student
    from ray_app.label.teacher import Teacher
    from ray_app.models.bi_encoder import TowerEncoder
    from ray_app.models.checkpoint import local_folder

    threads = os.cpu_count() or 1
    if part.model == "teacher":
        teacher = Teacher(store, part.output, cfg.label.dtype, cfg.label.batch_size, threads)
        return teacher.judge(part.queries, part.pin_texts, part.features).probs
    folder, vectors = local_folder(store, part.output), {}
    for tower, texts in (("query", part.queries), ("pin", part.pin_texts)):
        distinct, place = np.unique(np.array(texts, dtype=object), return_inverse=True)
        encoder = TowerEncoder(folder, tower, cfg.embed.dtype, threads)
        found = encoder.encode(distinct.tolist(), cfg.embed.batch_size)
        found[distinct == ""] = 0.0  # as in a release: a pin without text has no vector
        vectors[tower] = found[place]
    return Student(store, part.output).score(vectors["query"], vectors["pin"], part.features, part.locales)
