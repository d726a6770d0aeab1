"""One tower of a trained bi-encoder as an encoder of texts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ray_app.models.bi_encoder import BiEncoder, cut_vectors
from ray_app.models.bi_preparer import tower_rows
from ray_app.models.devices import autocast, pick_device, pick_dtype, use_cpu_threads
from ray_app.models.encoder_usage import Role
from ray_app.models.text_encoder import run_bucketed
from ray_app.models.tokens import pad_rows


class TowerEncoder:
    """One tower of a trained student as an encoder: the same code embeds pins offline and queries online.

    Args:
        dim: Length of the vectors, `cfg.dim` or one of `cfg.matryoshka_dims`; None: `cfg.dim`.
    """

    def __init__(self, folder: Path, tower: Role, dtype: str, cpu_threads: int = 0, dim: int | None = None) -> None:
        import torch

        self.student = BiEncoder.from_pretrained(folder)
        cfg = self.student.cfg
        self.tower = tower
        self.dim: int = cfg.dim if dim is None else dim
        self.device = pick_device(cpu_threads)
        self.dtype = pick_dtype(dtype, self.device)
        self.student.to(self.device)
        self._torch = torch

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Embeddings (num_texts, dim), float32, unit length, row i for text i."""
        rows = tower_rows(self.student.tokenizer, self.student.cfg, self.tower, texts)
        return run_bucketed(rows, batch_size, self._encode_batch)

    def _encode_batch(self, rows: Sequence[list[int]]) -> np.ndarray:
        use_cpu_threads()
        tokens = pad_rows(self.student.tokenizer, rows)
        with self._torch.inference_mode(), autocast(self.device, self.dtype):
            vectors = self.student.embed(self.tower, **{name: t.to(self.device) for name, t in tokens.items()})
        if self.dim < vectors.shape[-1]:
            vectors = cut_vectors(vectors.float(), self.dim)
        return vectors.float().cpu().numpy()
