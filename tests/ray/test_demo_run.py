"""The demo dataset end to end, as `make run` does it, only smaller: real pictures, real captions, real models."""

from pathlib import Path

import pytest
from PIL import Image, ImageOps

from ray_app.analysis.evaluate import stage as evaluate
from ray_app.analysis.experiment import stage as experiment
from ray_app.analysis.experiment.spec import ExperimentSpec
from ray_app.base.config import Config, load_config
from ray_app.base.storage import Storage
from ray_app.stages.order import load_stage
from ray_app.tables.manifest import Manifest, read_manifest, read_output, require_output

Finished = tuple[Config, dict[str, Manifest]]

ROOT = Path(__file__).parents[2]
STAGES = (
    "demo", "ingest", "caption", "enrich", "zero_shot", "corpus_statistics", "engagement", "graph", "train_teacher", "sample", "label", "distill",
    "embed",
)  # fmt: skip
SMALL = [
    "demo.num_pins=300", "demo.ground_truth_queries=60", "demo.labelled_queries=12", "sample.num_pairs=1500",
    "engagement.epochs=1", "graph.epochs=1", "train_teacher.train.epochs=1", "distill.train.epochs=1", "distill.feature_train.epochs=1",
    "evaluate.num_resamples=40",
]  # fmt: skip
HUMAN_ONLY = {"name": "human labels only", "set": {"distill.soft_label_ratio": 0}}
EXPERIMENTS = {
    "text_features": {
        "title": "What is each text worth?", "system": "teacher", "compare_to": "previous",
        "variants": [{"name": "BM25", "system": "bm25"}, {"name": "caption", "set": {"pin_text.fields": ["caption"]}}, {"name": "all"}],
    },
    "label_scaling": {"title": "What are more labels worth?", "compare_to": "previous", "variants": [HUMAN_ONLY, {"name": "all"}]},
    "languages": {"title": "And languages that nobody labelled?", "compare_to": "languages", "variants": [HUMAN_ONLY, {"name": "all"}]},
}  # fmt: skip


