"""Measure all systems on human labels, and write `metrics.json` and `report.html`."""

import hashlib
import json
from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.config import Config
from ray_app.distill.features import StudentFeatures, feature_inputs
from ray_app.enrich.engaged_queries import drop_engaged_queries
from ray_app.errors import UserError
from ray_app.evaluate.evaluation import evaluate_systems
from ray_app.evaluate.inputs import rating_of_grade
from ray_app.evaluate.lessons import LessonTable, by_language, ladder, ladder_of_systems, lesson_text
from ray_app.evaluate.measured import EvaluationSettings
from ray_app.evaluate.metrics import SystemScores
from ray_app.evaluate.pictures import thumbnail
from ray_app.evaluate.report import render_report, stage_row
from ray_app.evaluate.sampling import summarise_sample
from ray_app.evaluate.systems import Models, graded, score_systems
from ray_app.evaluate.table import render_table
from ray_app.ingest.stage import load_human_labels
from ray_app.lessons.arms import LABEL_SCALING, TEXT_FEATURES, arms_of, fields_name
from ray_app.lessons.stage import PairsToScore, score_arms
from ray_app.manifest import (
    Drift,
    Manifest,
    Output,
    StageRun,
    git_commit,
    package_versions,
    read_manifest,
    read_output,
    require_output,
)
from ray_app.storage import Storage
from ray_app.teach.catalogue import Catalogue
from ray_app.teach.pairs import LabelledPairs, load_catalogue
from ray_app.teach.splits import queries_of
from ray_app.text import normalise_query
from ray_app.training.examples import matrix_column, matrix_of

VERSION = 2
LESSON_SCORES_VERSION = 1
STAGES = (
    "demo", "ingest", "caption", "enrich", "zero_shot", "engagement", "graph",
    "teach", "sample", "label", "distill", "embed", "lessons",
)  # fmt: skip
TRUTH = "truth"  # rater of the demo world's own grades
HEAD_SEARCHES = 5  # guessed: a query searched at least that often in the log counts as frequent


