"""Measure all systems on human labels, and write `metrics.json` and `report.html`."""

import hashlib
import json
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.config import Config
from ray_app.enrich.engaged_queries import drop_engaged_queries
from ray_app.errors import UserError
from ray_app.evaluate.evaluation import evaluate_systems
from ray_app.evaluate.inputs import rating_of_grade
from ray_app.evaluate.measured import EvaluationSettings
from ray_app.evaluate.report import render_report, stage_row
from ray_app.evaluate.systems import Models, score_systems
from ray_app.evaluate.table import render_table
from ray_app.ingest.stage import load_human_labels
from ray_app.manifest import (
    Manifest,
    StageRun,
    git_commit,
    package_versions,
    read_manifest,
    read_output,
    require_output,
)
from ray_app.storage import Storage
from ray_app.teach.pairs import LabelledPairs, load_catalogue
from ray_app.teach.splits import queries_of
from ray_app.text import normalise_query

VERSION = 1
STAGES = ("ingest", "enrich", "zero_shot", "teach", "sample", "label", "distill", "embed")
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
        inputs=[*read_from, labels_output, log_output, splits, models.teacher, models.student, models.feature_student],
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
    pins = read_output(store, pins_output)
    systems = score_systems(cfg, store, catalogue, pins, models, judged, calibration)

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
    evaluation = evaluate_systems(
        judged.table.append_column("frequency_band", bands), systems, settings, notes=[caution] if seen else []
    )
    table = render_table(evaluation)
    provenance = {
        "human_labels": cfg.evaluate.human_labels or "test split",
        "label_rows": labels.num_rows,
        "label_rows_unusable": num_quarantined,
        "config": cfg.model_dump(mode="json"),
        "versions": package_versions(),
        "commit": git_commit(),
    }
    manifests = [m for stage in STAGES if (m := read_manifest(store, stage)) is not None]
    titles = dict(zip(catalogue.pin_texts["pin_id"].to_pylist(), catalogue.pin_texts["title"].to_pylist(), strict=True))
    html = render_report(
        evaluation,
        titles={pin_id: title for pin_id, title in titles.items() if title},
        stages=[stage_row(manifest) for manifest in manifests],
        provenance=provenance,
    )
    folder = "report" if name == "evaluate" else name
    files = [
        store.write_json(f"{folder}/metrics.json", evaluation.to_json(provenance)),
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


def _of_queries(labels: pa.Table, queries: set[str]) -> pa.Table:
    return labels.filter(pa.array([normalise_query(q) in queries for q in labels["query"].to_pylist()], pa.bool_()))


def _frequency_bands(judged: LabelledPairs, log: pa.Table) -> pa.Array:
    """How often each pair's query was searched: `frequent`, `rare` or `not in the log`."""
    searched = pc.value_counts(pa.array([normalise_query(q) for q in log["query"].to_pylist()], pa.string()))
    times = {row["values"]: row["counts"] for row in searched.to_pylist()}
    count = np.array([times.get(query, 0) for query in judged.queries])[judged.query_index]
    names = np.select([count >= HEAD_SEARCHES, count > 0], ["frequent", "rare"], "not in the log")
    return pa.array(names.tolist(), pa.string())
