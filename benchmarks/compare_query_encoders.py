"""What bfloat16 queries and shorter pin vectors cost in ranking: the student's figures as served against float32.

    python benchmarks/compare_query_encoders.py [--configs configs/chorus.yaml configs/demo.yaml]

float32       queries by torch, pin vectors as the release holds them: what `evaluate` measures
onnx          queries by onnxruntime in float32, pins float16
compiled      queries by `compiled_bf16`, each alone as it comes over HTTP, pins float16: what is served by default
int8_pins     the same with serve.embedding_dtype: int8

results/compare_engines_8bit.json is of an engine that is gone: onnxruntime with 8-bit matrix products. It cost .005 of
nDCG on Chorus, and was slower in batches than compiled bfloat16.

Pairs are all that humans labelled (the demo: those of known truth), training queries too: nothing is learnt here, and
more pairs show smaller differences. The intervals are of the paired difference to float32 over resampled queries.
"""

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _bench import finish, skip

from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings, rating_of_grade
from ray_app.analysis.metrics.evaluation import evaluate_systems
from ray_app.analysis.metrics.protocol import METRICS
from ray_app.analysis.metrics.systems import graded
from ray_app.base.columns import matrix_or_zero
from ray_app.base.config import Config, load_config
from ray_app.base.storage import Storage
from ray_app.cluster.catalogue_tables import load_catalogue
from ray_app.cluster.encoders import zero_shot_queries
from ray_app.features.student import StudentFeatures
from ray_app.models.student import Student
from ray_app.online.pin_files import Kind
from ray_app.online.pin_store import PinStore
from ray_app.online.query_encoders import choose_backend
from ray_app.online.release_inputs import ReleaseInputs
from ray_app.sources.human_labels import load_human_labels
from ray_app.tables.current import current_release
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import read_output, require_output
from ray_app.tables.release import Release, open_release
from ray_app.training.labelled_pairs import LabelledPairs

SYSTEMS: dict[str, tuple[str, Kind | None]] = {
    "float32": ("torch", None), "onnx": ("onnx", "float16"), "compiled": ("compiled_bf16", "float16"),
    "int8_pins": ("compiled_bf16", "int8"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["configs/chorus.yaml", "configs/demo.yaml"])
    args = parser.parse_args()
    logging.disable(logging.INFO)
    found = {}
    for name in args.configs:
        cfg = load_config(name)
        release = current_release(Storage(cfg.output))
        if release is None:
            skip("compare_query_encoders", f"no release in {cfg.output}: make run CONFIG={name}")
            return
        found[Path(name).stem] = _compare(cfg, release)
    lowest = min(row["compiled"]["ndcg@20"] / row["float32"]["ndcg@20"] for row in found.values())
    finish("compare_query_encoders", lowest, **found)


def _compare(cfg: Config, release: Release) -> dict[str, Any]:
    store = Storage(cfg.output)
    catalogue = load_catalogue(cfg, store)[0]
    if cfg.evaluate.human_labels is None:
        labels = read_output(store, require_output(store, "ingest", "human_labels"))
    else:
        labels, _ = load_human_labels(cfg, cfg.evaluate.human_labels, catalogue.pin_texts["pin_id"])
    judged = LabelledPairs.of(catalogue, labels, smoothing=0.0)
    locales = judged.table["locale"].to_pylist()
    student_output = release.sources["student"]
    student = Student(store, student_output)
    features = StudentFeatures.load(catalogue, store, zero_shot_queries(cfg, store), find=ReleaseInputs(release))
    computed = features.compute(judged.queries, judged.query_index, judged.pin_index, locales)
    exact = open_release(store, release)
    pin_ids = judged.table["pin_id"].to_pylist()
    systems, cosines = {}, {}
    with tempfile.TemporaryDirectory() as temp:
        for name, (backend_name, kind) in SYSTEMS.items():
            serve = cfg.serve.model_copy(update={"query_encoder_backend": backend_name})
            backend = choose_backend(
                local_folder(store, student_output), serve, release.student_id, Path(temp), release.dim
            )
            queries = np.concatenate([backend.encode([query]) for query in judged.queries])
            if kind is None:
                place = {pin_id: row for row, pin_id in enumerate(exact["pin_id"].to_pylist())}
                rows = np.array([place.get(pin_id, -1) for pin_id in pin_ids])
                pins = matrix_or_zero(exact["embedding"])[rows]
                wanted = queries
            else:
                opened = PinStore.open(store, release, Path(temp), kind)
                rows = opened.rows(pin_ids)
                pins = opened.vectors(np.maximum(rows, 0))
            pins[rows < 0] = 0.0
            systems[name] = graded(student.score(queries[judged.query_index], pins, computed, locales))
            cosines[name] = float(np.einsum("nd,nd->n", queries, wanted).min())
    settings = EvaluationSettings(
        samples=cfg.evaluate.num_resamples, seed=cfg.seed,
        rating_of_grade=rating_of_grade(getattr(cfg.ingest.human_labels, "grade_map", None)), slice_columns=(),
    )  # fmt: skip
    evaluation = evaluate_systems(judged.table, systems, settings)
    rows_of: dict[str, Any] = {"num_queries": evaluation.num_queries, "num_pairs": evaluation.num_pairs}
    for name in SYSTEMS:
        points = {metric: round(evaluation.points[name][metric], 5) for metric in METRICS}
        against = {metric: evaluation.difference(name, "float32", metric) for metric in METRICS}
        rows_of[name] = points | {"lowest_query_cosine": round(cosines[name], 5)}
        if name != "float32":
            rows_of[name]["difference"] = {
                metric: [None if bound is None else round(bound, 5) for bound in interval]
                for metric, interval in against.items()
            }
    return rows_of


if __name__ == "__main__":
    main()
