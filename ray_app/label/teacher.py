"""The trained teacher as a judge of pairs: the `transformers` engine."""

from collections.abc import Sequence

import numpy as np

from ray_app.manifest import Output
from ray_app.models.checkpoint import local_folder
from ray_app.models.text_encoder import autocast, pick_device, pick_dtype, use_cpu_threads
from ray_app.storage import Storage


class Teacher:
    """Grades pairs in batches of similar length.

    Args:
        store: Where the model lies.
        output: The `teacher` output of stage `teach`.
        dtype: `float32`, `bfloat16` or `auto`.
        batch_size: Pairs per forward pass.
        cpu_threads: See `pick_device`.
    """

    def __init__(self, store: Storage, output: Output, dtype: str, batch_size: int, cpu_threads: int = 0) -> None:
        from ray_app.models.cross_encoder import CrossEncoder

        self.device = pick_device(cpu_threads)
        self.dtype = pick_dtype(dtype, self.device)
        self.model = CrossEncoder.from_pretrained(local_folder(store, output)).to(self.device)
        self.batch_size = batch_size

    def judge(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> np.ndarray:
        """Probabilities of grades 1..5, (num_pairs, 5) float32, row i for pair i."""
        import torch

        use_cpu_threads()
        lengths = np.array([len(q) + len(p) for q, p in zip(queries, pin_texts, strict=True)], np.int64)
        order = np.argsort(-lengths, kind="stable")
        probs = np.empty((len(queries), 5), np.float32)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = self.model.prepare([queries[i] for i in rows], [pin_texts[i] for i in rows], features[rows])
            with torch.inference_mode(), autocast(self.device, self.dtype):
                logits = self.model({name: tensor.to(self.device) for name, tensor in batch.items()})
            probs[rows] = logits.float().softmax(-1).cpu().numpy()
        return probs
