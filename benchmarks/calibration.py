"""Log loss and calibration errors of a finished run's models on its held-out pairs, with and without their temperatures.

    python benchmarks/calibration.py --config configs/chorus.yaml [--set output=runs/chorus]

Temperatures must not make probabilities worse on queries that they have not seen. The raw probabilities are computed back
from the calibrated ones.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
from _bench import finish

from ray_app.analysis.metrics.grading import log_loss, reliability_curve
from ray_app.analysis.metrics.judgments import JudgedLabels
from ray_app.analysis.metrics.systems import Models, score_systems
from ray_app.base.config import load_config
from ray_app.base.storage import Storage
from ray_app.cluster.encoders import zero_shot_queries
from ray_app.models.calibration import Calibration, expected_calibration_error
from ray_app.models.checkpoint import load_calibration
from ray_app.tables.manifest import Output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    cfg = load_config(args.config, args.set)
    store = Storage(cfg.output)
    found, models = JudgedLabels.of(cfg, store), Models.of(store)
    catalogue = found.catalogue(found.tables)
    judged = found.pairs(catalogue)
    features = found.tables.student_features(catalogue, zero_shot_queries(cfg, store))
    systems = score_systems(cfg, store, features, models, judged, found.calibration(catalogue))
    grades, locales = judged.table["grade"].to_numpy().astype(np.int64), judged.table["locale"].to_pylist()
    rows: list[dict[str, Any]] = []
    for name, output in _outputs(models).items():
        probs, temperatures = systems[name].probs, load_calibration(store, output)
        assert probs is not None
        for how, said in (("raw", _uncalibrated(probs, temperatures, locales)), ("calibrated", probs)):
            used = temperatures.temperatures if temperatures and how == "calibrated" else {}
            rows.append({"system": name, "probabilities": how, "temperatures": used} | _measure(said, grades))
            print(rows[-1])
    losses = np.array([row["log_loss"] for row in rows], np.float64).reshape(-1, 2)
    finish(
        f"calibration_{Path(args.config).stem}", float((losses[:, 1] / losses[:, 0]).max()), config=args.config,
        num_queries=len(judged.queries), num_pairs=len(grades), rows=rows,
        ratio_is="log loss calibrated / raw, of the model that gains least",
    )  # fmt: skip


def _outputs(models: Models) -> dict[str, Output]:
    return {"feature_only_student": models.feature_only_student, "student": models.student, "teacher": models.teacher}


def _uncalibrated(probs: np.ndarray, fitted: Calibration | None, locales: list[str]) -> np.ndarray:
    if fitted is None:
        return probs
    inverse = {key: 1.0 / value for key, value in fitted.temperatures.items()}
    back = Calibration(temperatures=inverse, pairs=fitted.pairs, ece_before=0.0, ece_after=0.0)
    return back.apply(probs, locales).astype(np.float64)


def _measure(probs: np.ndarray, grades: np.ndarray) -> dict[str, float]:
    hard = np.eye(5)[grades - 1]
    return {
        "log_loss": round(log_loss(probs, grades), 4),
        "ece_top_label": round(expected_calibration_error(probs, hard, np.ones(len(grades))), 4),
        "ece_3": round(reliability_curve(probs, grades, 3).error, 4),
    }


if __name__ == "__main__":
    main()
