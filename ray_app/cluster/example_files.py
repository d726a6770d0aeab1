"""Training examples in files, written once by tasks: shuffled over the files, and within each.

Where an example lies follows from its own number and the number of files alone, so any cluster writes the same files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.base.config import TrainConfig
from ray_app.base.hashing import Keys, buckets_of_hashes, text_keys
from ray_app.base.storage import Storage
from ray_app.cluster.buckets import shuffle
from ray_app.cluster.train_job import ExampleFiles
from ray_app.models.head import FeatureScaler
from ray_app.tables.buckets import choose_num_buckets
from ray_app.training.examples import Examples

ROWS_PER_FILE = 8192  # of examples that are streamed: windows are made of such files
_ORDER, _IS_VALID = "__order__", "__is_valid__"  # internal columns


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """Examples with what decides where each is written."""

    examples: Examples
    order: Keys  # (N,) a random number of each, distinct
    is_valid: NDArray[np.bool_]  # (N,) True: not trained on, but to choose the epoch by


@dataclass(frozen=True, kw_only=True)
class WrittenExamples:
    """What has been written."""

    files: ExampleFiles
    num_valid: int
    scaler: FeatureScaler  # of the training examples
    locales: list[str]  # of the training examples, sorted

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return sum(self.files.train_rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class _File:
    train_rows: int
    train_weight: float
    valid_rows: int
    features: tuple[NDArray[np.float64], NDArray[np.float64]]  # sums of values and of squares
    locales: set[str]


def num_files(num_rows: int, loops: Sequence[TrainConfig]) -> int:
    """One, or a power of two of about `ROWS_PER_FILE` rows if there are more than a training holds in memory."""
    window = min(loop.shuffle_window_rows for loop in loops)
    if num_rows <= window:
        return 1
    return choose_num_buckets(num_rows, min(ROWS_PER_FILE, window))


def write_examples(
    store: Storage, folder: str, items: Sequence[Any], placed: Callable[[Any], Placed], num_parts: int,
    loops: Sequence[TrainConfig], num_features: int, in_tasks: bool = False,
) -> WrittenExamples:  # fmt: skip
    """Write the examples of some items, such as buckets, for trainings that read all of them.

    Args:
        placed: Makes an item's examples. Runs in a task.
        num_parts: Of `num_files`.
        loops: Of the trainings: if one of them compares the pins of a query, a query's examples are in one file.
        num_features: Of each example.
        in_tasks: Make the examples in tasks even if there is one part.
    """
    by_query = any(loop.margin_mse_weight > 0 for loop in loops)
    written = shuffle(
        items,
        partial(_split, placed, num_parts, by_query),
        partial(_write, store, folder, num_features),
        num_parts,
        _schema(num_features),
        items_in_tasks=in_tasks,
    )
    total, squares = (np.sum([part.features[i] for part in written], axis=0) for i in range(2))
    num_train = sum(part.train_rows for part in written)
    used = [number for number, part in enumerate(written) if part.train_rows or number == 0]
    return WrittenExamples(
        files=ExampleFiles(
            train=[_path(folder, "train", number) for number in used],
            train_rows=[written[number].train_rows for number in used],
            train_weight=sum(part.train_weight for part in written),
            valid=[_path(folder, "valid", number) for number in range(num_parts)],
            calibrate_on=[],
        ),
        num_valid=sum(part.valid_rows for part in written),
        scaler=FeatureScaler.of_sums(num_train, total, squares),
        locales=sorted(set().union(*(part.locales for part in written))),
    )


def _split(placed: Callable[[Any], Placed], num_parts: int, by_query: bool, item: Any) -> tuple[pa.Table, NDArray[Any]]:
    found = placed(item)
    table = found.examples.to_table()
    table = table.append_column(_ORDER, pa.array(found.order, pa.uint64()))
    table = table.append_column(_IS_VALID, pa.array(found.is_valid, pa.bool_()))
    keys = text_keys(found.examples.queries, "query") if by_query else found.order
    return table.cast(_schema(found.examples.features.shape[1])), buckets_of_hashes(keys, num_parts)


def _write(store: Storage, folder: str, num_features: int, number: int, rows: pa.Table) -> _File:
    rows = rows.sort_by(_ORDER)
    is_valid = rows[_IS_VALID].to_numpy()
    examples = Examples.from_table(rows.drop_columns([_ORDER, _IS_VALID]))
    train = examples.rows(np.flatnonzero(~is_valid))
    valid = examples.rows(np.flatnonzero(is_valid))
    for name, some in (("train", train), ("valid", valid)):
        store.write_table(_path(folder, name, number), some.to_table())
    features = train.features.reshape(-1, num_features).astype(np.float64)
    return _File(
        train_rows=len(train), train_weight=float(train.weights.sum(dtype=np.float64)), valid_rows=len(valid),
        features=(features.sum(0), (features**2).sum(0)), locales=set(train.locales or ()),
    )  # fmt: skip


def _path(folder: str, name: str, number: int) -> str:
    return f"{folder}/{name}-{number:05d}.parquet"


def _schema(num_features: int) -> pa.Schema:
    nothing = Examples(
        queries=[], pin_texts=[], features=np.zeros((0, num_features), np.float32), targets=np.zeros((0, 5), np.float32),
        weights=np.zeros(0, np.float32), locales=[],
    )  # fmt: skip
    schema = nothing.to_table().schema
    return schema.append(pa.field(_ORDER, pa.uint64())).append(pa.field(_IS_VALID, pa.bool_()))


def with_calibration(store: Storage, folder: str, files: ExampleFiles, pairs: Examples | None) -> ExampleFiles:
    """The same files with the pairs that temperatures are fitted on; None: the validation examples."""
    if pairs is None:
        return replace(files, calibrate_on=files.valid)
    path = f"{folder}/calibrate_on.parquet"
    store.write_table(path, pairs.to_table())
    return replace(files, calibrate_on=[path])
