"""The teacher: a language model reads query and pin together, and an MLP turns what it saw into five grades.

Source: "Improving Pinterest Search Relevance Using LLMs" (2024) for LLM -> MLP -> 5 logits. Ours adds two things that
few labels need: the MLP may also see pair features (BM25, text match, zero-shot cosine), and with `spans` pooling the
query's and the pin's hidden states are compared, which lets a bi-encoder's weights be a useful start.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ray_app.config import TeachConfig, TrainConfig
from ray_app.models.backbone import backbone_groups, is_decoder, load_saved_backbone
from ray_app.models.head import FeatureScaler, build_head
from ray_app.models.pooling import pool
from ray_app.models.sources import load_backbone
from ray_app.models.tokens import encode_pairs


class CrossEncoder(nn.Module):
    """LM over (query, pin text) -> pooled state, beside standardised pair features -> MLP -> 5 logits.

    Args:
        backbone: Language model without head.
        tokenizer: Its tokenizer.
        cfg: Pooling, lengths and head.
        scaler: Of the pair features; num_features = len(scaler.mean), may be 0.
    """

    def __init__(self, backbone: Any, tokenizer: Any, cfg: TeachConfig, scaler: FeatureScaler) -> None:
        import torch

        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.cfg = cfg
        self.scaler = scaler
        self.query_last = is_decoder(backbone)
        width, num_features = backbone.config.hidden_size, len(scaler.mean)
        self.projection = nn.Linear(width, cfg.bottleneck)
        self.norm = nn.LayerNorm(cfg.bottleneck, elementwise_affine=False)
        self.dropout = nn.Dropout(cfg.dropout)
        pooled = 2 * cfg.bottleneck if cfg.pooling == "spans" else cfg.bottleneck
        self.head = build_head(pooled + num_features, cfg.hidden, cfg.dropout)
        # What the features say alone; the language model learns the rest. It keeps few labels from being memorised.
        self.feature_head = build_head(num_features, cfg.feature_hidden, cfg.dropout) if num_features else None
        self.feature_linear = nn.Linear(num_features, 5) if num_features else None
        with torch.no_grad():
            self.head[-1].weight.mul_(0.3)
            self.head[-1].bias.zero_()

    @classmethod
    def from_base(cls, cfg: TeachConfig, scaler: FeatureScaler) -> "CrossEncoder":
        """Untrained head on the base model that `cfg` names."""
        backbone, tokenizer = load_backbone(cfg.base_model, cfg.revision, cfg.num_layers)
        if cfg.lora_rank is not None:
            from peft import LoraConfig, get_peft_model

            backbone = get_peft_model(backbone, LoraConfig(r=cfg.lora_rank, target_modules="all-linear"))
        return cls(backbone, tokenizer, cfg, scaler)

    # --- prepare -> forward -> finish ---

    def prepare(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> dict[str, Any]:
        """CPU tensors of a batch of B pairs; `features` is (B, num_features), not standardised."""
        import torch

        batch = encode_pairs(self.tokenizer, queries, pin_texts, self.cfg.max_tokens, self.query_last)
        batch["features"] = torch.from_numpy(self.scaler.transform(features))
        return batch

    def forward(self, batch: dict[str, Any]) -> Any:
        """Logits of grades 1..5, shape (B, 5), float32."""
        import torch

        hidden = self.backbone(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state.float()
        if self.cfg.pooling == "spans":
            query = self.norm(self.projection(pool(hidden, batch["query_mask"], "mean")))
            pin = self.norm(self.projection(pool(hidden, batch["pin_mask"], "mean")))
            state = torch.cat([query * pin, (query - pin).abs()], -1)
        else:
            state = self.norm(self.projection(pool(hidden, batch["attention_mask"], self.cfg.pooling)))
        features = batch["features"]
        logits = self.head(torch.cat([self.dropout(state), features], -1))
        if self.feature_head is not None and self.feature_linear is not None:
            logits = logits + self.feature_head(features) + self.feature_linear(features)
        return logits

    # --- training and files ---

    def before_training(self, queries: Sequence[str], pin_texts: Sequence[str], cfg: TrainConfig) -> None:
        """Nothing: a cross-encoder reads each pair anew."""

    def param_groups(self, cfg: TrainConfig) -> list[dict[str, Any]]:
        """Optimiser groups: the language model's layers, and everything else at the head's learning rate."""
        groups = backbone_groups(self.backbone, cfg)
        ours = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        return [*groups, {"params": ours, "lr": cfg.head_learning_rate}]

    def save_pretrained(self, folder: Path) -> None:
        """Write `lm/` (transformers, or peft for adapters), `head.safetensors` and `model.json`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save_pretrained(folder / "lm")
        self.tokenizer.save_pretrained(folder / "lm")
        head = {k: v.contiguous().cpu() for k, v in self.state_dict().items() if not k.startswith("backbone.")}
        save_file(head, folder / "head.safetensors")
        about = {
            "kind": "cross_encoder",
            "config": self.cfg.model_dump(mode="json"),
            "feature_mean": self.scaler.mean.tolist(),
            "feature_std": self.scaler.std.tolist(),
        }
        (folder / "model.json").write_text(json.dumps(about, indent=1))

    @classmethod
    def from_pretrained(cls, folder: Path, scaler: FeatureScaler | None = None) -> "CrossEncoder":
        """Read what `save_pretrained` wrote, in evaluation mode; `scaler` replaces the saved one, to train further."""
        from safetensors.torch import load_file

        about = json.loads((folder / "model.json").read_text())
        cfg = TeachConfig.model_validate(about["config"])
        scaler = scaler or FeatureScaler(np.array(about["feature_mean"]), np.array(about["feature_std"]))
        backbone, tokenizer = load_saved_backbone(folder / "lm", cfg.base_model, cfg.revision, cfg.num_layers)
        model = cls(backbone, tokenizer, cfg, scaler)
        missing, unexpected = model.load_state_dict(load_file(folder / "head.safetensors"), strict=False)
        assert not unexpected and all(name.startswith("backbone.") for name in missing)
        return model.eval()
