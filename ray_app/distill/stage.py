"""Train the student on the teacher's soft labels with Ray Train, and the feature-only student beside it."""

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.config import Config, DistillConfig
from ray_app.distill.features import student_features
from ray_app.errors import UserError
from ray_app.features import FEATURES_VERSION
from ray_app.ledger.content_key import content_key
from ray_app.manifest import Manifest, Output, StageRun, read_output, require_output
from ray_app.models.checkpoint import model_files
from ray_app.models.head import FeatureScaler
from ray_app.models.sources import model_identity
from ray_app.storage import Storage
from ray_app.teach.catalogue import Catalogue, index_queries
from ray_app.teach.pairs import LabelledPairs, load_catalogue
from ray_app.teach.splits import queries_of
from ray_app.text import query_group
from ray_app.training.examples import Examples, matrix_of
from ray_app.training.stage import train_on_ray

VERSION = 1


def build_student(cfg: DistillConfig, scaler: FeatureScaler, towers: bool) -> object:
    """The untrained student, with towers or features only; imported late, since this runs in the training workers."""
    from ray_app.models.bi_encoder import BiEncoder

    return BiEncoder.from_base(cfg, scaler) if towers else BiEncoder.features_only(cfg, scaler)


def run(cfg: Config, store: Storage) -> Manifest:
    """Write the models `student` and `feature_student`."""
    soft_labels = require_output(store, "label", "soft_labels")
    human_labels = require_output(store, "ingest", "human_labels")
    splits = require_output(store, "teach", "splits")
    pin_texts = require_output(store, "enrich", "pin_texts")
    pins = require_output(store, "ingest", "pins")
    distill = cfg.distill
    run = StageRun(
        "distill", cfg, store, VERSION,
        settings=[
            distill, cfg.features, cfg.pin_text, cfg.seed, FEATURES_VERSION,
            model_identity(distill.base_model, distill.revision),
        ],
        inputs=[soft_labels, human_labels, splits, pin_texts, pins],
    )  # fmt: skip
    if (finished := run.finished) is not None:
        return finished
    train, valid, skipped = _examples(cfg, store, soft_labels, human_labels, splits, read_output(store, pins))
    scaler = FeatureScaler.fit(train.features)
    history = {}
    for name, towers, loop in (("student", True, distill.train), ("feature_student", False, distill.feature_train)):
        folder = f"models/{name}/{run.fingerprint}"
        if model_files(store, folder) is None:
            train_on_ray(
                name=f"distill-{name}-{run.fingerprint}",
                build=partial(build_student, distill, scaler, towers),
                train=train,
                valid=valid,
                cfg=loop,
                seed=cfg.seed,
                store=store,
                model_folder=folder,
            )
        files = model_files(store, folder)
        assert files is not None
        run.add_output(name, folder, files)
        history[name] = store.read_json(f"{folder}/history.json")
    used = len(train) + len(valid)
    return run.finish(
        counts={
            "rows_in": used + skipped,
            "rows_out": used,
            "train_pairs": len(train),
            "valid_pairs": len(valid),
            "error_rows": skipped,
        },
        info={"history": history},
    )


def _examples(
    cfg: Config, store: Storage, soft_labels: Output, human_labels: Output, splits: Output, pins: pa.Table
) -> tuple[Examples, Examples, int]:
    """Training pairs, validation pairs, and how many soft labels were errors."""
    catalogue, _ = load_catalogue(cfg, store)
    soft = read_output(store, soft_labels)
    good = soft.filter(pc.is_null(soft["error"]))
    if good.num_rows == 0:
        raise UserError(
            "label: no pair has a soft label, so there is nothing to distill; see the column `error` of soft_labels"
        )
    queries, query_index = index_queries(good["query"].to_pylist())
    pin_index = catalogue.pairs.pin_rows(good["pin_id"].to_pylist())
    taught = _examples_of(catalogue, pins, queries, query_index, pin_index, matrix_of(good["probs"]), 1.0)
    valid_queries = _valid_queries(queries, cfg.distill.valid_share, cfg.seed)
    is_valid = np.array([query in valid_queries for query in taught.queries], bool)
    train = taught.rows(np.flatnonzero(~is_valid))
    if cfg.distill.human_label_weight > 0:
        human = LabelledPairs.of(catalogue, read_output(store, human_labels), cfg.teach.target_smoothing)
        examples = _examples_of(
            catalogue, pins, human.queries, human.query_index, human.pin_index, matrix_of(human.table["target"]),
            cfg.distill.human_label_weight,
        )  # fmt: skip
        train_queries = queries_of(read_output(store, splits), "train")
        chosen = np.flatnonzero([query in train_queries for query in examples.queries])
        train = Examples.concatenate([train, examples.rows(chosen)])
    return train, taught.rows(np.flatnonzero(is_valid)), soft.num_rows - good.num_rows


def _examples_of(
    catalogue: Catalogue, pins: pa.Table, queries: list[str], query_index: np.ndarray, pin_index: np.ndarray,
    targets: np.ndarray, weight: float,
) -> Examples:  # fmt: skip
    return Examples(
        queries=[queries[i] for i in query_index],
        pin_texts=[catalogue.pairs.rendered[row] for row in pin_index],
        features=student_features(catalogue, pins, queries, query_index, pin_index),
        targets=targets,
        weights=np.full(len(query_index), weight, np.float32),
    )


def _valid_queries(queries: list[str], share: float, seed: int) -> set[str]:
    """Queries kept for choosing the best epoch; near-duplicates fall together."""
    bound = f"{int(share * 16**8):08x}"
    return {query for query in queries if content_key(f"valid {seed}", query_group(query))[:8] < bound}
