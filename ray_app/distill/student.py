"""The trained student as a scorer of pairs whose vectors are there already: hundreds of candidates in one call."""

import numpy as np

from ray_app.manifest import Output
from ray_app.models.checkpoint import local_folder
from ray_app.storage import Storage


class Student:
    """The interaction MLP of a trained student.

    Args:
        store: Where the model lies.
        output: `student` or `feature_student` of stage `distill`.
    """

    def __init__(self, store: Storage, output: Output) -> None:
        from ray_app.models.bi_encoder import BiEncoder

        self.model = BiEncoder.from_pretrained(local_folder(store, output))

    def score(self, query_vectors: np.ndarray, pin_vectors: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Probabilities of grades 1..5 per pair.

        Args:
            query_vectors: (num_pairs, dim) float32; ignored by a feature-only student.
            pin_vectors: (num_pairs, dim) float32; zeros for a pin without text.
            features: (num_pairs, num_features), not standardised.

        Returns:
            (num_pairs, 5) float32.
        """
        import torch

        standard = torch.from_numpy(self.model.scaler.transform(features))
        with torch.inference_mode():
            logits = self.model.score(torch.from_numpy(query_vectors), torch.from_numpy(pin_vectors), standard)
        return logits.softmax(-1).numpy()
