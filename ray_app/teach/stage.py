"""Fine-tune the teacher on human labels with Ray Train."""

from functools import partial

import numpy as np
import pyarrow as pa

from ray_app.config import Config, TeachConfig
from ray_app.errors import UserError
from ray_app.ledger.content_key import content_key
from ray_app.manifest import Manifest, StageRun, read_output, require_output
from ray_app.models.checkpoint import model_files
from ray_app.models.head import FeatureScaler
from ray_app.models.sources import model_identity
from ray_app.storage import Storage
from ray_app.teach.catalogue import Catalogue
from ray_app.teach.pairs import LabelledPairs, load_catalogue
from ray_app.teach.splits import queries_of, split_queries
from ray_app.training.examples import Examples, matrix_of
from ray_app.training.stage import train_on_ray
from ray_app.zero_shot.stage import zero_shot_tower

VERSION = 1


def build_teacher(cfg: TeachConfig, scaler: FeatureScaler) -> object:
    """The untrained teacher; imported late, since this runs in the training workers."""
    from ray_app.models.cross_encoder import CrossEncoder

    return CrossEncoder.from_base(cfg, scaler)


def run(cfg: Config, store: Storage) -> Manifest:
    """Write the `teacher` model and the table `splits`."""
    labels = require_output(store, "ingest", "human_labels")
    catalogue, _ = load_catalogue(cfg, store)
    pairs = LabelledPairs.of(catalogue, read_output(store, labels), cfg.teach.target_smoothing)
    if len(pairs.queries) < 3:
        raise UserError(
            f"ingest.human_labels has {len(pairs.queries)} queries; a teacher needs at least 3 (train, valid, test)"
        )
    run = StageRun(
        "teach", cfg, store, VERSION,
        # Only the labelled pins' texts count: a new pin elsewhere in the catalogue is no reason to train again.
        settings=[
            cfg.teach, cfg.features, cfg.pin_text, cfg.seed,
            model_identity(cfg.teach.base_model, cfg.teach.revision), _content(catalogue, pairs),
        ],
        inputs=[labels],
    )  # fmt: skip
    if run.finished:
        return run.finished
    splits = split_queries(pairs.queries, cfg.teach.test_share, cfg.teach.valid_share, cfg.seed)
    run.write_table("splits", splits)
    folder = f"models/teacher/{run.fingerprint}"
    files = model_files(store, folder)
    if files is None:
        _train(cfg, store, catalogue, pairs, splits, run.fingerprint, folder)
        files = model_files(store, folder)
    assert files is not None
    run.add_output("teacher", folder, files)
    history = store.read_json(f"{folder}/history.json")
    split_of = dict(zip(splits["query"].to_pylist(), splits["split"].to_pylist(), strict=True))
    num = {
        name: sum(split_of[pairs.queries[i]] == name for i in pairs.query_index) for name in ("train", "valid", "test")
    }
    return run.finish(
        counts={"rows_in": len(pairs.query_index), "rows_out": len(pairs.query_index)}
        | {f"{name}_pairs": count for name, count in num.items()},
        info={"history": history},
    )


def _train(
    cfg: Config, store: Storage, catalogue: Catalogue, pairs: LabelledPairs, splits: pa.Table, fingerprint: str, folder: str
) -> None:  # fmt: skip
    vectors = zero_shot_tower(cfg, store).encode(pairs.queries)
    cosine = catalogue.cosine_features()
    if cfg.teach.use_features:
        features = catalogue.teacher_features(cosine, pairs.queries, vectors, pairs.query_index, pairs.pin_index)
    else:
        features = np.zeros((len(pairs.query_index), 0), np.float32)
    examples = Examples(
        queries=pairs.table["query"].to_pylist(),
        pin_texts=[catalogue.pairs.rendered[row] for row in pairs.pin_index],
        features=features,
        targets=matrix_of(pairs.table["target"]),
        weights=np.ones(len(features), np.float32),
    )
    part = {
        name: examples.rows(np.flatnonzero([q in queries_of(splits, name) for q in examples.queries]))
        for name in ("train", "valid")
    }
    scaler = FeatureScaler.fit(part["train"].features)
    train_on_ray(
        name=f"teach-{fingerprint}",
        build=partial(build_teacher, cfg.teach, scaler),
        train=part["train"],
        valid=part["valid"],
        cfg=cfg.teach.train,
        seed=cfg.seed,
        store=store,
        model_folder=folder,
        extra_files={"cosine_features.json": cosine.to_json()},
    )


def _content(catalogue: Catalogue, pairs: LabelledPairs) -> str:
    keys = catalogue.pin_keys(pairs.pin_index.tolist())
    return content_key("labelled pins", [keys[row] for row in pairs.pin_index.tolist()])
