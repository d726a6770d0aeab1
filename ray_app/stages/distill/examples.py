"""Training examples of the student, from soft labels and from human labels."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.columns import matrix_of
from ray_app.base.content_key import content_key
from ray_app.base.errors import UserError
from ray_app.base.text import query_group
from ray_app.features.catalogue import index_queries
from ray_app.features.student import StudentFeatures
from ray_app.models.calibration import Calibration
from ray_app.training.examples import Examples
from ray_app.training.labelled_pairs import LabelledPairs
from ray_app.training.splits import of_queries, queries_of


def soft_examples(features: StudentFeatures, soft: pa.Table, calibration: Calibration | None) -> tuple[Examples, int]:
    """Pairs with the calibrated teacher's grades, and how many soft labels were errors.

    Args:
        features: Of the run.
        soft: Schema SOFT_LABELS.
        calibration: Of the teacher; None: it has none.

    Raises:
        UserError: all were.
    """
    good = soft.filter(pc.is_null(soft["error"]))
    if good.num_rows == 0:
        raise UserError(
            "label: no pair has a soft label, so there is nothing to distill; see the column `error` of soft_labels"
        )
    queries, query_index = index_queries(good["query"].to_pylist())
    pin_index = features.catalogue.pairs.pin_rows(good["pin_id"].to_pylist())
    locales = good["locale"].to_pylist()
    probs = matrix_of(good["probs"])
    probs = probs if calibration is None else calibration.apply(probs, locales)
    examples = _examples_of(features, queries, query_index, pin_index, locales, probs, 1.0)
    return examples, soft.num_rows - good.num_rows


def human_examples(
    features: StudentFeatures, labels: pa.Table, splits: pa.Table, weight: float | None = None, split: str = "train",
    smoothing: float | None = None,
) -> Examples:  # fmt: skip
    """Human-labelled pairs of a split's queries with the raters' grades; none if their weight is 0.

    Args:
        features: Of the run.
        labels: Schema HUMAN_LABELS.
        splits: Of the queries.
        weight: Of each pair; None: `distill.human_label_weight`.
        split: Which.
        smoothing: Of the targets; None: `train_teacher.label_smoothing`.
    """
    cfg = features.catalogue.cfg
    weight = cfg.distill.human_label_weight if weight is None else weight
    chosen = queries_of(splits, split) if weight > 0 else set()
    smoothing = cfg.train_teacher.label_smoothing if smoothing is None else smoothing
    human = LabelledPairs.of(features.catalogue, of_queries(labels, chosen), smoothing)
    return _examples_of(
        features, human.queries, human.query_index, human.pin_index, human.table["locale"].to_pylist(),
        matrix_of(human.table["target"]), weight,
    )  # fmt: skip


def _examples_of(
    features: StudentFeatures, queries: list[str], query_index: np.ndarray, pin_index: np.ndarray,
    locales: list[str], targets: np.ndarray, weight: float,
) -> Examples:  # fmt: skip
    return Examples(
        queries=[queries[i] for i in query_index],
        # As served, a pair's own query among the engaged ones included; only the teacher's labels were made without it.
        pin_texts=[features.catalogue.pairs.rendered[row] for row in pin_index],
        locales=locales,
        features=features.compute(queries, query_index, pin_index, locales),
        targets=targets,
        weights=np.full(len(query_index), weight, np.float32),
    )


def split_by_query(
    examples: Examples, validation_fraction: float, seed: int, splits: pa.Table | None = None
) -> tuple[Examples, Examples]:
    """Training and validation pairs, split by query; near-duplicates fall together.

    Human-labelled queries stay on the side that `splits` has them on: else early stopping would see queries that were
    trained on, and calibration queries that chose nothing.
    """
    bound = f"{int(validation_fraction * 16**8):08x}"
    fixed = {}
    if splits is not None:
        fixed = {query_group(q): name == "valid" for q, name in zip(*splits.to_pydict().values(), strict=True)}
    chooses = {}
    for query in set(examples.queries):
        group = query_group(query)
        chooses[query] = fixed[group] if group in fixed else content_key(f"valid {seed}", group)[:8] < bound
    is_valid = np.array([chooses[query] for query in examples.queries], bool)
    return examples.rows(np.flatnonzero(~is_valid)), examples.rows(np.flatnonzero(is_valid))
