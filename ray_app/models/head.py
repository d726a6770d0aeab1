"""The MLP from pooled states and query-pin features to five logits."""

from typing import Any

import numpy as np

from ray_app.base.schemas import NUM_GRADES

_NEVER_VARIED = 1e30  # deviation of a constant feature: what is divided by it is 0, and JSON can hold it


def build_head(num_inputs: int, hidden: int, dropout: float) -> Any:
    """Two-layer MLP: (B, num_inputs) -> (B, 5) logits."""
    from torch import nn

    return nn.Sequential(nn.Linear(num_inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, NUM_GRADES))


def expected_grade(probs: np.ndarray) -> np.ndarray:
    """Score of soft labels: expected grade 1..5. Shapes (N, 5) -> (N,), float64."""
    return probs.astype(np.float64) @ np.arange(1, NUM_GRADES + 1, dtype=np.float64)


class FeatureScaler:
    """Standardiser of query-pin features with the training set's mean and deviation.

    A feature that was constant in training becomes 0 whatever it is later: nothing has been learned of it, so its weights
    are the random ones that they began as. Without that, a shop of one locale would be scored by chance when a request
    names another one, or none.

    Args:
        mean, std: (num_features,) float32; std > 0.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        self.mean = mean.astype(np.float32)
        self.std = std.astype(np.float32)

    @classmethod
    def fit(cls, features: np.ndarray) -> "FeatureScaler":
        """Fit to `features`, shape (N, num_features).

        Raises:
            ValueError: a feature is not finite; training on it would make every weight NaN.
        """
        values = features.astype(np.float64)
        return cls.of_sums(len(values), values.sum(0), (values**2).sum(0))

    @classmethod
    def of_sums(cls, num: int, total: np.ndarray, squares: np.ndarray) -> "FeatureScaler":
        """Fit to features of which the sums are known. Errors as of `fit`.

        Args:
            num: Number of pairs.
            total, squares: (num_features,) float64, sums of the values and of their squares.
        """
        if not np.isfinite(squares).all():
            raise ValueError("pair features contain NaN or infinity; training on them would spoil every weight")
        if num == 0:
            return cls(np.zeros(len(total)), np.ones(len(total)))
        mean = total / num
        std = np.sqrt(np.maximum(squares / num - mean**2, 0.0))
        return cls(mean, np.where(std < 1e-6 * np.maximum(1.0, np.abs(mean)), _NEVER_VARIED, std))

    def to_json(self) -> dict[str, list[float]]:
        """JSON for a model's `model.json`."""
        return {"feature_mean": self.mean.tolist(), "feature_std": self.std.tolist()}

    @classmethod
    def from_json(cls, about: dict[str, Any]) -> "FeatureScaler":
        """The inverse of `to_json`."""
        return cls(np.array(about["feature_mean"]), np.array(about["feature_std"]))

    def transform(self, features: np.ndarray) -> np.ndarray:
        """Standardised features, clipped to +-5 so that one odd pin cannot dominate. Same shape, float32."""
        return np.clip((features - self.mean) / self.std, -5.0, 5.0).astype(np.float32)