def run(cfg: Config, store: Storage) -> Manifest:
    """Evaluate on `evaluate.human_labels`, or on the test split if there is none.

    The manifest's info holds `table` (text), `rows` (the JSON rows) and `report` (path under the output).
    """
    labels_output = require_output(store, "ingest", "human_labels")
    pins_output = require_output(store, "ingest", "pins")
    log_output = require_output(store, "ingest", "search_log")
    splits = require_output(store, "teach", "splits")
    models = Models(
        teacher=require_output(store, "teach", "teacher"),
        student=require_output(store, "distill", "student"),
        feature_student=require_output(store, "distill", "feature_student"),
    )
    lessons = {arm.slug: require_output(store, "lessons", arm.slug) for arm in arms_of(cfg)}
    catalogue, read_from = load_catalogue(cfg, store)
    split_table, all_labels = read_output(store, splits), read_output(store, labels_output)
    test_queries = queries_of(split_table, "test")
    if cfg.evaluate.human_labels is None:
        labels, num_quarantined, name = _of_queries(all_labels, test_queries), 0, "evaluate"
    else:
        labels, quarantine = load_human_labels(cfg, cfg.evaluate.human_labels, catalogue.pin_texts["pin_id"])
        num_quarantined, name = quarantine.num_rows, f"evaluate-{PurePosixPath(cfg.evaluate.human_labels).stem}"
    if labels.num_rows == 0:
        where = cfg.evaluate.human_labels or "the test split (teach.test_share)"
        raise UserError(f"evaluate.human_labels: {where} has no usable label ({num_quarantined} rows are unusable)")
    judged_content = hashlib.sha256(json.dumps(labels.to_pylist(), sort_keys=True, default=str).encode()).hexdigest()
    run = StageRun(
        "evaluate", cfg, store, VERSION,
        settings=[cfg.evaluate.model_copy(update={"human_labels": None}), cfg.ingest.human_labels, judged_content],
        inputs=[
            *read_from, labels_output, log_output, splits, models.teacher, models.student, models.feature_student,
            *lessons.values(), *feature_inputs(cfg, store),
        ],
        name=name,
    )  # fmt: skip
    if (finished := run.finished) is not None:
        return finished

    pin_texts = drop_engaged_queries(catalogue.pin_texts, set(labels["query"].to_pylist()))
    if not pin_texts.equals(catalogue.pin_texts):
        catalogue = catalogue.with_texts(pin_texts)
    judged = LabelledPairs.of(catalogue, labels, smoothing=0.0)
    train_labels = _of_queries(all_labels, queries_of(split_table, "train", "valid"))
    calibration = LabelledPairs.of(catalogue, train_labels, smoothing=0.0)
    features = StudentFeatures.load(catalogue, store)
    systems = score_systems(cfg, store, features, models, judged, calibration)

    grade_map = getattr(cfg.ingest.human_labels, "grade_map", None)
    bands = _frequency_bands(judged, read_output(store, log_output, ["query", "event_id"]))
    settings = EvaluationSettings(
        samples=cfg.evaluate.bootstrap_samples,
        confidence=cfg.evaluate.confidence,
        seed=cfg.seed,
        rating_of_grade=rating_of_grade(grade_map),
    )
    seen = sorted(set(judged.queries) & queries_of(split_table, "train", "valid"))
    caution = f"CAUTION: {len(seen)} of these queries were used in training, such as {seen[:1]}: the figures flatter."
    notes = [caution] if seen else []
    if set(labels["rater_id"].to_pylist()) == {TRUTH}:
        notes.append('The grades are the known truth of the demo world; where the report says "human", read "truth".')
    evaluation = evaluate_systems(judged.table.append_column("frequency_band", bands), systems, settings, notes=notes)
    arms = score_lessons(cfg, store, features, judged, lessons, judged_content)
    tables = lesson_tables(cfg, judged.table, systems, arms, all_labels, settings)
    table = "\n\n".join([render_table(evaluation), *map(lesson_text, tables)])
    provenance = {
        "human_labels": cfg.evaluate.human_labels or "test split",
        "label_rows": labels.num_rows,
        "label_rows_unusable": num_quarantined,
        "config": cfg.model_dump(mode="json"),
        "versions": package_versions(),
        "commit": git_commit(),
    }
    manifests = [m for stage in STAGES if (m := read_manifest(store, stage)) is not None]
    said = (catalogue.pin_texts[name].to_pylist() for name in ("pin_id", "title", "caption"))
    titles = {pin_id: title or caption for pin_id, title, caption in zip(*said, strict=True)}
    html = render_report(
        evaluation,
        titles={pin_id: title for pin_id, title in titles.items() if title},
        lessons=tables,
        picture_of=_pictures(cfg, store, pins_output),
        sample=next((summarise_sample(m) for m in manifests if m.stage == "sample"), None),
        stages=[stage_row(manifest) for manifest in manifests],
        provenance=provenance,
    )
    folder = "report" if name == "evaluate" else name
    files = [
        store.write_json(
            f"{folder}/metrics.json", evaluation.to_json(provenance) | {"lessons": [t.to_json() for t in tables]}
        ),
        store.write_bytes(f"{folder}/report.html", html.encode()),
    ]
    run.add_output("report", folder, files)
    return run.finish(
        counts={
            "rows_in": labels.num_rows + num_quarantined, "rows_out": labels.num_rows,
            "rows_quarantined": num_quarantined, "pairs": evaluation.num_pairs, "queries": evaluation.num_queries,
        },
        info={"table": table, "rows": evaluation.rows(), "report": f"{folder}/report.html"},
    )  # fmt: skip


