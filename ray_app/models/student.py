"""The trained student as a scorer of pairs with precomputed embeddings: hundreds of candidates in one call."""

from collections.abc import Sequence

import numpy as np

from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.models.checkpoint import load_calibration
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output


class Student:
    """The interaction MLP of a trained student.

    Args:
        output: `student` or `feature_only_student` of stage `distill`.
    """

    def __init__(self, store: Storage, output: Output) -> None:
        from ray_app.models.bi_encoder import BiEncoder

        self.model = BiEncoder.from_pretrained(local_folder(store, output))
        self.calibration = load_calibration(store, output)

    def require_width(self, num_features: int) -> None:
        """Raise UserError unless the student was trained on that many features."""
        if num_features != len(self.model.scaler.mean):
            raise UserError(
                f"the student was trained on {len(self.model.scaler.mean)} features of a pair, this version of the program "
                f"makes {num_features}: run `distill`, `embed` and what follows again"
            )

    def score(
        self, query_vectors: np.ndarray, pin_vectors: np.ndarray, features: np.ndarray,
        locales: Sequence[str] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Probabilities of grades 1..5 per pair.

        Args:
            query_vectors: (num_pairs, d) float32, or (1, d) for the candidates of one query; ignored by a feature-only
                student. `d` is the student's `dim`, or one of its `matryoshka_dims`.
            pin_vectors: (num_pairs, d) float32; zeros for a pin without text.
            features: (num_pairs, num_features), not standardised.
            locales: Of the queries, num_pairs of them: then the probabilities are calibrated.

        Returns:
            (num_pairs, 5) float32.

        Raises:
            UserError: another version of the program trained it, on other features.
        """
        import torch

        self.require_width(features.shape[1])

        standard = torch.from_numpy(self.model.scaler.transform(features))
        with torch.inference_mode():
            logits = self.model.score(torch.from_numpy(query_vectors), torch.from_numpy(pin_vectors), standard)
        probs: np.ndarray = logits.softmax(-1).numpy()
        if locales is None or self.calibration is None:
            return probs
        return self.calibration.apply(probs, locales)
