"""Train the student on the teacher's soft labels with Ray Train, and the feature-only student beside it."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.config import Config, DistillConfig
from ray_app.distill.features import student_features
from ray_app.errors import UserError
from ray_app.features import FEATURES_VERSION
from ray_app.ledger.content_key import content_key
from ray_app.manifest import Drift, Manifest, StageRun, read_output, require_output
from ray_app.models.checkpoint import model_files
from ray_app.models.head import FeatureScaler
from ray_app.models.sources import model_identity
from ray_app.storage import Storage
from ray_app.teach.catalogue import Catalogue, index_queries
from ray_app.teach.pairs import LabelledPairs, load_catalogue
from ray_app.teach.splits import queries_of
from ray_app.text import query_group
from ray_app.training.examples import Examples, matrix_of
from ray_app.training.stage import TrainJob, train_on_ray

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
        drift=Drift(pin_texts=pin_texts, inputs=("pin_texts", "pins"), max_share=cfg.retrain.max_changed_share),
    )  # fmt: skip
    if (finished := run.finished) is not None:
        return finished
    catalogue, _ = load_catalogue(cfg, store)
    vectors = read_output(store, pins, ["pin_id", *cfg.features.named_vectors])
    taught, skipped = soft_examples(catalogue, vectors, read_output(store, soft_labels))
    human = human_examples(cfg, catalogue, vectors, read_output(store, human_labels), read_output(store, splits))
    jobs, num_train, num_valid = student_jobs(cfg, taught, human, f"models/{{name}}/{run.fingerprint}")
    train_on_ray(f"distill-{run.fingerprint}", list(jobs.values()), cfg.seed, store)
    history = {}
    for name, job in jobs.items():
        files = model_files(store, job.model_folder)
        assert files is not None
        run.add_output(name, job.model_folder, files)
        history[name] = store.read_json(f"{job.model_folder}/history.json")
    used = num_train + num_valid
    return run.finish(
        counts={
            "rows_in": used + skipped,
            "rows_out": used,
            "train_pairs": num_train,
            "valid_pairs": num_valid,
            "error_rows": skipped,
        },
        info={"history": history},
    )


def student_jobs(
    cfg: Config, taught: Examples, human: Examples, folder: str, names: Sequence[str] = ("student", "feature_student")
) -> tuple[dict[str, TrainJob], int, int]:
    """The training of a student, and of the feature-only student, the baseline without towers, on the same pairs.

    Args:
        cfg: The run's.
        taught: Soft-labelled pairs; a share of their queries chooses the best epoch. May be empty: then a share of the
            human-labelled queries does.
        human: Human-labelled pairs of training queries, trained on too.
        folder: Of the models, with `{name}` in it.
        names: Which of the two.

    Returns:
        name -> job, and the numbers of training and validation pairs.
    """
    distill = cfg.distill
    if len(taught):
        train, valid = _split(taught, distill.valid_share, cfg.seed)
        train = Examples.concatenate([train, human])
    else:
        train, valid = _split(human, 0.1, cfg.seed)
    scaler = FeatureScaler.fit(train.features)
    loops = {"student": distill.train, "feature_student": distill.feature_train}
    jobs = {
        name: TrainJob(
            build=partial(build_student, distill, scaler, name == "student"),
            train=train,
            valid=valid,
            cfg=loops[name],
            model_folder=folder.format(name=name),
        )
        for name in names
    }
    return jobs, len(train), len(valid)


def soft_examples(catalogue: Catalogue, pins: pa.Table, soft: pa.Table) -> tuple[Examples, int]:
    """Pairs with the teacher's grades, and how many soft labels were errors.

    Raises:
        UserError: all were.
    """
    good = soft.filter(pc.is_null(soft["error"]))
    if good.num_rows == 0:
        raise UserError(
            "label: no pair has a soft label, so there is nothing to distill; see the column `error` of soft_labels"
        )
    queries, query_index = index_queries(good["query"].to_pylist())
    pin_index = catalogue.pairs.pin_rows(good["pin_id"].to_pylist())
    examples = _examples_of(catalogue, pins, queries, query_index, pin_index, matrix_of(good["probs"]), 1.0)
    return examples, soft.num_rows - good.num_rows


def human_examples(cfg: Config, catalogue: Catalogue, pins: pa.Table, labels: pa.Table, splits: pa.Table) -> Examples:
    """Human-labelled pairs of the training queries with the raters' grades; none if their weight is 0."""
    human = LabelledPairs.of(catalogue, labels, cfg.teach.target_smoothing)
    examples = _examples_of(
        catalogue, pins, human.queries, human.query_index, human.pin_index, matrix_of(human.table["target"]),
        cfg.distill.human_label_weight,
    )  # fmt: skip
    chosen = queries_of(splits, "train") if cfg.distill.human_label_weight > 0 else set()
    return examples.rows(np.flatnonzero([query in chosen for query in examples.queries]))


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


def _split(examples: Examples, valid_share: float, seed: int) -> tuple[Examples, Examples]:
    """Training and validation pairs, split by query; near-duplicates fall together."""
    bound = f"{int(valid_share * 16**8):08x}"
    chooses = {q: content_key(f"valid {seed}", query_group(q))[:8] < bound for q in set(examples.queries)}
    is_valid = np.array([chooses[query] for query in examples.queries], bool)
    return examples.rows(np.flatnonzero(~is_valid)), examples.rows(np.flatnonzero(is_valid))
