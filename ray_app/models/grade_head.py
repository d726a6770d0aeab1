"""Head of the teacher: reads the pooled states of the language model, of any backend."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ray_app.base.config import TeacherConfig
from ray_app.base.schemas import NUM_GRADES
from ray_app.models.checkpoint import read_about, read_teacher_config
from ray_app.models.head import FeatureScaler, build_head


class GradeHead(nn.Module):
    """Head after the teacher's language model, for any backend: pooled states, query-pin features -> 5 logits.

    Args:
        scaler: Of the pair features; num_features = len(scaler.mean), may be 0.
    """

    def __init__(self, width: int, cfg: TeacherConfig, scaler: FeatureScaler) -> None:
        import torch

        super().__init__()
        num_features = len(scaler.mean)
        self.scaler = scaler
        self.compares = cfg.pooling == "spans"
        self.projection = nn.Linear(width, cfg.projection_dim)
        self.norm = nn.LayerNorm(cfg.projection_dim, elementwise_affine=False)
        self.dropout = nn.Dropout(cfg.dropout)
        pooled = 2 * cfg.projection_dim if self.compares else cfg.projection_dim
        self.head = build_head(pooled + num_features, cfg.hidden_dim, cfg.dropout)
        # Logits from the features alone; the language model learns the rest. This limits memorisation of few labels.
        self.feature_head = build_head(num_features, cfg.feature_hidden_dim, cfg.dropout) if num_features else None
        self.feature_linear = nn.Linear(num_features, NUM_GRADES) if num_features else None
        with torch.no_grad():
            self.head[-1].weight.mul_(0.3)
            self.head[-1].bias.zero_()

    def forward(self, states: Any, features: Any) -> Any:
        """Logits of grades 1..5.

        Args:
            states: (B, K, width) float32; K is 2 (query, pin) with `spans` pooling, else 1.
            features: (B, num_features) float32, standardised.

        Returns:
            (B, 5) float32.
        """
        import torch

        parts = self.norm(self.projection(states))
        if self.compares:
            query, pin = parts[:, 0], parts[:, 1]
            state = torch.cat([query * pin, (query - pin).abs()], -1)
        else:
            state = parts[:, 0]
        logits = self.head(torch.cat([self.dropout(state), features], -1))
        if self.feature_head is not None and self.feature_linear is not None:
            logits = logits + self.feature_head(features) + self.feature_linear(features)
        return logits

    def probs(self, states: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Probabilities of grades 1..5, (B, 5) float32, from (B, K, width) states and raw features."""
        import torch

        with torch.inference_mode():
            logits = self(torch.from_numpy(states), torch.from_numpy(self.scaler.transform(features)))
        return logits.softmax(-1).numpy()

    def shift_logits(self, by: np.ndarray) -> None:
        """Add (5,) to the logits permanently; the shift is saved with the head."""
        import torch

        with torch.no_grad():
            self.head[-1].bias.add_(torch.from_numpy(by).to(self.head[-1].bias))

    # --- files ---

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write `head.safetensors` and `model.json` with all that `load` needs, and `about`."""
        from safetensors.torch import save_file

        save_file({k: v.contiguous().cpu() for k, v in self.state_dict().items()}, folder / "head.safetensors")
        (folder / "model.json").write_text(json.dumps(about | self.scaler.to_json(), indent=1))

    @classmethod
    def load(cls, folder: Path, scaler: FeatureScaler | None = None) -> "GradeHead":
        """Read what `save` wrote, in evaluation mode; `scaler` replaces the saved one, to train further."""
        from safetensors.torch import load_file

        weights = load_file(folder / "head.safetensors")
        scaler = scaler or FeatureScaler.from_json(read_about(folder))
        head = cls(weights["projection.weight"].shape[1], read_teacher_config(folder), scaler)
        head.load_state_dict(weights)
        return head.eval()
