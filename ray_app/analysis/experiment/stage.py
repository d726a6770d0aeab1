"""Run an experiment: train what is missing, score the judged pairs with every arm, write the table."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ray_app.analysis.experiment.ablation_table import (
    ExperimentTable,
    Trained,
    ablation_table,
    by_language,
    calibration_error,
    deviation_over_seeds,
)
from ray_app.analysis.experiment.files import cost_columns, costs_of, shown, table_files
from ray_app.analysis.experiment.scores import Inputs, ScoringInput, score_pairs
from ray_app.analysis.experiment.spec import ExperimentSpec, manifest_name, table_name
from ray_app.analysis.experiment.variants import TRAINED_BY, Training, trainings_of
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.judgments import JudgedLabels, evaluation_settings
from ray_app.analysis.metrics.protocol import SystemScores
from ray_app.analysis.metrics.systems import graded
from ray_app.base.columns import matrix_column, matrix_of
from ray_app.base.config import Config, section_hash
from ray_app.base.storage import Storage
from ray_app.cluster.retrain import RetrainPolicy
from ray_app.cluster.tasks import run_task
from ray_app.cluster.train import train_on_ray
from ray_app.cluster.train_job import TrainJob
from ray_app.features.student import drifting_inputs, feature_inputs
from ray_app.models.text_encoder import stage_dtype
from ray_app.stages.order import load_stage
from ray_app.tables.manifest import Manifest, Output, read_manifest, read_output, require_output
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

logger = logging.getLogger(__name__)

VERSION = 2
SCORES_VERSION = 1
_JOBS_AT_ONCE = 8  # models of one Ray Train run: each keeps its examples in the driver until it is sent


def run(key: str, spec: ExperimentSpec, cfg: Config, store: Storage, quick: bool = False) -> Manifest:
    """Write `experiments/<key>/`: table.csv, table.md, table.png, table.json. The manifest's info holds `table`.

    What the run or another experiment has trained or scored with the same settings is taken over, not made again.
    `quick`: with the run's seed alone.

    Raises:
        UserError: a stage of the run is missing, or an arm cannot be run.
    """
    folder, name = f"experiments/{table_name(key, quick)}", manifest_name(key, quick)
    if spec.compare_to == "transfer":
        return _transfer(key, spec, cfg, store, folder, name)
    trainings = trainings_of(key, spec, cfg, [] if quick else spec.seeds)
    _train(trainings, store)
    judged = JudgedLabels.of(cfg, store)
    variants = [
        replace(model, name=f"{training.variant or 'run'}/{training.system}")
        for training in trainings
        if (model := _model(training, store)) is not None
    ]

    def compute(run: StageRun) -> StageResult:
        table, num_pairs = _compare(key, spec, cfg, store, trainings, judged)
        run.add_output(key, folder, table_files(store, folder, table))
        return StageResult(
            counts={"rows_in": len(trainings), "rows_out": len(trainings), "pairs": num_pairs},
            info={"table": table.to_json(), "seeds": [cfg.seed, *([] if quick else spec.seeds)]},
        )

    stage = Stage(
        name="experiment",
        version=VERSION,
        inputs=[*judged.inputs, *own_models(store), *variants],
        recipe=[spec.model_dump(mode="json"), ",".join(t.variant for t in trainings), cfg.evaluate, judged.content],
        compute=compute,
        manifest_name=name,
    )
    return run_stage(stage, cfg, store)


def _compare(
    key: str, spec: ExperimentSpec, cfg: Config, store: Storage, trainings: Sequence[Training], judged: JudgedLabels
) -> tuple[ExperimentTable, int]:
    """The table of all arms, and the number of judged pairs."""
    scored = _scores(trainings, cfg, store, judged)
    trained: dict[str, list[_Scored]] = {variant.name: [] for variant in spec.variants}
    for training, found in zip(trainings, scored, strict=True):
        trained[training.name].append(found)
    settings = evaluation_settings(cfg)
    pairs = judged.pairs(judged.catalogue(judged.tables)).table
    scores = {variant: [s.scores for s in found] for variant, found in trained.items()}
    table = _table(key, spec, pairs, scores, judged, settings)
    if spec.compare_to != "languages":
        table = _with_costs(table, trainings, trained, pairs, settings, cfg, store)
    return table, pairs.num_rows


def _transfer(key: str, spec: ExperimentSpec, cfg: Config, store: Storage, folder: str, name: str) -> Manifest:
    """Embeddings in other uses: those of the run's student beside its rivals, and those of other students, the arms."""
    from ray_app.analysis.transfer.stage import run as transfer

    trainings = trainings_of(key, spec, cfg, [])
    _train(trainings, store)
    measured = transfer(cfg, store)
    others = {training.name: transfer(training.cfg, Storage(store.uri, training.variant)) for training in trainings}
    fingerprints = ",".join(manifest.fingerprint for manifest in (measured, *others.values()))

    def compute(run: StageRun) -> StageResult:
        table = _transfer_table(key, spec, measured, others)
        run.add_output(key, folder, table_files(store, folder, table))
        return StageResult(counts=measured.counts, info={"table": table.to_json()})

    stage = Stage(
        name="experiment",
        version=VERSION,
        inputs=own_models(store),
        recipe=[spec.model_dump(mode="json"), fingerprints],
        compute=compute,
        manifest_name=name,
    )
    return run_stage(stage, cfg, store)


