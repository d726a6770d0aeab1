"""All stages on a tiny catalogue with tiny models: real Ray Data, real Ray Train, real weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pipeline_world import run_stages, write_csv

from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.cluster.catalogue_tables import CatalogueTables, load_catalogue
from ray_app.features.student import StudentFeatures
from ray_app.models.calibration import HUMAN_GRADES, TEACHER
from ray_app.models.checkpoint import load_calibration
from ray_app.models.text_encoder import TextEncoder
from ray_app.models.truncation import describe
from ray_app.stages.distill.examples import SoftExamples, ValidQueries
from ray_app.tables.current import current_release
from ray_app.tables.manifest import Manifest, read_manifest, read_output
from ray_app.tables.release import open_release

Finished = tuple[Config, dict[str, Manifest]]

ROOT = Path(__file__).parents[2]
SYSTEMS = [
    "bm25",
    "embedding_cosine",
    "engagement_cosine",
    "graph_cosine",
    "feature_only_student",
    "teacher",
    "student",
]


def kill_when(stage: str, source: Path, overrides: list[str], reached: Callable[[], bool]) -> None:
    """Start a stage as a program and kill -9 it and all its children once `reached` says so."""
    command = [sys.executable, f"pipelines/{stage}.py", "--config", str(source / "config.yaml")]
    for override in overrides:
        command += ["--set", override]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env.pop("RAY_ADDRESS", None)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **quiet)
    deadline = time.monotonic() + 400
    while process.poll() is None and not reached() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed_in_time = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert killed_in_time, "the stage ended before it could be killed"


def table(cfg: Config, stage: str, name: str) -> pa.Table:
    store = Storage(cfg.output)
    manifest = read_manifest(store, stage)
    assert manifest is not None
    return read_output(store, manifest.outputs[name])


def test_no_row_is_lost_between_the_stages(finished: Finished) -> None:
    _, manifests = finished
    for name in ("ingest", "enrich", "train_teacher", "label", "embed", "evaluate"):
        counts = manifests[name].counts
        lost = (
            counts["rows_in"] - counts["rows_out"] - counts.get("rows_quarantined", 0) - counts.get("without_vector", 0)
        )
        assert lost == 0, name


def test_dirt_is_in_quarantine_with_a_reason(finished: Finished) -> None:
    reasons = [reason.split(":")[0] for reason in table(finished[0], "ingest", "quarantine")["reason"].to_pylist()]
    assert sorted(reasons) == ["duplicate_key", "unknown_pin"]


def test_every_sampled_pair_has_one_soft_label(finished: Finished) -> None:
    cfg, _ = finished
    pairs, labels = table(cfg, "sample", "pairs"), table(cfg, "label", "soft_labels")
    key = ["query", "locale", "pin_id"]
    assert labels.select(key).to_pylist() == pairs.select(key).to_pylist()
    silent = [row["error"].startswith("empty_pin: ") for row in labels.to_pylist() if row["pin_id"] == "red-cup"]
    assert all(silent)
    assert labels["error"].null_count == labels.num_rows - len(silent)


def test_a_plan_keeps_its_labels_and_stands_beside_what_the_run_took(finished: Finished, tmp_path: Path) -> None:
    from ray_app.stages.label.stage import estimate_cost

    cfg, first = finished
    planned = cfg.model_copy(update={"output": str(tmp_path / "run")})
    shutil.copytree(cfg.output, planned.output)
    shutil.rmtree(Path(planned.output) / "ledger" / "soft_labels")
    (Path(planned.output) / "manifests" / "label.json").unlink()
    estimate = estimate_cost(planned, Storage(planned.output))
    distinct = first["label"].counts["computed"]
    assert (estimate.measured, estimate.remaining) == (32, distinct - 32)  # 20 rows are two blocks of 16
    assert estimate.cost.money == pytest.approx(estimate.cost.cpu_hours * 0.36)
    manifest = run_stages(planned, "label")["label"]
    assert manifest.counts["computed"] == distinct - 32
    assert manifest.info["cost_estimate"]["wall_sec"] == estimate.wall_sec
    assert manifest.info["actual"]["rows"] == distinct - 32
    assert manifest.outputs["soft_labels"].content_hash == first["label"].outputs["soft_labels"].content_hash


def test_test_queries_are_never_labelled_for_training(finished: Finished) -> None:
    cfg, _ = finished
    splits = table(cfg, "train_teacher", "splits")
    test = {row["query"] for row in splits.to_pylist() if row["split"] == "test"}
    assert test
    assert not test & set(table(cfg, "sample", "pairs")["query"].to_pylist())


def test_models_say_what_their_probabilities_are_calibrated_to(finished: Finished) -> None:
    """Raters where there are enough pairs of them; a handful fits noise, and the student then follows the calibrated teacher."""
    cfg, made = finished
    teacher = made["train_teacher"].info["calibration"]
    assert (teacher["fitted_to"], teacher["pairs"]["*"]) == (HUMAN_GRADES, made["train_teacher"].counts["valid_pairs"])
    assert made["distill"].info["calibration"]["student"]["fitted_to"] == TEACHER
    card = (Path(cfg.output) / made["distill"].outputs["student"].path / "README.md").read_text()
    assert 'fitted_to: "calibrated teacher"' in card


def test_the_release_holds_each_pin_with_text(finished: Finished) -> None:
    store = Storage(finished[0].output)
    release = current_release(store)
    assert release is not None
    assert open_release(store, release).num_rows == 35
    assert release.num_missing == 1


def test_all_systems_are_measured_on_all_pairs(finished: Finished) -> None:
    rows = finished[1]["evaluate"].info["rows"]
    assert [r["system"] for r in rows] == SYSTEMS
    assert {r["num_pairs"] for r in rows} == {finished[1]["train_teacher"].counts["test_pairs"]}


def test_a_second_run_does_no_model_work(finished: Finished) -> None:
    cfg, first = finished
    again = run_stages(cfg)
    assert {name: m.created_at for name, m in again.items()} == {name: m.created_at for name, m in first.items()}


def test_a_lost_manifest_costs_no_label_and_gives_the_same_table(finished: Finished) -> None:
    cfg, first = finished
    store = Storage(cfg.output)
    store.delete("manifests/label.json")
    again = run_stages(cfg, "label")["label"]
    assert again.counts["computed"] == 0
    assert again.outputs["soft_labels"].content_hash == first["label"].outputs["soft_labels"].content_hash


def test_new_judged_queries_are_evaluated_in_one_go(finished: Finished, source: Path) -> None:
    cfg, first = finished
    rows = [
        {"query": "red shoe", "pin_id": p, "rater_id": "x", "grade": g, "locale": "en-US"}
        for p, g in (("red-shoe", 5), ("red-mug", 3), ("blue-cable", 1), ("gone", 1))
    ]
    write_csv(source / "new.csv", rows)
    new = cfg.model_copy(update={"evaluate": cfg.evaluate.model_copy(update={"human_labels": str(source / "new.csv")})})
    manifest = run_stages(new, "evaluate")["evaluate"]
    assert (manifest.counts["pairs"], manifest.counts["rows_quarantined"]) == (3, 1)
    assert Storage(cfg.output).exists(first["evaluate"].info["report"])  # the run's own report stays


def test_labels_of_unknown_pins_only_are_a_clear_error(finished: Finished, source: Path) -> None:
    write_csv(source / "bad.csv", [{"query": "q", "pin_id": "gone", "rater_id": "x", "grade": 1, "locale": "en-US"}])
    cfg = finished[0]
    bad = cfg.model_copy(update={"evaluate": cfg.evaluate.model_copy(update={"human_labels": str(source / "bad.csv")})})
    with pytest.raises(UserError, match="no usable label"):
        run_stages(bad, "evaluate")


def test_batch_and_online_features_of_the_student_agree(finished: Finished) -> None:
    """distill sees them in one batch of soft labels, evaluate in another, serve one query at a time: a difference would
    be a student that is served other inputs than it learned from."""
    cfg, store = finished[0], Storage(finished[0].output)
    catalogue, _ = load_catalogue(cfg, store)
    batch = SoftExamples(
        tables=CatalogueTables.of(cfg, store), soft_labels=finished[1]["label"].outputs["soft_labels"],
        queries=finished[1]["sample"].outputs["queries"], calibration=None, is_valid=ValidQueries(0.1, cfg.seed),
    )  # fmt: skip
    soft, trained_on, names = batch.good(0), batch.placed(0).examples, batch.features(0).names
    assert soft["query"].to_pylist() == list(trained_on.queries)
    encoder = TextEncoder(
        cfg.features.zero_shot_model, None, cfg.features.zero_shot_max_tokens, "float32", role="query"
    )
    online = StudentFeatures.load(catalogue, store, encode_queries=encoder.encode)
    assert trained_on.features.shape[1] == len(names) and names == online.names
    # A few are trained on as if nobody had said their locale.
    with_locale = trained_on.features[:, names.index("query_locale_known")] > 0
    assert with_locale.mean() > 0.8
    queries = sorted(set(trained_on.queries))
    assert len(queries) >= 3
    for query in queries[:3]:
        rows = [i for i, other in enumerate(trained_on.queries) if other == query and with_locale[i]]
        pins = catalogue.pairs.pin_rows([soft["pin_id"][i].as_py() for i in rows])
        alone = online.compute([query], np.zeros(len(rows), int), pins, [soft["locale"][i].as_py() for i in rows])
        np.testing.assert_allclose(alone, trained_on.features[rows], atol=1e-5)
    some = trained_on.features.any(0)
    for name in ("engagement_cosine", "graph_cosine", "click_rate", "same_locale", "title_bm25"):
        assert some[names.index(name)], name


def test_a_trained_model_says_what_it_is_and_how_sure_it_may_be(finished: Finished) -> None:
    store, manifests = Storage(finished[0].output), finished[1]
    for stage, name in (("train_teacher", "teacher"), ("distill", "student"), ("distill", "feature_only_student")):
        output = manifests[stage].outputs[name]
        card = store.read_bytes(f"{output.path}/README.md").decode()
        assert name.replace("_", " ") in card
        assert finished[0].output not in card
        calibration = load_calibration(store, output)
        assert calibration is not None
        assert 0.25 <= calibration.temperature("en-US") <= 4.0
        said = describe(manifests[stage].info["truncation"])
        assert (said in card) == (name != "feature_only_student") and " are cut at " in said
    assert manifests["zero_shot"].info["truncation"]["key"] == "features.zero_shot_max_tokens"


def test_two_training_workers_give_a_working_teacher(finished: Finished) -> None:
    cfg = finished[0]
    train = cfg.train_teacher.train.model_copy(update={"epochs": 1})
    train_teacher = cfg.train_teacher.model_copy(update={"num_workers": 2, "train": train})
    two = cfg.model_copy(update={"train_teacher": train_teacher, "output": f"{cfg.output}-two"})
    shutil.copytree(cfg.output, two.output)
    manifest = run_stages(two, "train_teacher")["train_teacher"]
    assert len(manifest.info["history"]) == 1
    assert manifest.outputs["teacher"].content_hash != finished[1]["train_teacher"].outputs["teacher"].content_hash


def test_a_run_killed_while_labelling_ends_with_the_same_tables(
    finished: Finished, source: Path, tmp_path: Path
) -> None:
    """kill -9 of everything at once; the rerun labels only what is missing, and ends with equal tables."""
    cfg, first = finished
    output = tmp_path / "run"
    shutil.copytree(cfg.output, output)
    for path in (output / "ledger" / "soft_labels").rglob("*.parquet"):
        path.unlink()
    (output / "manifests" / "label.json").unlink()
    ledger = output / "ledger" / "soft_labels"
    kill_when("label", source, [f"output={output}"], lambda: any(ledger.rglob("*.parquet")))
    kept = len(list(ledger.rglob("*.parquet")))
    resumed = cfg.model_copy(update={"output": str(output)})
    manifest = run_stages(resumed, "label")["label"]
    assert kept >= 1
    assert manifest.outputs["soft_labels"].content_hash == first["label"].outputs["soft_labels"].content_hash
    keys = [key for path in ledger.rglob("*.parquet") for key in pa.parquet.read_table(path)["content_key"].to_pylist()]
    assert len(keys) == len(set(keys))


def test_a_run_killed_while_teaching_ends_with_the_same_teacher(
    finished: Finished, source: Path, tmp_path: Path
) -> None:
    """Another teacher would mean that all labels are made again, and are others."""
    cfg = finished[0]
    train = cfg.train_teacher.train.model_copy(
        update={"epochs": 15, "early_stopping_patience": 15, "checkpoint_interval_sec": 0.2}
    )
    outputs = [tmp_path / "fault-free", tmp_path / "killed"]
    longer = []
    for output in outputs:
        shutil.copytree(cfg.output, output)
        train_teacher = cfg.train_teacher.model_copy(update={"train": train})
        longer.append(cfg.model_copy(update={"train_teacher": train_teacher, "output": str(output)}))
    whole = run_stages(longer[0], "train_teacher")["train_teacher"].outputs["teacher"]
    overrides = [
        f"output={outputs[1]}",
        "train_teacher.train.epochs=15",
        "train_teacher.train.early_stopping_patience=15",
    ]
    overrides.append("train_teacher.train.checkpoint_interval_sec=0.2")
    training = outputs[1] / "training"
    kill_when("train_teacher", source, overrides, lambda: len(list(training.glob("train_teacher-*/checkpoint_*"))) >= 2)
    resumed = run_stages(longer[1], "train_teacher")["train_teacher"].outputs["teacher"]
    assert resumed.content_hash == whole.content_hash


def test_the_command_prints_one_json_line_last(finished: Finished, source: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, "pipelines/evaluate.py", "--config", str(source / "config.yaml")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=True)
    assert len(json.loads(done.stdout.strip().splitlines()[-1])["rows"]) == len(SYSTEMS)