def score_lessons(
    cfg: Config, store: Storage, features: StudentFeatures, judged: LabelledPairs, models: dict[str, Output],
    judged_content: str,
) -> dict[str, SystemScores]:  # fmt: skip
    """Slug -> scores of each arm, row by row as `judged.table`; kept while the models and the judged pairs stay."""
    arms = arms_of(cfg)
    if not arms:
        return {}
    pin_texts = require_output(store, "enrich", "pin_texts")
    drift = Drift(pin_texts=pin_texts, inputs=("pin_texts",), max_share=cfg.retrain.max_changed_share)
    run = StageRun(
        "lesson_scores", cfg, store, LESSON_SCORES_VERSION, settings=[judged_content, cfg.label.dtype, cfg.embed.dtype],
        inputs=[*models.values(), pin_texts], drift=drift,
    )  # fmt: skip
    if (finished := run.finished) is not None:
        table = read_output(store, finished.outputs["lesson_scores"])
        return {slug: graded(matrix_of(table[slug])) for slug in models}
    zero_shot = read_output(store, require_output(store, "zero_shot", "zero_shot_pins"))
    locales = judged.table["locale"].to_pylist()
    computed = features.compute(judged.queries, judged.query_index, judged.pin_index, locales)
    parts = {}
    for arm in arms:
        catalogue = features.catalogue
        own = catalogue if arm.cfg is cfg else Catalogue.of(arm.cfg, catalogue.pin_texts, zero_shot)
        parts[arm.slug] = PairsToScore(
            output=models[arm.slug],
            model=arm.model,
            queries=judged.table["query"].to_pylist(),
            pin_texts=[own.pairs.rendered[row] for row in judged.pin_index],
            locales=locales,
            features=computed if arm.model == "student" else computed[:, :0],
        )
    probs = score_arms(cfg, store, parts)
    run.write_table("lesson_scores", pa.table({slug: matrix_column(probs[slug]) for slug in models}))
    num_rows = len(judged.query_index)
    run.finish({"rows_in": num_rows, "rows_out": num_rows, "models": len(models)})
    return {slug: graded(probs[slug]) for slug in models}


def lesson_tables(
    cfg: Config, pairs: pa.Table, systems: dict[str, SystemScores], arms: dict[str, SystemScores], labels: pa.Table,
    settings: EvaluationSettings,
) -> list[LessonTable]:  # fmt: skip
    """The lessons that the config asks for."""
    by_lesson = {name: [arm for arm in arms_of(cfg) if arm.lesson == name] for name in (TEXT_FEATURES, LABEL_SCALING)}
    tables = [ladder_of_systems(pairs, systems, settings)] if arms else []
    if by_lesson[TEXT_FEATURES]:
        chosen = {arm.name: arms[arm.slug] for arm in by_lesson[TEXT_FEATURES]}
        chosen[fields_name(cfg.pin_text.fields, cfg.lessons.text_features[-1])] = systems["teacher"]
        tables.append(
            ladder(
                TEXT_FEATURES, "What is each text of a pin worth?", "One teacher each, alike but for what it reads.",
                pairs, chosen, settings,
            )
        )  # fmt: skip
    if by_lesson[LABEL_SCALING]:
        human = next(arm for arm in by_lesson[LABEL_SCALING] if arm.multiple == 0)
        chosen = {arm.name: arms[arm.slug] for arm in by_lesson[LABEL_SCALING]}
        chosen["all soft labels"] = systems["student"]
        about = "One student each, alike but for its training pairs: so many times the human-labelled ones, graded by the teacher."
        tables.append(ladder(LABEL_SCALING, "What are more labels worth?", about, pairs, chosen, settings))
        locales = sorted(set(labels["locale"].to_pylist()))
        tables.append(by_language(pairs, arms[human.slug], systems["student"], locales, settings))
    return tables


def _pictures(cfg: Config, store: Storage, pins: Output) -> Callable[[str], str | None]:
    """pin_id -> a small picture as a data URI; None: there is none that can be read, or the run reads no pictures."""
    if cfg.caption.model is None:
        return lambda pin_id: None
    table = read_output(store, pins, ["pin_id", "image", "image_bytes"])
    row_of = {pin_id: row for row, pin_id in enumerate(table["pin_id"].to_pylist())}

    def picture(pin_id: str) -> str | None:
        row = table.slice(row_of[pin_id], 1).to_pylist()[0]
        return thumbnail(row["image"], row["image_bytes"], cfg.caption.limits)

    return picture


def _of_queries(labels: pa.Table, queries: set[str]) -> pa.Table:
    return labels.filter(pa.array([normalise_query(q) in queries for q in labels["query"].to_pylist()], pa.bool_()))


def _frequency_bands(judged: LabelledPairs, log: pa.Table) -> pa.Array:
    """How often each pair's query was searched: `frequent`, `rare` or `not in the log`."""
    searched = pc.value_counts(pa.array([normalise_query(q) for q in log["query"].to_pylist()], pa.string()))
    times = {row["values"]: row["counts"] for row in searched.to_pylist()}
    count = np.array([times.get(query, 0) for query in judged.queries])[judged.query_index]
    names = np.select([count >= HEAD_SEARCHES, count > 0], ["frequent", "rare"], "not in the log")
    return pa.array(names.tolist(), pa.string())
