"""The student: bi-encoder of query tower and pin tower, with query-pin features and a small interaction MLP.

Pins are embedded offline, queries online; scoring a candidate is then a few thousand multiplications. Source: the
student of "Improving Pinterest Search Relevance Using LLMs" (2024).
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from ray_app.base.config import DistillConfig, TrainConfig
from ray_app.base.schemas import NUM_GRADES
from ray_app.models.backbone import backbone_groups, load_saved_backbone
from ray_app.models.bi_preparer import TOWERS, BiPreparer, tower_limit, tower_prompt, tower_rows
from ray_app.models.checkpoint import read_about
from ray_app.models.devices import autocast, pick_dtype
from ray_app.models.encoder_usage import check_prompt_fits, default_pooling, with_usage
from ray_app.models.head import FeatureScaler, build_head
from ray_app.models.model_sources import load_backbone
from ray_app.models.pooling import pool
from ray_app.models.tokens import pad_rows

STATE_BATCH = 64  # texts per forward pass before training
_BACKBONES = ("backbone.", "pin_backbone.")
_PROJECTIONS = ("projection.", "pin_projection.")


class Tower(NamedTuple):
    """Text -> embedding: the language model, and the projection of its pooled states."""

    backbone: Any
    projection: Any  # nn.Linear without bias, hidden size -> dim


class BiEncoder(nn.Module):
    """Language models -> unit embeddings of `cfg.dim` -> interaction MLP with query-pin features -> 5 logits.

    An embedding's first `d` dimensions, for each `d` of `cfg.matryoshka_dims`, are trained to replace the full one (Matryoshka
    representation learning, Kusupati et al. 2022).

    Args:
        backbone: Language model without head; None for the feature-only student, the baseline.
        cfg: Pooling, prompts, lengths, dimensions and head. Without a pooling or prompts, as in students of before
            there were such keys: `default_pooling` and none.
        pin_backbone: The pins' own; None: queries and pins share one tower.
    """

    def __init__(
        self, backbone: Any, tokenizer: Any, cfg: DistillConfig, scaler: FeatureScaler, pin_backbone: Any = None
    ) -> None:
        import torch

        super().__init__()
        self.backbone, self.pin_backbone = backbone, pin_backbone
        self.tokenizer = tokenizer
        self.cfg = cfg
        self.scaler = scaler
        num_features, interactions = len(scaler.mean), 0
        if backbone is not None:
            self.pooling = cfg.pooling or default_pooling(backbone.config)
            self.projection = _projection(backbone.config.hidden_size, cfg.dim)
            self.pin_projection = None if pin_backbone is None else copy.deepcopy(self.projection)
            self.compare = nn.Linear(cfg.dim, cfg.projection_dim)
            self.norm = nn.LayerNorm(cfg.projection_dim, elementwise_affine=False)
            self.interaction_dropout = nn.Dropout(cfg.interaction_dropout)
            interactions = 2 * cfg.projection_dim + 1
        self._states: dict[tuple[str, str], Any] | None = None  # pooled states, while the language model is frozen
        self.head = build_head(interactions + num_features, cfg.hidden_dim, cfg.dropout)
        if backbone is not None:
            # Logits from cosine and features alone, which generalise to unseen queries; the compared embeddings refine them.
            self.plain_head = build_head(num_features + 1, cfg.feature_hidden_dim, cfg.dropout)
            self.plain_linear = nn.Linear(num_features + 1, NUM_GRADES)
            with torch.no_grad():
                self.head[-1].weight.mul_(0.3)
                self.head[-1].bias.zero_()

    @classmethod
    def from_base(cls, cfg: DistillConfig, scaler: FeatureScaler) -> "BiEncoder":
        """Randomly initialised head on the base model that `cfg` names, with the usage of `with_usage`.

        Raises:
            UserError: it cannot be loaded or used so.
        """
        cfg = with_usage(cfg)
        backbone, tokenizer = load_backbone(cfg.base_model, cfg.revision)
        for name in TOWERS:
            check_prompt_fits(tokenizer, tower_prompt(cfg, name), tower_limit(cfg, name), f"distill.max_{name}_tokens")
        return cls(backbone, tokenizer, cfg, scaler, None if cfg.shared_towers else copy.deepcopy(backbone))

    @classmethod
    def feature_only_student(cls, cfg: DistillConfig, scaler: FeatureScaler) -> "BiEncoder":
        """The student without towers: query-pin features only."""
        return cls(None, None, cfg, scaler)

    @property
    def backbones(self) -> list[Any]:
        """Its language models: none, one or two."""
        return [backbone for backbone in (self.backbone, self.pin_backbone) if backbone is not None]

    def tower(self, name: str) -> Tower:
        """Tower `query` or `pin`."""
        if name == "pin" and self.pin_backbone is not None:
            return Tower(self.pin_backbone, self.pin_projection)
        return Tower(self.backbone, self.projection)

    # --- prepare -> forward -> finish ---

    @property
    def preparer(self) -> BiPreparer:
        """Preparer of this model's inputs."""
        return BiPreparer(self.tokenizer, self.cfg, self.scaler, self._states)

    def prepare(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> dict[str, Any]:
        """See `BiPreparer.prepare`."""
        return self.preparer.prepare(queries, pin_texts, features)

    def forward(self, batch: dict[str, Any]) -> Any:
        """Logits of grades 1..5, (B, 5); while training, (1 + number of Matryoshka dims, B, 5), full embeddings first."""
        import torch

        if self.backbone is None:
            return self.head(batch["features"])
        query = self.vectors("query", self._states_of("query", batch))[batch["query_rows"]]
        pin = self.vectors("pin", self._states_of("pin", batch))[batch["pin_rows"]]
        whole = self.score(query, pin, batch["features"])
        if not self.training or not self.cfg.matryoshka_dims:
            return whole
        cut = [
            self.score(cut_vectors(query, d), cut_vectors(pin, d), batch["features"]) for d in self.cfg.matryoshka_dims
        ]
        return torch.stack([whole, *cut])

    def states(self, tower: str, input_ids: Any, attention_mask: Any) -> Any:
        """Pooled states of tokenised texts, (B, hidden size) float32."""
        backbone = self.tower(tower).backbone
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden.float(), attention_mask, self.pooling)

    def vectors(self, tower: str, states: Any) -> Any:
        """Unit embeddings of pooled states, (B, dim) float32."""
        from torch.nn.functional import normalize

        return normalize(self.tower(tower).projection(states).float(), dim=-1)

    def embed(self, tower: str, input_ids: Any, attention_mask: Any) -> Any:
        """Unit embeddings of tokenised texts, (B, dim) float32."""
        return self.vectors(tower, self.states(tower, input_ids, attention_mask))

    def score(self, query: Any, pin: Any, features: Any) -> Any:
        """Logits (B, 5) from embeddings and standardised features.

        Args:
            query: (B, d) unit vectors, as `pin`, or (1, d) for one query's candidates; `d` is `dim` or one that is nested.
        """
        import torch
        from torch.nn.functional import pad

        if self.backbone is None:
            return self.head(features)
        cosine = (query * pin).sum(-1, keepdim=True) * 5.0
        query, pin = (pad(vectors, (0, self.cfg.dim - vectors.shape[-1])) for vectors in (query, pin))
        one, two = self.norm(self.compare(query)), self.norm(self.compare(pin))
        compared = self.interaction_dropout(torch.cat([one * two, (one - two).abs()], -1))
        plain = torch.cat([cosine, features], -1)
        return self.head(torch.cat([compared, plain], -1)) + self.plain_head(plain) + self.plain_linear(plain)

    def _states_of(self, name: str, batch: dict[str, Any]) -> Any:
        if f"{name}_states" in batch:
            return batch[f"{name}_states"]
        return self.states(name, batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"])

    def before_training(self, queries: Sequence[str], pin_texts: Sequence[str], cfg: TrainConfig) -> None:
        """Cache pooled states while the language model is frozen: one forward pass per text, not one per epoch."""
        import torch

        if self.backbone is None or cfg.train_top_layers != 0 or cfg.train_embeddings:
            return
        self.eval()
        device = self.projection.weight.device.type
        self._states = {}
        for name, texts in zip(TOWERS, (queries, pin_texts), strict=True):
            unique = sorted(set(texts), key=lambda text: (-len(text), text))
            for start in range(0, len(unique), STATE_BATCH):
                part = unique[start : start + STATE_BATCH]
                tokens = pad_rows(self.tokenizer, tower_rows(self.tokenizer, self.cfg, name, part))
                with torch.inference_mode(), autocast(device, pick_dtype(cfg.dtype, device)):
                    states = self.states(name, **{key: tensor.to(device) for key, tensor in tokens.items()})
                rows = states.float().cpu().clone()
                self._states |= {(name, text): row for text, row in zip(part, rows, strict=True)}

    def param_groups(self, cfg: TrainConfig) -> list[dict[str, Any]]:
        """Optimiser groups: the language models' layers, and everything else at the head's learning rate."""
        if self.backbone is None:
            return [{"params": list(self.parameters()), "lr": cfg.head_learning_rate}]
        # The projection is part of the tower: at the head's rate it would leave the base model's geometry immediately.
        groups = [group for backbone in self.backbones for group in backbone_groups(backbone, cfg)]
        projections = [p for name, p in self.named_parameters() if name.startswith(_PROJECTIONS)]
        ours = [p for name, p in self.named_parameters() if not name.startswith((*_BACKBONES, *_PROJECTIONS))]
        ends = {"params": projections, "lr": cfg.learning_rate}, {"params": ours, "lr": cfg.head_learning_rate}
        return [*groups, *ends]

    # --- files ---

    def save_pretrained(self, folder: Path) -> None:
        """Write `lm/` (transformers), `lm_pin/` if pins have their own, `head.safetensors` and `model.json`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        for name, backbone in zip(("lm", "lm_pin"), self.backbones, strict=False):
            backbone.save_pretrained(folder / name)
            self.tokenizer.save_pretrained(folder / name)
        head = {k: v.contiguous().cpu() for k, v in self.state_dict().items() if not k.startswith(_BACKBONES)}
        save_file(head, folder / "head.safetensors")
        about = {"kind": "bi_encoder", "config": self.cfg.model_dump(mode="json"), "towers": len(self.backbones)}
        (folder / "model.json").write_text(json.dumps(about | self.scaler.to_json(), indent=1))

    @classmethod
    def from_pretrained(cls, folder: Path) -> "BiEncoder":
        """Read what `save_pretrained` wrote, in evaluation mode."""
        from safetensors.torch import load_file

        about = read_about(folder)
        cfg, scaler = DistillConfig.model_validate(about["config"]), FeatureScaler.from_json(about)
        backbone, tokenizer, pin_backbone = None, None, None
        if about["towers"]:
            backbone, tokenizer = load_saved_backbone(folder / "lm", cfg.base_model, cfg.revision)
        if about["towers"] == 2:
            pin_backbone, _ = load_saved_backbone(folder / "lm_pin", cfg.base_model, cfg.revision)
        model = cls(backbone, tokenizer, cfg, scaler, pin_backbone)
        missing, unexpected = model.load_state_dict(load_file(folder / "head.safetensors"), strict=False)
        assert not unexpected and all(name.startswith(_BACKBONES) for name in missing)
        return model.eval()


def cut_vectors(vectors: Any, dim: int) -> Any:
    """Truncate embeddings to `dim` dimensions and normalise them; (..., D) -> (..., dim), tensors."""
    from torch.nn.functional import normalize

    return normalize(vectors[..., :dim], dim=-1)


def _projection(width: int, dim: int) -> Any:
    """Projection initialised near the base model's own geometry, as far as `dim` allows."""
    import torch

    layer = nn.Linear(width, dim, bias=False)
    with torch.no_grad():
        nn.init.orthogonal_(layer.weight)
        if dim == width:
            layer.weight.copy_(torch.eye(width))
    return layer
