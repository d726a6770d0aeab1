"""The student: query tower and pin tower that never see each other, pair features, and a small interaction MLP.

Pins are embedded offline, queries online; scoring a candidate is then a few thousand multiplications. Source: the
student of "Improving Pinterest Search Relevance Using LLMs" (2024).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ray_app.config import DistillConfig, TrainConfig
from ray_app.models.backbone import backbone_groups, is_decoder, load_saved_backbone
from ray_app.models.head import FeatureScaler, build_head
from ray_app.models.pooling import pool
from ray_app.models.sources import load_backbone
from ray_app.models.text_encoder import autocast, pick_device, pick_dtype, run_bucketed, use_cpu_threads
from ray_app.models.tokens import encode_single
from ray_app.schemas import NUM_GRADES

STATE_BATCH = 64  # texts per forward pass before training


class BiEncoder(nn.Module):
    """Shared language model -> unit vectors of `cfg.dim` -> interaction MLP with pair features -> 5 logits.

    Args:
        backbone: Language model without head, used for both towers; None for the feature-only student, the baseline.
        tokenizer: Its tokenizer.
        cfg: Lengths, dimension and head.
        scaler: Of the pair features.
    """

    def __init__(self, backbone: Any, tokenizer: Any, cfg: DistillConfig, scaler: FeatureScaler) -> None:
        import torch

        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.cfg = cfg
        self.scaler = scaler
        num_features, interactions = len(scaler.mean), 0
        if backbone is not None:
            width = backbone.config.hidden_size
            self.pooling = "last" if is_decoder(backbone) else "mean"
            self.projection = nn.Linear(width, cfg.dim, bias=False)
            with torch.no_grad():  # starts near the base model's own geometry, as far as `dim` has room for it
                nn.init.orthogonal_(self.projection.weight)
                if cfg.dim == width:
                    self.projection.weight.copy_(torch.eye(width))
            self.compare = nn.Linear(cfg.dim, cfg.bottleneck)
            self.norm = nn.LayerNorm(cfg.bottleneck, elementwise_affine=False)
            self.vector_dropout = nn.Dropout(cfg.vector_dropout)
            interactions = 2 * cfg.bottleneck + 1
        self._states: dict[str, Any] | None = None  # text -> pooled state, while the language model is frozen
        self.head = build_head(interactions + num_features, cfg.hidden, cfg.dropout)
        if backbone is not None:
            # What cosine and features say alone; the compared vectors refine it. It holds for queries never seen.
            self.plain_head = build_head(num_features + 1, cfg.feature_hidden, cfg.dropout)
            self.plain_linear = nn.Linear(num_features + 1, NUM_GRADES)
            with torch.no_grad():
                self.head[-1].weight.mul_(0.3)
                self.head[-1].bias.zero_()

    @classmethod
    def from_base(cls, cfg: DistillConfig, scaler: FeatureScaler) -> "BiEncoder":
        """Untrained head on the base model that `cfg` names."""
        backbone, tokenizer = load_backbone(cfg.base_model, cfg.revision)
        return cls(backbone, tokenizer, cfg, scaler)

    @classmethod
    def features_only(cls, cfg: DistillConfig, scaler: FeatureScaler) -> "BiEncoder":
        """The student without towers: what the pair features can do alone."""
        return cls(None, None, cfg, scaler)

    # --- prepare -> forward -> finish ---

    def prepare(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> dict[str, Any]:
        """CPU tensors of a batch of B pairs; a text that stands in several pairs is encoded once."""
        import torch

        batch = {"features": torch.from_numpy(self.scaler.transform(features))}
        if self.backbone is None:
            return batch
        for name, texts, limit in (
            ("query", queries, self.cfg.max_query_tokens),
            ("pin", pin_texts, self.cfg.max_pin_tokens),
        ):
            unique = list(dict.fromkeys(texts))
            place = {text: i for i, text in enumerate(unique)}
            batch[f"{name}_rows"] = torch.tensor([place[text] for text in texts])
            if self._states is not None:
                batch[f"{name}_states"] = torch.stack([self._states[text] for text in unique])
                continue
            tokens = encode_single(self.tokenizer, unique, limit)
            batch |= {f"{name}_{key}": value for key, value in tokens.items()}
        return batch

    def forward(self, batch: dict[str, Any]) -> Any:
        """Logits of grades 1..5, shape (B, 5)."""
        if self.backbone is None:
            return self.head(batch["features"])
        query = self.vectors(self._states_of("query", batch))[batch["query_rows"]]
        pin = self.vectors(self._states_of("pin", batch))[batch["pin_rows"]]
        return self.score(query, pin, batch["features"])

    def states(self, input_ids: Any, attention_mask: Any) -> Any:
        """Pooled states of tokenised texts, (B, hidden size) float32."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden.float(), attention_mask, self.pooling)

    def vectors(self, states: Any) -> Any:
        """Unit vectors of pooled states, (B, dim) float32."""
        from torch.nn.functional import normalize

        return normalize(self.projection(states).float(), dim=-1)

    def embed(self, input_ids: Any, attention_mask: Any) -> Any:
        """Unit vectors of tokenised texts, (B, dim) float32: the tower."""
        return self.vectors(self.states(input_ids, attention_mask))

    def score(self, query: Any, pin: Any, features: Any) -> Any:
        """Logits from vectors and standardised features: (B, dim), (B, dim), (B, num_features) -> (B, 5)."""
        import torch

        if self.backbone is None:
            return self.head(features)
        cosine = (query * pin).sum(-1, keepdim=True) * 5.0
        one, two = self.norm(self.compare(query)), self.norm(self.compare(pin))
        compared = self.vector_dropout(torch.cat([one * two, (one - two).abs()], -1))
        plain = torch.cat([cosine, features], -1)
        return self.head(torch.cat([compared, plain], -1)) + self.plain_head(plain) + self.plain_linear(plain)

    def _states_of(self, name: str, batch: dict[str, Any]) -> Any:
        if f"{name}_states" in batch:
            return batch[f"{name}_states"]
        return self.states(batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"])

    def before_training(self, queries: Sequence[str], pin_texts: Sequence[str], cfg: TrainConfig) -> None:
        """While the language model is frozen, each text passes through it once and not once per epoch."""
        import torch

        if self.backbone is None or cfg.train_top_layers != 0:
            return
        self.eval()
        device = self.projection.weight.device.type
        self._states = {}
        for texts, limit in ((queries, self.cfg.max_query_tokens), (pin_texts, self.cfg.max_pin_tokens)):
            unique = sorted(set(texts) - self._states.keys(), key=lambda text: (-len(text), text))
            for start in range(0, len(unique), STATE_BATCH):
                part = unique[start : start + STATE_BATCH]
                tokens = encode_single(self.tokenizer, part, limit)
                with torch.inference_mode(), autocast(device, pick_dtype(cfg.dtype, device)):
                    states = self.states(**{name: tensor.to(device) for name, tensor in tokens.items()})
                self._states |= dict(zip(part, states.float().cpu().clone(), strict=True))

    def param_groups(self, cfg: TrainConfig) -> list[dict[str, Any]]:
        """Optimiser groups: the language model's layers, and everything else at the head's learning rate."""
        if self.backbone is None:
            return [{"params": list(self.parameters()), "lr": cfg.head_learning_rate}]
        # The projection is part of the tower: at the head's rate it would leave the base model's geometry at once.
        tower = [*backbone_groups(self.backbone, cfg), {"params": [self.projection.weight], "lr": cfg.learning_rate}]
        ours = [p for name, p in self.named_parameters() if not name.startswith(("backbone.", "projection."))]
        return [*tower, {"params": ours, "lr": cfg.head_learning_rate}]

    # --- files ---

    def save_pretrained(self, folder: Path) -> None:
        """Write `lm/` (transformers), `head.safetensors` and `model.json`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        if self.backbone is not None:
            self.backbone.save_pretrained(folder / "lm")
            self.tokenizer.save_pretrained(folder / "lm")
        head = {k: v.contiguous().cpu() for k, v in self.state_dict().items() if not k.startswith("backbone.")}
        save_file(head, folder / "head.safetensors")
        about = {
            "kind": "bi_encoder",
            "config": self.cfg.model_dump(mode="json"),
            "towers": self.backbone is not None,
            "feature_mean": self.scaler.mean.tolist(),
            "feature_std": self.scaler.std.tolist(),
        }
        (folder / "model.json").write_text(json.dumps(about, indent=1))

    @classmethod
    def from_pretrained(cls, folder: Path) -> "BiEncoder":
        """Read what `save_pretrained` wrote, in evaluation mode."""
        from safetensors.torch import load_file

        about = json.loads((folder / "model.json").read_text())
        cfg = DistillConfig.model_validate(about["config"])
        scaler = FeatureScaler(np.array(about["feature_mean"]), np.array(about["feature_std"]))
        backbone, tokenizer = None, None
        if about["towers"]:
            backbone, tokenizer = load_saved_backbone(folder / "lm", cfg.base_model, cfg.revision)
        model = cls(backbone, tokenizer, cfg, scaler)
        missing, unexpected = model.load_state_dict(load_file(folder / "head.safetensors"), strict=False)
        assert not unexpected and all(name.startswith("backbone.") for name in missing)
        return model.eval()


class TowerEncoder:
    """One tower of a trained student as an encoder: the same code embeds pins offline and queries online.

    Args:
        folder: Local folder of the student.
        tower: `pin` or `query`; they share weights and differ in length.
        dtype: `float32`, `bfloat16` or `auto`.
        cpu_threads: See `pick_device`.
    """

    def __init__(self, folder: Path, tower: str, dtype: str, cpu_threads: int = 0) -> None:
        import torch

        self.student = BiEncoder.from_pretrained(folder)
        cfg = self.student.cfg
        self.max_tokens = {"pin": cfg.max_pin_tokens, "query": cfg.max_query_tokens}[tower]
        self.dim: int = cfg.dim
        self.device = pick_device(cpu_threads)
        self.dtype = pick_dtype(dtype, self.device)
        self.student.to(self.device)
        self._torch = torch

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Vectors (num_texts, dim), float32, unit length, row i for text i."""
        return run_bucketed(texts, batch_size, self._encode_batch)

    def _encode_batch(self, texts: Sequence[str]) -> np.ndarray:
        use_cpu_threads()
        tokens = encode_single(self.student.tokenizer, texts, self.max_tokens)
        with self._torch.inference_mode(), autocast(self.device, self.dtype):
            vectors = self.student.embed(**{name: t.to(self.device) for name, t in tokens.items()})
        return vectors.float().cpu().numpy()
