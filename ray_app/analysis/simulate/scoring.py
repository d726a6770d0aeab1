"""Both arms' scores of the candidates of some queries, as they would be served."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.cluster.catalogue_tables import load_catalogue
from ray_app.cluster.encoders import zero_shot_queries
from ray_app.demo.facts import Codes
from ray_app.features.catalogue import index_queries
from ray_app.features.student import StudentFeatures
from ray_app.models.head import expected_grade
from ray_app.models.student import Student
from ray_app.tables.manifest import Output


@dataclass(frozen=True, kw_only=True)
class ScoringRequest:
    """Queries to score."""

    texts: list[str]  # num_queries normalised queries
    locales: list[str]  # of each
    query_vectors: np.ndarray  # (num_queries, d) by the student's query tower
    zero_shot: np.ndarray  # (num_queries, width) by the zero-shot encoder
    query_index: Codes  # (num_pairs,) rows of these
    pin_index: Codes  # (num_pairs,) rows of the catalogue

    def of_queries(self, start: int, stop: int) -> "ScoringRequest":
        """Queries start..stop-1 with their pairs, which must stand in the order of the queries."""
        first, last = np.searchsorted(self.query_index, [start, stop])
        return ScoringRequest(
            texts=self.texts[start:stop], locales=self.locales[start:stop], query_vectors=self.query_vectors[start:stop],
            zero_shot=self.zero_shot[start:stop], query_index=self.query_index[first:last] - start,
            pin_index=self.pin_index[first:last],
        )  # fmt: skip


class Scored(NamedTuple):
    """The facts on pairs that are known before anybody sees them, row by row."""

    control: np.ndarray  # (num_pairs,) expected grade by the feature-only student
    treatment: np.ndarray  # (num_pairs,) by the student
    features: np.ndarray  # (num_pairs, num_features) float32, those of both


@dataclass(frozen=True, kw_only=True)
class Arms:
    """The models of both arms and the pins' vectors, read once per process."""

    features: StudentFeatures
    control: Student
    treatment: Student
    pin_vectors: np.ndarray  # (num_pins, d), row by row as the catalogue

    @classmethod
    def load(
        cls, cfg: Config, store: Storage, control: Output, treatment: Output, pin_vectors: np.ndarray
    ) -> "Arms":  # fmt: skip
        """Read the run's models and tables."""
        catalogue, _ = load_catalogue(cfg, store)
        features = StudentFeatures.load(catalogue, store, zero_shot_queries(cfg, store))
        models = Student(store, control), Student(store, treatment)
        return cls(features=features, control=models[0], treatment=models[1], pin_vectors=pin_vectors)

    def score(self, request: ScoringRequest) -> Scored:
        """Calibrated expected grades of both arms."""
        distinct, place = index_queries(request.texts)
        first = np.unique(place, return_index=True)[1]  # equal texts have equal vectors
        locales = [request.locales[i] for i in request.query_index]
        features = self.features.compute(
            distinct, place[request.query_index], request.pin_index, locales, zero_shot=request.zero_shot[first]
        )
        nothing = np.zeros((len(features), 0), np.float32)
        vectors = request.query_vectors[request.query_index], self.pin_vectors[request.pin_index]
        return Scored(
            control=expected_grade(self.control.score(nothing, nothing, features, locales).astype(np.float64)),
            treatment=expected_grade(self.treatment.score(*vectors, features, locales).astype(np.float64)),
            features=features,
        )
