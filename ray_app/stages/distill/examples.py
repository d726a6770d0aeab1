"""Training examples of the student: soft labels bucket by bucket, and human labels beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.columns import matrix_of
from ray_app.base.content_key import content_key
from ray_app.base.hashing import Keys, text_keys, uniform
from ray_app.base.storage import Storage
from ray_app.base.text import query_group
from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.cluster.example_files import Placed
from ray_app.features.catalogue import Catalogue, index_queries
from ray_app.features.query_table import QueryTable
from ray_app.features.student import QUERY_LOCALE_NAMES, StudentFeatures
from ray_app.models.calibration import Calibration
from ray_app.tables.buckets import read_bucket
from ray_app.tables.manifest import Output, read_output
from ray_app.training.examples import Examples
from ray_app.training.labelled_pairs import LabelledPairs
from ray_app.training.splits import of_queries, queries_of

_UNKNOWN_LOCALE_SHARE = 0.05  # guessed
_MAX_VALID = 200_000  # pairs that choose the epoch; each worker holds them
_LEFT_OUT, _NO_LOCALE, _FEW_VALID = range(3)  # salts of what is drawn by an example's number


@dataclass(frozen=True, kw_only=True)
class SoftExamples:
    """Soft-labelled pairs as examples. Picklable: tasks make those of the buckets that they work on.

    Args:
        tables: All pins.
        soft_labels: Schema SOFT_LABELS, by pin.
        queries: Their distinct queries (`QueryTable`).
        calibration: Of the teacher; None: it has none.
        is_valid: Which queries choose the epoch.
        share: Of the pairs that are taken; those of a smaller share are among those of a larger one.
    """

    tables: CatalogueTables
    soft_labels: Output
    queries: Output
    calibration: Calibration | None
    is_valid: "ValidQueries"
    share: float = 1.0

    def good(self, number: int) -> pa.Table:
        """The labels of a bucket that are no errors."""
        soft = read_bucket(self.tables.store, self.soft_labels, number)
        return soft.filter(pc.is_null(soft["error"]))

    def features(self, number: int) -> StudentFeatures:
        """Of the pins of a bucket."""
        store, cfg = self.tables.store, self.tables.cfg
        queries = QueryTable(read_output(store, self.queries))

        def read(_: Storage, table: Output, columns: list[str] | None) -> pa.Table:
            return read_bucket(store, table, number if table.buckets else 0, columns)

        texts = read(store, self.tables.pin_texts, None)
        catalogue = Catalogue.of_texts(cfg, texts, self.tables.corpus, queries.match_of)
        return StudentFeatures.load(catalogue, store, queries.vectors, read=read)

    def placed(self, number: int) -> Placed:
        """The examples of a bucket."""
        cfg, good = self.tables.cfg, self.good(number)
        order = example_keys("soft", good, cfg.seed)
        is_valid = self.is_valid.mask(good["query"].to_pylist())
        kept = uniform(_LEFT_OUT, order) < self.share
        expected = cfg.distill.validation_fraction * self.soft_labels.rows * self.share
        kept &= ~is_valid | (uniform(_FEW_VALID, order) * expected < _MAX_VALID)
        rows = np.flatnonzero(kept)
        features = self.features(number)
        examples = _soft_examples(features, good.take(pa.array(rows)), self.calibration)
        placed = Placed(examples=examples, order=order[rows], is_valid=is_valid[rows])
        return some_without_locale(placed, features.names)

    def some_pins(self) -> tuple[pa.Table, NDArray[np.int64]]:
        """Texts of the pins of the first bucket with labels, a random sample of all, and the rows of those with labels."""
        store, number = self.tables.store, 0
        while number < self.soft_labels.num_buckets - 1 and not self.good(number).num_rows:
            number += 1
        texts = read_bucket(store, self.tables.pin_texts, number)
        labelled = pc.is_in(texts["pin_id"], value_set=self.good(number)["pin_id"].unique())
        return texts, np.flatnonzero(labelled.to_numpy())


def _soft_examples(features: StudentFeatures, good: pa.Table, calibration: Calibration | None) -> Examples:
    """Pairs with the calibrated teacher's grades."""
    queries, query_index = index_queries(good["query"].to_pylist())
    pin_index = features.catalogue.pairs.pin_rows(good["pin_id"].to_pylist())
    locales = good["locale"].to_pylist()
    probs = matrix_of(good["probs"])
    probs = probs if calibration is None else calibration.apply(probs, locales)
    return _examples_of(features, queries, query_index, pin_index, locales, probs, 1.0)


def human_examples(
    features: StudentFeatures, labels: pa.Table, splits: pa.Table, weight: float | None = None, split: str = "train",
    smoothing: float | None = None,
) -> Placed:  # fmt: skip
    """Human-labelled pairs of a split's queries with the raters' grades, to train on; none if their weight is 0.

    Args:
        features: Of the labelled pins.
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
    examples = _examples_of(
        features, human.queries, human.query_index, human.pin_index, human.table["locale"].to_pylist(),
        matrix_of(human.table["target"]), weight,
    )  # fmt: skip
    order = example_keys("human", human.table, cfg.seed)
    return Placed(examples=examples, order=order, is_valid=np.zeros(len(order), bool))


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


def example_keys(kind: str, pairs: pa.Table, seed: int) -> Keys:
    """A number of each pair (query, locale, pin_id), whatever else is in the table. Shape (num_pairs,)."""
    columns = (pairs[name].to_pylist() for name in ("query", "locale", "pin_id"))
    texts = ["\0".join(map(str, row)) for row in zip(*columns, strict=True)]
    return text_keys(texts, f"{kind} example {seed}")


@dataclass(frozen=True)
class ValidQueries:
    """Which queries choose the best epoch; near-duplicates fall together.

    Human-labelled queries stay on the side that the splits have them on: else early stopping would see queries that were
    trained on, and calibration queries that chose nothing.

    Args:
        fraction: Of the other queries.
        seed: Of the run.
        splits: Of human-labelled queries; None: there are none.
    """

    fraction: float
    seed: int
    splits: pa.Table | None = None

    @cached_property
    def _fixed(self) -> dict[str, bool]:
        if self.splits is None:
            return {}
        return {query_group(q): name == "valid" for q, name in zip(*self.splits.to_pydict().values(), strict=True)}

    def mask(self, queries: Sequence[str]) -> NDArray[np.bool_]:
        """Shape (num_queries,)."""
        bound = f"{int(self.fraction * 16**8):08x}"
        chooses = {}
        for query in set(queries):
            group = query_group(query)
            drawn = content_key(f"valid {self.seed}", group)[:8] < bound
            chooses[query] = self._fixed.get(group, drawn)
        return np.array([chooses[query] for query in queries], bool)


def some_without_locale(placed: Placed, names: Sequence[str]) -> Placed:
    """The same, but the locale of a few training queries is unknown to the features.

    Logs name the locale of each query; requests may not. A student that never saw an unknown one would take every pin for
    one in a foreign language.
    """
    columns = np.flatnonzero([name in QUERY_LOCALE_NAMES for name in names])
    rows = np.flatnonzero((uniform(_NO_LOCALE, placed.order) < _UNKNOWN_LOCALE_SHARE) & ~placed.is_valid)
    features = placed.examples.features.copy()
    features[np.ix_(rows, columns)] = 0.0
    return replace(placed, examples=replace(placed.examples, features=features))
