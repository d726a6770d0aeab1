"""The judged pairs that systems are measured on, and the settings of the measuring: the same for reports and experiments."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings, rating_of_grade
from ray_app.analysis.metrics.seen import Seen, seen_in_training
from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.text import normalize_query
from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.features.catalogue import Catalogue
from ray_app.sources.human_labels import load_human_labels
from ray_app.stages.enrich.engaged_queries import drop_engaged_queries
from ray_app.tables.manifest import Output, read_output, require_output
from ray_app.training.labelled_pairs import LabelledPairs
from ray_app.training.splits import of_queries, queries_of


@dataclass(frozen=True, kw_only=True)
class JudgedLabels:
    """Human labels of the queries that are measured."""

    labels: pa.Table  # schema HUMAN_LABELS
    num_unusable: int  # rows of the file that were no labels
    name: str  # of what is written about them
    content: str  # hash of the labels
    tables: CatalogueTables  # of the run, in whose texts the judged queries may occur
    all_labels: pa.Table  # of the run, for training too
    splits: pa.Table  # which of the run's queries train, choose and test
    inputs: list[Output]  # what all this was read from

    @classmethod
    def of(cls, cfg: Config, store: Storage) -> "JudgedLabels":
        """Those of `evaluate.human_labels`, or of the test split if there is none.

        Raises:
            UserError: there is no usable label, or a stage has not run.
        """
        labels_output, splits = (
            require_output(store, "ingest", "human_labels"),
            require_output(store, "train_teacher", "splits"),
        )
        tables = CatalogueTables.of(cfg, store)
        split_table, all_labels = read_output(store, splits), read_output(store, labels_output)
        name, num_unusable, path = "evaluate", 0, cfg.evaluate.human_labels
        if path is None:
            labels = of_queries(all_labels, queries_of(split_table, "test"))
        else:
            labels, quarantine = load_human_labels(cfg, path, tables.known)
            num_unusable, name = quarantine.num_rows, f"evaluate-{PurePosixPath(path).stem}"
        if labels.num_rows == 0:
            where = path or "the test split (train_teacher.test_fraction)"
            raise UserError(f"evaluate.human_labels: {where} has no usable label ({num_unusable} rows are unusable)")
        content = hashlib.sha256(json.dumps(labels.to_pylist(), sort_keys=True, default=str).encode()).hexdigest()
        return cls(
            labels=labels, num_unusable=num_unusable, name=name, content=content, tables=tables,
            all_labels=all_labels, splits=split_table, inputs=[*tables.outputs, labels_output, splits],
        )  # fmt: skip

    def catalogue(self, tables: CatalogueTables) -> Catalogue:
        """The labelled pins, with texts that hold none of the judged queries."""
        pin_ids = pa.chunked_array([*self.labels["pin_id"].chunks, *self.all_labels["pin_id"].chunks], pa.string())
        return without_queries(tables.pins(pc.unique(pin_ids).to_pylist()), self.labels)

    def pairs(self, catalogue: Catalogue) -> LabelledPairs:
        """The judged pairs."""
        return LabelledPairs.of(catalogue, self.labels, smoothing=0.0)

    def calibration(self, catalogue: Catalogue) -> LabelledPairs:
        """Human-labelled pairs of training queries, for systems that have a score and no grades."""
        train = of_queries(self.all_labels, queries_of(self.splits, "train", "valid"))
        return LabelledPairs.of(catalogue, train, smoothing=0.0)

    def seen_in_training(self, cfg: Config, store: Storage) -> Seen:
        """Judged queries that the run has met in training, near-duplicates included."""
        queries = {normalize_query(query) for query in self.labels["query"].to_pylist()}
        return seen_in_training(cfg, store, queries, self.splits, self.tables.pin_texts)


def without_queries(catalogue: Catalogue, labels: pa.Table) -> Catalogue:
    """The catalogue with texts that hold none of the labelled queries."""
    pin_texts = drop_engaged_queries(catalogue.pin_texts, set(labels["query"].to_pylist()))
    return catalogue if pin_texts.equals(catalogue.pin_texts) else catalogue.with_texts(pin_texts)


def evaluation_settings(cfg: Config) -> EvaluationSettings:
    """Settings that the run's metrics are measured with."""
    return EvaluationSettings(
        samples=cfg.evaluate.num_resamples,
        confidence_level=cfg.evaluate.confidence_level,
        seed=cfg.seed,
        rating_of_grade=rating_of_grade(getattr(cfg.ingest.human_labels, "grade_map", None)),
    )