def run_stages(cfg: Config) -> dict[str, Manifest]:
    store = Storage(cfg.output)
    found = {name: load_stage(name).run(cfg, store) for name in STAGES}
    for key, spec in EXPERIMENTS.items():
        found[key] = experiment.run(key, ExperimentSpec.model_validate({"base": "x", **spec}), cfg, store, quick=True)
    return found | {"evaluate": evaluate.run(cfg, store)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Finished:
    output = tmp_path_factory.mktemp("demo") / "run"
    cfg = load_config(ROOT / "configs" / "demo.yaml", [f"output={output}", *SMALL])
    return cfg, run_stages(cfg)


def test_captions_reach_the_texts_that_models_read(finished: Finished) -> None:
    cfg, manifests = finished
    counts = manifests["enrich"].counts
    assert counts["pins_with_caption"] > 0.9 * counts["rows_out"]
    store = Storage(cfg.output)
    texts = read_output(store, manifests["enrich"].outputs["pin_texts"])
    concepts = store.read_table(manifests["demo"].outputs["ground_truth_concepts"].files[0]).to_pylist()
    said = dict(zip(texts["pin_id"].to_pylist(), texts["caption"].to_pylist(), strict=True))
    seen = [row for row in concepts if said.get(row["pin_id"])]
    assert sum(row["colour"] in said[row["pin_id"]] for row in seen) >= 0.95 * len(seen)


def test_the_report_has_the_experiments_and_pictures(finished: Finished) -> None:
    cfg, manifests = finished
    html = Storage(cfg.output).read_bytes(manifests["evaluate"].info["report"]).decode()
    for spec in EXPERIMENTS.values():
        assert str(spec["title"]) in html
    assert html.count('<img class="pin" src="data:image/jpeg;base64,') >= 20


def test_the_truth_is_read_by_evaluate_only(finished: Finished) -> None:
    """A stage that saw the truth would make every figure worthless."""
    _, manifests = finished
    truth = {out.content_hash for name, out in manifests["demo"].outputs.items() if name.startswith("ground_truth")}
    for name, manifest in manifests.items():
        assert not truth & set(manifest.inputs.values()), name
    judged = {row["query"] for row in manifests_table(finished, "demo", "ground_truth_judgments")}
    for stage, output in (("sample", "pairs"), ("ingest", "search_log"), ("ingest", "human_labels")):
        assert not judged & {row["query"] for row in manifests_table(finished, stage, output)}, stage


def manifests_table(finished: Finished, stage: str, output: str) -> list[dict]:
    cfg, manifests = finished
    return read_output(Storage(cfg.output), manifests[stage].outputs[output]).to_pylist()


def test_a_second_run_does_no_work(finished: Finished) -> None:
    cfg, first = finished
    again = run_stages(cfg)
    assert {name: m.created_at for name, m in again.items()} == {name: m.created_at for name, m in first.items()}


def test_one_changed_picture_is_one_caption_and_one_embedding(finished: Finished) -> None:
    """And no new teacher, label or student: these cost money, and one pin of 300 is no reason."""
    cfg, first = finished
    images = sorted(Path(cfg.output, "world", "images").rglob("*.png"))
    pins = manifests_table(finished, "ingest", "pins")
    shown = [pin["image"] for pin in pins]
    path = next(image for image in images if shown.count(str(image)) == 1)
    with Image.open(path) as picture:
        ImageOps.invert(picture.convert("RGB")).save(path)
    again = run_stages(cfg)
    assert again["caption"].counts["computed"] == 1
    assert again["embed"].counts["computed"] == 1
    for name in ("train_teacher", "sample", "label", "distill"):
        assert again[name].created_at == first[name].created_at, name
    for variant, name in (("text_features/caption", "scores-teacher"), ("label_scaling/human-labels-only", "distill")):
        made = read_manifest(Storage(cfg.output, variant), name)
        assert made is not None and made.created_at < again["embed"].created_at, variant


def test_two_experiments_share_what_they_have_in_common(finished: Finished) -> None:
    """A model that is trained once per experiment would cost as many GPU days as there are tables."""
    cfg, _ = finished
    variants = [Storage(cfg.output, f"{key}/human-labels-only") for key in ("label_scaling", "languages")]
    models = [require_output(variant, "distill", "student").path for variant in variants]
    assert models[0] == models[1] != require_output(Storage(cfg.output), "distill", "student").path


def test_an_experiment_leaves_the_run_alone(finished: Finished) -> None:
    cfg, manifests = finished
    for name in ("train_teacher", "distill"):
        assert read_manifest(Storage(cfg.output), name) == manifests[name]


def test_figures_of_an_experiment_are_those_of_the_report(finished: Finished) -> None:
    """The run itself is an arm; one system with two figures would make both worthless."""
    _, manifests = finished
    reported = {row["system"]: row["accuracy"] for row in manifests["evaluate"].info["rows"]}
    for key, row, system in (
        ("text_features", 0, "bm25"),
        ("text_features", 2, "teacher"),
        ("label_scaling", 1, "student"),
    ):
        shown = manifests[key].info["table"]["rows"][row]["cells"][0][0]
        assert shown == pytest.approx(reported[system], abs=0.005), system


def test_the_simulation_shows_both_students_to_the_same_people(finished: Finished) -> None:
    """Its figures must add up, and not depend on how the scoring was cut into tasks."""
    from ray_app.analysis.simulate import stage

    cfg, _ = finished
    few = {"num_searches": 600, "num_logged_searches": 400, "unseen_queries": 60, "candidates": 60}
    small = cfg.model_copy(update={"simulate": cfg.simulate.model_copy(update=few)})
    store = Storage(cfg.output)
    manifest = stage.run(small, store)
    found = store.read_json("simulate/simulation.json")
    rows = {row["slice"]: row for row in found["by_country"]["as_in_the_log"]}
    assert sum(row["searches"] for row in rows.values() if row["is_country"]) == 600 == rows["all"]["searches"]
    assert [name for name, row in rows.items() if row["is_country"] and row["has_labels"]] == ["US"]
    alone = next(row for row in found["tradeoff"] if row["use"] == "relevance")
    assert alone["ndcg@20"] == rows["all"]["ndcg@20_treatment"]
    assert stage.run(small, store) == manifest  # up to date

    store.delete("manifests/simulate.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_QUERIES_PER_TASK", 37)
        assert stage.run(small, store).info["tables"] == manifest.info["tables"]
