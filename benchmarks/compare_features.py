"""What the student's features are worth on the demo world's truth: each group left out in turn (docs/vectors.md).

    python benchmarks/compare_features.py [--config configs/demo.yaml] [--seeds 17,1,2]

Needs a finished `label` stage of a config with `engagement` and `graph` (make run). A group is left out by zeros, in
training and in the test. `student` and `feature_student`, alike but for the towers. Means over the seeds, with their
standard deviation.
"""

import argparse
import logging
import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from _bench import finish
from compare_losses import FIGURES, measure, train_job

from ray_app.config import load_config
from ray_app.distill.features import LOCALE_NAMES, StudentFeatures
from ray_app.distill.stage import human_examples, soft_examples, student_jobs
from ray_app.engagement.rates import RATE_NAMES
from ray_app.ingest.stage import load_human_labels
from ray_app.manifest import read_output, require_output
from ray_app.storage import Storage
from ray_app.teach.pairs import LabelledPairs, load_catalogue
from ray_app.training.examples import Examples
from ray_app.training.loop import predict

GROUPS = {
    "engagement": ("engagement_cosine", "engagement_known"),
    "rates": (*RATE_NAMES, "rates_known"),
    "graph": ("graph_cosine", "graph_known"),
    "locale": LOCALE_NAMES,
}


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
    features = StudentFeatures.load(catalogue, store)
    taught, _ = soft_examples(features, read_output(store, require_output(store, "label", "soft_labels")))
    labels = read_output(store, require_output(store, "ingest", "human_labels"))
    human = human_examples(features, labels, read_output(store, require_output(store, "teach", "splits")))
    locales = judged.table["locale"].to_pylist()
    seen = features.compute(judged.queries, judged.query_index, judged.pin_index, locales)
    test = Examples(
        queries=judged.table["query"].to_pylist(),
        pin_texts=[catalogue.pairs.rendered[row] for row in judged.pin_index],
        features=seen, targets=np.full((len(seen), 5), 0.2, np.float32), weights=np.ones(len(seen), np.float32),
    )  # fmt: skip
    arms: dict[str, list[str]] = {"all": []} | {f"without {name}": [name] for name in GROUPS}
    arms["without all four"] = list(GROUPS)
    table: dict[str, Any] = {}
    for kind in ("student", "feature_student"):
        for arm, groups in arms.items():
            names = {name for group in groups for name in GROUPS[group]}
            kept = np.array([name not in names for name in features.names], np.float32)
            mine, theirs, shown = (replace(part, features=part.features * kept) for part in (taught, human, test))
            found = []
            for seed in seeds:
                jobs, _, _ = student_jobs(cfg, features.names, mine, theirs, "unused", (kind,))
                model = train_job(jobs[kind], jobs[kind].cfg, seed)
                found.append(measure(cfg, judged, predict(model, shown, jobs[kind].cfg)))
            table[f"{kind}: {arm}"] = {
                figure: [round(float(f([run[figure] for run in found])), 4) for f in (np.mean, np.std)]
                for figure in FIGURES
            }
            print(f"{kind + ': ' + arm:40}", table[f"{kind}: {arm}"], flush=True)
    finish(
        "compare_features",
        table["student: all"]["accuracy"][0] / table["student: without all four"]["accuracy"][0],
        config=args.config, seeds=seeds, mean_and_sd=table, pairs=len(seen),
    )  # fmt: skip


if __name__ == "__main__":
    main()
