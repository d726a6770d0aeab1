"""Cosine features of (query, pin), made comparable across queries.

A cosine of 0.4 is high for a vague query and low for a specific one. So each cosine is also given as a z-score against
what the query would get with a random pin (not the pin with a random query). For unit vectors it follows from a mean
vector and a covariance matrix, which are measured once and then frozen: a new pin changes no other pin's features.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_app.base.storage import Storage
from ray_app.tables.manifest import Output
from ray_app.tables.model_files import read_model_file

_ROWS_AT_A_TIME = 8192
COSINE_FILE = "cosine_features.json"
COSINE_NAMES = ("title_cosine", "text_cosine", "title_cosine_z", "text_cosine_z")


@dataclass(frozen=True, kw_only=True)
class CosineBackground:
    """First two moments of a set of unit vectors."""

    mean: np.ndarray  # (dim,) float64
    covariance: np.ndarray  # (dim, dim) float64

    @classmethod
    def of(cls, vectors: np.ndarray) -> "CosineBackground":
        """Measure `vectors`, shape (N, dim); an empty set has mean 0 and covariance 0."""
        return cls.of_sums([VectorSums.of(vectors)])

    @classmethod
    def of_sums(cls, parts: Sequence["VectorSums"]) -> "CosineBackground":
        """Measure a set from the sums over its parts, at least one."""
        num = max(1, sum(part.num for part in parts))
        mean = np.sum([part.total for part in parts], axis=0) / num
        squares = np.sum([part.squares for part in parts], axis=0) / num
        return cls(mean=mean, covariance=squares - np.outer(mean, mean))

    def z_score(self, probes: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """Z-score of `cosines[i]`, the cosine of probe i with some embedding, among probe i's cosines with the background set.

        Args:
            probes: (N, dim).
            cosines: (N,).

        Returns:
            (N,) float32; 0 where the set has no spread.
        """
        expected = probes @ self.mean
        variance = np.einsum("nd,nd->n", probes @ self.covariance, probes)
        spread = np.sqrt(np.maximum(variance, 0.0))
        z = np.divide(cosines - expected, spread, out=np.zeros(len(cosines)), where=spread > 1e-6)
        return z.astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorSums:
    """Sums over some unit vectors, of which a `CosineBackground` follows."""

    num: int
    total: np.ndarray  # (dim,) float64
    squares: np.ndarray  # (dim, dim) float64, sum of the outer products

    @classmethod
    def of(cls, vectors: np.ndarray) -> "VectorSums":
        """Add up `vectors`, (num, dim) float32."""
        dim = vectors.shape[1]
        total, squares = np.zeros(dim), np.zeros((dim, dim))
        for start in range(0, len(vectors), _ROWS_AT_A_TIME):
            some = vectors[start : start + _ROWS_AT_A_TIME].astype(np.float64)
            total, squares = total + some.sum(0), squares + some.T @ some
        return cls(num=len(vectors), total=total, squares=squares)


@dataclass(frozen=True, kw_only=True)
class CosineFeatures:
    """Cosine features against frozen backgrounds, so that a new pin changes no other pin's features."""

    title: CosineBackground  # of all pins' title vectors at the time of teaching
    text: CosineBackground  # of all pins' text vectors

    @classmethod
    def of(cls, title_vectors: np.ndarray, text_vectors: np.ndarray) -> "CosineFeatures":
        """Backgrounds measured on pins' vectors, (num_pins, dim) each."""
        return cls(title=CosineBackground.of(title_vectors), text=CosineBackground.of(text_vectors))

    def compute(self, query_vectors: np.ndarray, title_vectors: np.ndarray, text_vectors: np.ndarray) -> np.ndarray:
        """One row per pair, columns as in COSINE_NAMES; all arguments are (num_pairs, dim). float32."""
        title = np.einsum("nd,nd->n", query_vectors, title_vectors)
        text = np.einsum("nd,nd->n", query_vectors, text_vectors)
        columns = [title, text, self.title.z_score(query_vectors, title), self.text.z_score(query_vectors, text)]
        return np.stack(columns, 1).astype(np.float32)

    def to_json(self) -> str:
        """For the teacher's folder."""
        return json.dumps({name: _plain(getattr(self, name)) for name in ("title", "text")})

    @classmethod
    def from_json(cls, text: str) -> "CosineFeatures":
        """The inverse of `to_json`."""
        return cls(**{name: _background(value) for name, value in json.loads(text).items()})


def _plain(background: CosineBackground) -> dict[str, Any]:
    # 7 digits are float32's precision; the features are float32.
    return {
        "mean": [float(f"{v:.8g}") for v in background.mean],
        "covariance": [[float(f"{v:.8g}") for v in row] for row in background.covariance],
    }


def _background(value: dict[str, Any]) -> CosineBackground:
    return CosineBackground(mean=np.array(value["mean"]), covariance=np.array(value["covariance"]))


def load_cosine_features(store: Storage, output: Output) -> CosineFeatures:
    """The backgrounds that were frozen with a teacher, or those of the catalogue as it is (`corpus_statistics`)."""
    return CosineFeatures.from_json(read_model_file(store, output, COSINE_FILE).decode())
