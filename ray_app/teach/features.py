"""What the teacher sees beside the texts: the pair features, and cosines of the zero-shot encoder."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_app.zero_shot.similarity import CosineBackground

COSINE_NAMES = ("title_cosine", "text_cosine", "title_cosine_z", "text_cosine_z")


@dataclass(frozen=True, kw_only=True)
class CosineFeatures:
    """Cosine features against frozen backgrounds, so that a new pin changes no other pin's features.

    Args:
        title: Of all pins' title vectors at the time of teaching.
        text: Of all pins' text vectors.
    """

    title: CosineBackground
    text: CosineBackground

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
