"""The built-in world end to end, as `make run` does it, only smaller: real pictures, real captions, real models."""

from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from ray_app.config import Config, load_config
from ray_app.manifest import Manifest, read_manifest, read_output
from ray_app.storage import Storage

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
STAGES = (
    "demo", "ingest", "caption", "enrich", "zero_shot", "engagement", "graph", "teach", "sample", "label", "distill",
    "embed", "lessons", "evaluate",
)  # fmt: skip
SMALL = [
    "demo.num_pins=300", "demo.truth_queries=60", "demo.labelled_queries=12", "sample.num_pairs=1500",
    "engagement.epochs=1", "graph.epochs=1", "teach.train.epochs=1", "distill.train.epochs=1", "distill.feature_train.epochs=1",
    "lessons.text_features=[[caption]]", "lessons.label_multiples=[5]", "evaluate.bootstrap_samples=40",
]  # fmt: skip


def run_stages(cfg: Config) -> dict[str, Manifest]:
    store = Storage(cfg.output)
    return {name: import_module(f"ray_app.{name}.stage").run(cfg, store) for name in STAGES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Config, dict[str, Manifest]]:
    output = tmp_path_factory.mktemp("demo") / "run"
    cfg = load_config(ROOT / "configs" / "demo.yaml", [f"output={output}", *SMALL])
    return cfg, run_stages(cfg)


def test_captions_reach_the_texts_that_models_read(finished: tuple[Config, dict[str, Manifest]]) -> None:
    cfg, manifests = finished
    counts = manifests["enrich"].counts
    assert counts["pins_with_caption"] > 0.9 * counts["rows_out"]
    store = Storage(cfg.output)
    texts = read_output(store, manifests["enrich"].outputs["pin_texts"])
    concepts = store.read_table(manifests["demo"].outputs["truth_concepts"].files[0]).to_pylist()
    said = dict(zip(texts["pin_id"].to_pylist(), texts["caption"].to_pylist(), strict=True))
    seen = [row for row in concepts if said.get(row["pin_id"])]
    assert sum(row["colour"] in said[row["pin_id"]] for row in seen) >= 0.95 * len(seen)


def test_the_report_has_the_four_lessons_and_pictures(finished: tuple[Config, dict[str, Manifest]]) -> None:
    cfg, manifests = finished
    html = Storage(cfg.output).read_bytes(manifests["evaluate"].info["report"]).decode()
    for question in (
        "How good are",
        "What is each text",
        "What are more labels worth",
        "languages that nobody labelled",
    ):
        assert question in html
    assert html.count('<img class="pin" src="data:image/jpeg;base64,') >= 20


def test_the_truth_is_read_by_evaluate_only(finished: tuple[Config, dict[str, Manifest]]) -> None:
    """A stage that saw the truth would make every figure worthless."""
    _, manifests = finished
    truth = {out.content_hash for name, out in manifests["demo"].outputs.items() if name.startswith("truth")}
    for name, manifest in manifests.items():
        assert not truth & set(manifest.inputs.values()), name
    judged = {row["query"] for row in manifests_table(finished, "demo", "truth_judgements")}
    for stage, output in (("sample", "pairs"), ("ingest", "search_log"), ("ingest", "human_labels")):
        assert not judged & {row["query"] for row in manifests_table(finished, stage, output)}, stage


def manifests_table(finished: tuple[Config, dict[str, Manifest]], stage: str, output: str) -> list[dict]:
    cfg, manifests = finished
    return read_output(Storage(cfg.output), manifests[stage].outputs[output]).to_pylist()


def test_a_second_run_does_no_work(finished: tuple[Config, dict[str, Manifest]]) -> None:
    cfg, first = finished
    again = run_stages(cfg)
    assert {name: m.created_at for name, m in again.items()} == {name: m.created_at for name, m in first.items()}


def test_one_changed_picture_is_one_caption_and_one_embedding(finished: tuple[Config, dict[str, Manifest]]) -> None:
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
    for name in ("teach", "sample", "label", "distill", "lessons"):
        assert again[name].created_at == first[name].created_at, name
    store = Storage(cfg.output)
    scores = read_manifest(store, "lesson_scores")
    assert scores is not None and scores.created_at < again["embed"].created_at
