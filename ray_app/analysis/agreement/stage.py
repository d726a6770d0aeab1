"""Measure how teacher and student agree with the raters of `ingest.human_labels`, and write the sheet to adjudicate."""

from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from ray_app.analysis.agreement.adjudication_sheet import build_adjudication_sheet, find_label_issues
from ray_app.analysis.agreement.agreement_table import agreement_tables
from ray_app.analysis.agreement.rater_counts import RaterCounts
from ray_app.analysis.agreement.render_text import render_agreement
from ray_app.analysis.metrics.judgments import evaluation_settings, without_queries
from ray_app.analysis.metrics.systems import Models, score_systems
from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.text import normalize_query
from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.cluster.encoders import zero_shot_queries
from ray_app.features.student import feature_inputs
from ray_app.models.text_encoder import stage_dtype
from ray_app.sources.sheets import num_filled
from ray_app.tables.manifest import Manifest, Output, read_output, require_output
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage
from ray_app.training.labelled_pairs import LabelledPairs

VERSION = 2
SYSTEMS = ("teacher", "student")
SLICES = ("split", "locale", "guideline_version")
FOLDER = "report"
SHEET = f"{FOLDER}/adjudicate.csv"
METRICS_FILE = f"{FOLDER}/agreement.json"


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `report/agreement.json` and `report/adjudicate.csv`.

    The manifest's info holds `text` (the tables as text), `rows` (metrics over all pairs), and both paths.

    Raises:
        UserError: a stage has not run, there are no labels, or the sheet that would be replaced has been filled in.
    """
    labels_output = require_output(store, "ingest", "human_labels")
    splits = require_output(store, "train_teacher", "splits")
    models = Models.of(store)
    tables = CatalogueTables.of(cfg, store)
    stage = Stage(
        name="agreement",
        version=VERSION,
        inputs=[*tables.outputs, labels_output, splits, models.teacher, models.student, *feature_inputs(cfg, store)],
        recipe=[
            cfg.evaluate.num_resamples, cfg.evaluate.confidence_level, cfg.seed, cfg.adjudication, stage_dtype(cfg.label), stage_dtype(cfg.embed),
        ],
        compute=partial(_measure, labels_output=labels_output, splits=splits, models=models, catalogue_tables=tables),
    )  # fmt: skip
    return run_stage(stage, cfg, store)


def _measure(
    run: StageRun, labels_output: Output, splits: Output, models: Models, catalogue_tables: CatalogueTables
) -> StageResult:
    cfg, store = run.cfg, run.store
    _keep_filled_sheet(store)
    labels = read_output(store, labels_output)
    counts = RaterCounts.of(labels)

    catalogue = without_queries(catalogue_tables.pins(labels["pin_id"].unique().to_pylist()), labels)
    pairs = LabelledPairs.of(catalogue, labels, smoothing=0.0)
    features = catalogue_tables.student_features(catalogue, zero_shot_queries(cfg, store))
    scored = score_systems(cfg, store, features, models, pairs, calibration=pairs)
    systems = {name: scored[name] for name in SYSTEMS}

    split_of = {row["query"]: row["split"] for row in read_output(store, splits).to_pylist()}
    of_rows = [split_of.get(normalize_query(query), "none") for query in labels["query"].to_pylist()]
    labels = labels.append_column("split", pa.array(of_rows, pa.string()))
    settings = replace(evaluation_settings(cfg), slice_columns=SLICES)
    tables = agreement_tables(labels, systems, settings)
    grades = pairs.table["grade"].to_numpy().astype(np.int64)
    issues = find_label_issues(counts, grades, systems, cfg.adjudication.rows, cfg.adjudication.rows_per_query)
    pair_splits = counts.column(of_rows).tolist()
    sheet = build_adjudication_sheet(issues, counts, grades, systems, catalogue.pin_texts, pair_splits)
    files = [
        store.write_json(
            METRICS_FILE,
            {
                "tables": [table.to_json() for table in tables],
                "protocol": {
                    "num_resamples": settings.samples, "confidence_level": settings.confidence_level, "seed": settings.seed,
                    "resampled": "queries",
                },
                "inputs": run.input_hashes,
            },
        ),
        store.write_bytes(SHEET, sheet),
    ]  # fmt: skip
    run.add_output("agreement", FOLDER, files)
    seen = "note: the models have seen the grades of the train pairs, and were chosen by those of the valid pairs."
    return StageResult(
        counts={
            "rows_in": labels.num_rows, "rows_out": labels.num_rows, "pairs": len(counts.keys),
            "sheet_rows": len(issues),
        },
        info={
            "text": f"{render_agreement(tables)}\n\n{seen}", "rows": tables[0].to_json()["rows"], "metrics": METRICS_FILE,
            "sheet": SHEET,
        },
    )  # fmt: skip


def _keep_filled_sheet(store: Storage) -> None:
    """Refuse to write over what people have filled in."""
    filled = num_filled(store.read_bytes(SHEET)) if store.exists(SHEET) else 0
    if filled:
        raise UserError(
            f"{store.shown}/{SHEET}: {filled} rows have been filled in, and a new sheet would replace them; move the "
            "file elsewhere, and set ingest.adjudicated to where it then is"
        )