def _transfer_table(
    key: str, spec: ExperimentSpec, measured: Manifest, others: Mapping[str, Manifest]
) -> ExperimentTable:
    """The transfer table of the run, with a row of each arm's student after its own."""
    from ray_app.analysis.transfer.render_text import STUDENT

    table = ExperimentTable.from_json(measured.info["table"] | {"key": key, "title": spec.title})
    rows, verdicts = list(table.rows), [table.verdict]
    place = next(i for i, row in enumerate(rows) if row.name == STUDENT) + 1
    for variant, manifest in others.items():
        found = ExperimentTable.from_json(manifest.info["table"])
        rows.insert(place, replace(next(row for row in found.rows if row.name == STUDENT), name=variant))
        verdicts.append(f"{variant[:1].upper()}{variant[1:]}: {found.verdict.partition(': ')[2] or found.verdict}")
        place += 1
    return replace(table, rows=rows, verdict=" ".join(verdicts), about=f"{spec.about} {table.about}".strip())


def _table(
    key: str, spec: ExperimentSpec, pairs: pa.Table, trained: Mapping[str, Trained], judged: JudgedLabels,
    settings: EvaluationSettings,
) -> ExperimentTable:  # fmt: skip
    if spec.compare_to == "languages":
        human_only, distilled = trained.values()
        locales = sorted(set(judged.all_labels["locale"].to_pylist()))
        return by_language(key, spec.title, spec.about, pairs, human_only, distilled, locales, settings)
    untrained = [variant.name for variant in spec.variants if (variant.system or spec.system) not in TRAINED_BY]
    return ablation_table(key, spec.title, spec.about, pairs, trained, settings, spec.compare_to, untrained)


def own_models(store: Storage) -> list[Output]:
    """The run's teacher and student: a table that was made beside others is out of date."""
    return [require_output(store, "train_teacher", "teacher"), require_output(store, "distill", "student")]


# --- training -----------------------------------------------------------------------------------------------------


def _train(trainings: Sequence[Training], store: Storage) -> None:
    """Run each training's stages in its view; the models themselves are trained together, on one group of workers."""
    pending: dict[str, dict[str, TrainJob]] = {}  # by the stage that trains, whose section says on which workers
    for training in trainings:
        variant = Storage(store.uri, training.variant)
        for name in training.stages[:-1]:
            load_stage(name).run(training.cfg, variant)
        if training.stages and training.system in TRAINED_BY:
            stage = training.stages[-1]
            waiting = pending.setdefault(stage, {})
            for job in load_stage(stage).pending_jobs(training.cfg, variant):
                waiting[job.model_folder] = job  # two arms may be one model
            if len(waiting) >= _JOBS_AT_ONCE:
                _train_together(list(waiting.values()), stage, training.cfg, store)
                waiting.clear()
    for stage, waiting in pending.items():
        if waiting:
            _train_together(list(waiting.values()), stage, trainings[0].cfg, store)
    for training in trainings:
        if training.stages:
            load_stage(training.stages[-1]).run(training.cfg, Storage(store.uri, training.variant))


def _train_together(jobs: list[TrainJob], stage: str, cfg: Config, store: Storage) -> None:
    logger.info("experiment: training %d models", len(jobs))
    name = f"experiment-{section_hash(*(job.model_folder for job in jobs))}"
    train_on_ray(name, jobs, cfg.seed, store, getattr(cfg, stage))


def _model(training: Training, store: Storage) -> Output | None:
    if training.system not in TRAINED_BY:
        return None
    return require_output(Storage(store.uri, training.variant), TRAINED_BY[training.system], training.system)


# --- scores -------------------------------------------------------------------------------------------------------


