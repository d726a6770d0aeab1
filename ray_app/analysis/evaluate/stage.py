"""Measure all systems on human labels, and write `metrics.json` and `report.html`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import PurePosixPath

import pyarrow as pa

from ray_app.analysis.agreement.agreement_table import AgreementTable
from ray_app.analysis.evaluate.render_text import render_table
from ray_app.analysis.evaluate.report.render import lineage, render_report, stage_row
from ray_app.analysis.evaluate.sampling import summarize_sample
from ray_app.analysis.experiment.ablation_table import ExperimentTable, table_text
from ray_app.analysis.experiment.spec import experiments_run, manifest_name
from ray_app.analysis.metrics.evaluation import evaluate_systems
from ray_app.analysis.metrics.judgments import JudgedLabels, evaluation_settings
from ray_app.analysis.metrics.slices import slice_columns
from ray_app.analysis.metrics.systems import Models, score_systems
from ray_app.base.config import Config
from ray_app.base.images.thumbnails import thumbnail
from ray_app.base.storage import Storage
from ray_app.cluster.encoders import zero_shot_queries
from ray_app.features.student import feature_inputs
from ray_app.stages.order import STAGES
from ray_app.tables.manifest import Manifest, Output, read_manifest, read_output, require_output
from ray_app.tables.provenance import git_commit, package_versions
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 5
GROUND_TRUTH = "ground_truth"  # rater of the synthetic demo dataset's own grades


def run(cfg: Config, store: Storage) -> Manifest:
    """Evaluate on `evaluate.human_labels`, or on the test split if there is none.

    The manifest's info holds `table` (text), `rows` (the JSON rows) and `report` (path under the output).
    """
    pins_output, log_output = require_output(store, "ingest", "pins"), require_output(store, "ingest", "search_log")
    models = Models.of(store)
    experiments = _experiments(cfg, store, models)
    beside = {name: made for name in ("agreement", "simulate") if (made := _made_with(store, name, models)) is not None}
    found = JudgedLabels.of(cfg, store)
    stage = Stage(
        name="evaluate",
        version=VERSION,
        inputs=[
            *found.inputs, log_output, require_output(store, "label", "soft_labels"), models.teacher, models.student, models.feature_only_student,
            *(manifest.outputs[key] for key, manifest in experiments.items()), *feature_inputs(cfg, store),
            *(output for made in beside.values() for output in made.outputs.values()),
        ],
        recipe=[cfg.evaluate.model_copy(update={"human_labels": None}), cfg.ingest.human_labels, found.content],
        compute=partial(
            _measure, found=found, models=models, experiments=experiments, beside=beside, pins_output=pins_output,
            log_output=log_output,
        ),
        manifest_name=found.name,
    )  # fmt: skip
    return run_stage(stage, cfg, store)


def _measure(
    run: StageRun, found: JudgedLabels, models: Models, experiments: Mapping[str, Manifest],
    beside: Mapping[str, Manifest], pins_output: Output, log_output: Output,
) -> StageResult:  # fmt: skip
    cfg, store, labels, num_quarantined = run.cfg, run.store, found.labels, found.num_unusable
    folder = "report" if found.name == "evaluate" else found.name
    catalogue = found.catalogue(found.tables)
    judged = found.pairs(catalogue)
    features = found.tables.student_features(catalogue, zero_shot_queries(cfg, store))
    systems = score_systems(cfg, store, features, models, judged, found.calibration(catalogue))

    seen = found.seen_in_training(cfg, store)
    notes = seen.cautions
    if set(labels["rater_id"].to_pylist()) == {GROUND_TRUTH}:
        notes.append(
            'The grades are the known ground truth of the synthetic demo dataset; where the report says "human", read "ground truth".'
        )
    log = read_output(store, log_output, ["query", "locale", "timestamp", "action"])
    pairs = slice_columns(
        judged.table, log, found.tables.rows(pins_output, catalogue.pairs.pin_ids, ["pin_id", "created_at"])
    )
    evaluation = evaluate_systems(pairs, systems, evaluation_settings(cfg), notes=notes)
    tables = [ExperimentTable.from_json(manifest.info["table"]) for manifest in experiments.values()]
    table = "\n\n".join([render_table(evaluation), *map(table_text, tables)])
    manifests = [m for stage in STAGES if (m := read_manifest(store, stage)) is not None]
    provenance = {
        "human_labels": cfg.evaluate.human_labels or "test split", "label_rows": labels.num_rows,
        "label_rows_unusable": num_quarantined, "seen_in_training": asdict(seen), "config": cfg.model_dump(mode="json"),
        "versions": package_versions(), "commit": git_commit(),
    } | lineage(manifests)  # fmt: skip
    said = (catalogue.pin_texts[name].to_pylist() for name in ("pin_id", "title", "caption"))
    titles = {pin_id: title or caption for pin_id, title, caption in zip(*said, strict=True)}
    html = render_report(
        evaluation, titles={pin_id: title for pin_id, title in titles.items() if title}, experiments=tables,
        image_of=_images(cfg, found.tables.rows(pins_output, catalogue.pairs.pin_ids, ["pin_id", "image", "image_bytes"])), agreement=_agreement(store, beside.get("agreement")),
        simulation=beside["simulate"].info["report"] if "simulate" in beside else None,
        sample=next((summarize_sample(m) for m in manifests if m.stage == "sample"), None),
        stages=[stage_row(manifest, cfg.prices) for manifest in manifests], provenance=provenance,
    )  # fmt: skip
    metrics = evaluation.to_json(provenance) | {"experiments": [t.to_json() for t in tables]}
    files = [
        store.write_json(f"{folder}/metrics.json", metrics),
        store.write_bytes(f"{folder}/report.html", html.encode()),
        store.write_table(f"{folder}/pairs.parquet", evaluation.pair_scores()),
    ]
    run.add_output("report", folder, files)
    return StageResult(
        counts={
            "rows_in": labels.num_rows + num_quarantined, "rows_out": labels.num_rows,
            "rows_quarantined": num_quarantined, "pairs": evaluation.num_pairs, "queries": evaluation.num_queries,
        },
        info={"table": table, "rows": evaluation.rows(), "report": f"{folder}/report.html"},
    )  # fmt: skip


def _experiments(cfg: Config, store: Storage, models: Models) -> dict[str, Manifest]:
    """Experiments that were made with these models, by key: those of the config first, with more seeds if they were run."""
    order = {PurePosixPath(path).stem: place for place, path in enumerate(cfg.experiments)}
    found = {}
    for key in sorted(experiments_run(store), key=lambda key: order.get(key, len(order))):
        for quick in (False, True):
            if (made := _made_with(store, manifest_name(key, quick), models)) is not None:
                found[key] = made
                break
    return found


def _made_with(store: Storage, name: str, models: Models) -> Manifest | None:
    """The manifest of what was made of these models; None: there is none, or it is of others."""
    made = read_manifest(store, name)
    if made is None or "student" not in made.inputs:
        return None
    own = {model.name: model.content_hash for model in (models.teacher, models.student, models.feature_only_student)}
    return made if all(made.inputs.get(model, content) == content for model, content in own.items()) else None


def _agreement(store: Storage, made: Manifest | None) -> list[AgreementTable]:
    if made is None:
        return []
    return [AgreementTable.from_json(table) for table in store.read_json(made.info["metrics"])["tables"]]


def _images(cfg: Config, pins: pa.Table) -> Callable[[str], str | None]:
    """pin_id -> a small image as a data URI; None: there is none that can be read, or the run reads no images."""
    if cfg.caption.model is None:
        return lambda pin_id: None

    row_of = {pin_id: row for row, pin_id in enumerate(pins["pin_id"].to_pylist())}

    def image(pin_id: str) -> str | None:
        row = pins.slice(row_of[pin_id], 1).to_pylist()[0]
        return thumbnail(row["image"], row["image_bytes"], cfg.caption.limits)

    return image
