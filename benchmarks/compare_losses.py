"""What each loss, and training cut vectors too, is worth on the demo world's truth (docs/training.md, docs/models.md).

    python benchmarks/compare_losses.py [--config configs/demo.yaml] [--seeds 17,1,2]

Needs a finished `label` stage (make run). Each teacher learns the human labels, each student the same soft labels; all
else is the config's. `nested` is the student with nested_dims; it and the plain one are measured with vectors cut to half
and a quarter too. Means over the seeds, with their standard deviation: differences below two of them say little.
"""

import argparse
import logging
import os
from typing import Any

import numpy as np
import torch
from _bench import finish

from ray_app.config import Config, TrainConfig, load_config
from ray_app.distill.features import StudentFeatures
from ray_app.distill.stage import human_examples, soft_examples, student_jobs
from ray_app.evaluate.evaluation import evaluate_systems
from ray_app.evaluate.measured import EvaluationSettings
from ray_app.evaluate.systems import graded
from ray_app.ingest.stage import load_human_labels
from ray_app.manifest import read_output, require_output
from ray_app.models.bi_encoder import cut_vectors
from ray_app.storage import Storage
from ray_app.teach.pairs import LabelledPairs, load_catalogue
from ray_app.teach.stage import teacher_jobs
from ray_app.training.examples import Examples
from ray_app.training.loop import Worker, fit, predict
from ray_app.training.stage import TrainJob

ARMS: dict[str, dict[str, Any]] = {
    "soft": {},
    "hard": {"loss": "hard"},
    "ordinal": {"loss": "ordinal"},
    "kl, temperature 2": {"loss": "kl", "loss_temperature": 2.0},
    "soft + margin 0.1": {"margin_weight": 0.1},
}
FIGURES = ("accuracy", "auroc_3", "auroc_5", "ndcg@20", "p@8", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seeds", default="17,1,2")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(os.cpu_count() or 1)
    cfg = load_config(args.config, args.set)
    store = Storage(cfg.output)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    assert cfg.evaluate.human_labels is not None, "the config needs evaluate.human_labels"
    catalogue, _ = load_catalogue(cfg, store)
    truth, _ = load_human_labels(cfg, cfg.evaluate.human_labels, catalogue.pin_texts["pin_id"])
    judged = LabelledPairs.of(catalogue, truth, smoothing=0.0)
    labels = read_output(store, require_output(store, "ingest", "human_labels"))
    splits = read_output(store, require_output(store, "teach", "splits"))
    pairs = LabelledPairs.of(catalogue, labels, cfg.teach.target_smoothing)
    features = StudentFeatures.load(catalogue, store)
    taught, _ = soft_examples(features, read_output(store, require_output(store, "label", "soft_labels")))
    human = human_examples(features, labels, splits)
    locales = judged.table["locale"].to_pylist()
    seen = features.compute(judged.queries, judged.query_index, judged.pin_index, locales)
    test = Examples(
        queries=judged.table["query"].to_pylist(),
        pin_texts=[catalogue.pairs.rendered[row] for row in judged.pin_index],
        features=seen, targets=np.full((len(seen), 5), 0.2, np.float32), weights=np.ones(len(seen), np.float32),
    )  # fmt: skip
    table: dict[str, dict[str, Any]] = {}
    dims = [cfg.distill.dim, cfg.distill.dim // 2, cfg.distill.dim // 4]
    nested = cfg.model_copy(update={"distill": cfg.distill.model_copy(update={"nested_dims": dims[1:]})})
    for kind in ("teacher", "student"):
        for name, change in (ARMS | ({"nested": {}} if kind == "student" else {})).items():
            runs: dict[str, list[dict[str, float]]] = {}
            for seed in seeds:
                if kind == "teacher":
                    job = teacher_jobs(cfg, store, catalogue, pairs, splits, "unused")[-1]
                    shown = _without_features(test) if not cfg.teach.use_features else test
                else:
                    own = nested if name == "nested" else cfg
                    jobs, _, _ = student_jobs(own, features.names, taught, human, "unused", ("student",))
                    job, shown = jobs["student"], test
                model = train_job(job, job.cfg.model_copy(update=change), seed)
                arm = f"{kind}: {name}"
                runs.setdefault(arm, []).append(measure(cfg, judged, predict(model, shown, job.cfg)))
                if kind == "student" and name in ("soft", "nested"):
                    for dim in dims[1:]:
                        runs.setdefault(f"{arm}, cut to {dim}", []).append(
                            measure(cfg, judged, _predict_cut(model, shown, dim))
                        )
            for arm, found in runs.items():
                table[arm] = {
                    figure: [round(float(f([run[figure] for run in found])), 4) for f in (np.mean, np.std)]
                    for figure in FIGURES
                }
                print(f"{arm:30}", table[arm], flush=True)
    finish(
        "compare_losses",
        table["student: soft"]["accuracy"][0] / table["student: hard"]["accuracy"][0],
        config=args.config, seeds=seeds, mean_and_sd=table, pairs=len(seen),
    )  # fmt: skip


def train_job(job: TrainJob, cfg: TrainConfig, seed: int) -> Any:
    """The trained model."""
    torch.manual_seed(seed)
    model: Any = job.build()
    fit(model, job.train, job.valid, cfg, seed, Worker())
    if hasattr(model, "_states"):
        model._states = None  # the test texts were not among those that passed through the frozen language model
    return model.eval()


def _predict_cut(model: Any, examples: Examples, dim: int) -> np.ndarray:
    """Probabilities from vectors cut to `dim`, (N, 5)."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(examples), 256):
            part = examples.rows(np.arange(start, min(start + 256, len(examples))))
            batch = model.prepare(part.queries, part.pin_texts, part.features)
            sides = [
                model.embed(name, batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"])[batch[f"{name}_rows"]]
                for name in ("query", "pin")
            ]
            logits = model.score(*(cut_vectors(side, dim) for side in sides), batch["features"])
            found.append(logits.softmax(-1).numpy())
    return np.concatenate(found)


def _without_features(examples: Examples) -> Examples:
    return Examples(
        queries=examples.queries, pin_texts=examples.pin_texts, features=examples.features[:, :0],
        targets=examples.targets, weights=examples.weights,
    )  # fmt: skip


def measure(cfg: Config, judged: LabelledPairs, probs: np.ndarray) -> dict[str, float]:
    """FIGURES of a model's probabilities (num_pairs, 5)."""
    settings = EvaluationSettings(samples=1, confidence=0.95, seed=cfg.seed)
    found = evaluate_systems(judged.table, {"model": graded(probs)}, settings)
    (row,) = found.rows()
    return {name: row[name] for name in FIGURES if name in row} | {"ece": found.details["model"]["ece"]}


if __name__ == "__main__":
    main()