class _Scored(NamedTuple):
    """An arm's scores of the judged pairs, and its size and speed."""

    scores: SystemScores
    num_parameters: int
    pairs_per_sec: float


def _scores(trainings: Sequence[Training], cfg: Config, store: Storage, judged: JudgedLabels) -> list[_Scored]:
    """Scores of each training, row by row as `judged.pairs`; kept while model, texts and judged pairs stay."""
    runs = [_score_run(training, store, judged) for training in trainings]
    inputs = Inputs(judged)
    asked = {
        number: inputs.of(training, Storage(store.uri, training.variant))
        for number, (training, run) in enumerate(zip(trainings, runs, strict=True))
        if run is not None and run.finished is None
    }
    for number, (probs, num_parameters, seconds) in _score_on_ray(cfg, store, asked).items():
        run = runs[number]
        assert run is not None
        run.write_table("scores", pa.table({"probs": matrix_column(probs)}))
        info = {"num_parameters": num_parameters, "pairs_per_sec": round(len(probs) / max(seconds, 1e-9), 1)}
        run.finish({"rows_in": len(probs), "rows_out": len(probs)}, info=info)
    found = []
    for training, run in zip(trainings, runs, strict=True):
        if run is None:
            found.append(_Scored(inputs.baseline(training, cfg, store), num_parameters=0, pairs_per_sec=0.0))
            continue
        made = run.finished
        assert made is not None
        probs = matrix_of(read_output(Storage(store.uri, training.variant), made.outputs["scores"])["probs"])
        found.append(_Scored(scores=graded(probs), **made.info))
    return found


def _score_run(training: Training, store: Storage, judged: JudgedLabels) -> StageRun | None:
    model, cfg, variant = _model(training, store), training.cfg, Storage(store.uri, training.variant)
    if model is None:
        return None
    pin_texts = require_output(variant, "enrich", "pin_texts")
    beside, may_drift = (
        ([], []) if training.system == "teacher" else (feature_inputs(cfg, variant), drifting_inputs(cfg))
    )
    retrain_policy = RetrainPolicy.of(cfg, pin_texts, "pin_texts", *may_drift)
    return StageRun(
        "scores", cfg, variant, SCORES_VERSION,
        settings=[judged.content, training.system, stage_dtype(cfg.label), stage_dtype(cfg.embed), cfg.embed.truncate_dim, cfg.pin_text, cfg.features],
        inputs=[model, pin_texts, *beside], retrain_policy=retrain_policy, name=f"scores-{training.system}",
    )  # fmt: skip


def _score_on_ray(
    cfg: Config, store: Storage, asked: Mapping[int, ScoringInput]
) -> dict[int, tuple[np.ndarray, int, float]]:
    """Probabilities (num_pairs, 5), weights and seconds by number. One task: there are few pairs, and a process costs seconds."""
    if not asked:
        return {}
    # Resolved here, since the task may come to another machine.
    label = cfg.label.model_copy(update={"dtype": stage_dtype(cfg.label)})
    embed = cfg.embed.model_copy(update={"dtype": stage_dtype(cfg.embed)})
    cfg = cfg.model_copy(update={"label": label, "embed": embed})

    def score() -> dict[int, tuple[np.ndarray, int, float]]:
        return {number: score_pairs(cfg, store, part) for number, part in asked.items()}

    return dict(run_task(score))


def _with_costs(
    table: ExperimentTable, trainings: Sequence[Training], trained: Mapping[str, Sequence[_Scored]], pairs: pa.Table,
    settings: EvaluationSettings, cfg: Config, store: Storage,
) -> ExperimentTable:  # fmt: skip
    """The table with how far each arm's seeds differ, its calibration, its size, what it learned from, and its speed here."""
    costs = {}
    for training in trainings:
        if training.name in costs:
            continue
        found, num_pairs = trained[training.name], None
        if training.system in TRAINED_BY:
            manifest = read_manifest(Storage(store.uri, training.variant), TRAINED_BY[training.system])
            assert manifest is not None
            num_pairs = manifest.counts["train_pairs"]
        scores, one = [s.scores for s in found], found[0]
        told = shown(deviation_over_seeds(pairs, scores)), shown(calibration_error(pairs, scores, settings))
        costs[training.name] = [*told, *costs_of(one.num_parameters, num_pairs, one.pairs_per_sec, cfg.prices)]
    columns = ["deviation over seeds", f"ECE {settings.calibration_grade}+", *cost_columns(cfg.prices)]
    return table.with_costs(columns, costs)
