"""The teacher: a language model reads query and pin together, and an MLP maps its states to five grades.

Source: "Improving Pinterest Search Relevance Using LLMs" (2024) for LLM -> MLP -> 5 logits. Ours adds two things that
few labels need: the MLP may also see pair features (BM25, text match, zero-shot cosine), and with `spans` pooling the
query's and the pin's hidden states are compared, which lets a bi-encoder's weights be a useful start.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ray_app.base.config import TeacherConfig, TrainConfig
from ray_app.base.errors import UserError
from ray_app.models.backbone import (
    add_adapters,
    backbone_groups,
    is_decoder,
    load_saved_backbone,
    with_pooling,
)
from ray_app.models.checkpoint import read_about, read_teacher_config, reads_segments
from ray_app.models.grade_head import GradeHead
from ray_app.models.head import FeatureScaler
from ray_app.models.model_sources import load_backbone, model_identity
from ray_app.models.pooling import pool
from ray_app.models.tokens import PairIds, has_segments, pad_pairs, pair_ids


@dataclass(frozen=True)
class PairPreparer:
    """Preparer of a cross-encoder's inputs; has no weights, so that it can be sent to where the texts are."""

    tokenizer: Any  # of the language model
    cfg: TeacherConfig  # lengths
    scaler: FeatureScaler  # of the query-pin features
    query_last: bool  # see `pair_ids`
    segments: bool  # see `pad_pairs`

    def pair_ids(self, queries: Sequence[str], pin_texts: Sequence[str]) -> list[PairIds]:
        """Tokens of the pairs."""
        return pair_ids(self.tokenizer, queries, pin_texts, self.cfg.max_tokens, self.query_last)

    def lengths(self, queries: Sequence[str], pin_texts: Sequence[str]) -> np.ndarray:
        """Tokens of each pair, (B,) int64."""
        return np.array([len(pair.ids) for pair in self.pair_ids(queries, pin_texts)], np.int64)

    def pad(self, pairs: Sequence[PairIds]) -> dict[str, Any]:
        """CPU tensors of tokenised pairs, see `pad_pairs`."""
        return pad_pairs(pairs, self.tokenizer.pad_token_id, self.segments)

    def prepare(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> dict[str, Any]:
        """CPU tensors of a batch of B pairs; `features` is (B, num_features), not standardised."""
        import torch

        batch = self.pad(self.pair_ids(queries, pin_texts))
        batch["features"] = torch.from_numpy(self.scaler.transform(features))
        return batch


class CrossEncoder(nn.Module):
    """LM over (query, pin text) -> pooled state, with standardised query-pin features -> MLP -> 5 logits.

    Args:
        cfg: Pooling, which is not None, and lengths.
        base: `model_identity` of the model under the adapters; None: there are none.
        segments: Whether it reads pairs with token_type_ids; None: if the base model was trained so.
    """

    def __init__(
        self, backbone: Any, tokenizer: Any, cfg: TeacherConfig, head: GradeHead, base: str | None = None,
        segments: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        assert cfg.pooling is not None
        self.base = base
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.cfg = cfg
        self.head = head
        self.query_last = is_decoder(backbone)
        if segments is None:
            segments = not self.query_last and has_segments(tokenizer, backbone.config)
        self.segments = segments

    @classmethod
    def from_base(cls, cfg: TeacherConfig, scaler: FeatureScaler) -> "CrossEncoder":
        """Randomly initialised head on the base model that `cfg` names.

        Raises:
            UserError: it cannot be loaded, or not be pooled so.
        """
        backbone, tokenizer = load_backbone(cfg.base_model, cfg.revision, cfg.num_layers, cfg.quantize)
        cfg, base = with_pooling(cfg, backbone.config), None
        if cfg.lora_rank is not None:
            loops = [cfg.train] if cfg.pretrain is None else [cfg.train, cfg.pretrain.train]
            backbone = add_adapters(backbone, cfg.lora_rank, any(loop.train_embeddings for loop in loops))
            base = model_identity(cfg.base_model, cfg.revision)
        return cls(backbone, tokenizer, cfg, GradeHead(backbone.config.hidden_size, cfg, scaler), base)

    @property
    def backbones(self) -> list[Any]:
        """Its language model."""
        return [self.backbone]

    # --- prepare -> forward -> finish ---

    @property
    def preparer(self) -> PairPreparer:
        """Preparer of this model's inputs."""
        return PairPreparer(self.tokenizer, self.cfg, self.head.scaler, self.query_last, self.segments)

    def prepare(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> dict[str, Any]:
        """See `PairPreparer.prepare`."""
        return self.preparer.prepare(queries, pin_texts, features)

    def forward(self, batch: dict[str, Any]) -> Any:
        """Logits of grades 1..5, shape (B, 5), float32."""
        return self.head(self.states(batch), batch["features"])

    def states(self, batch: dict[str, Any]) -> Any:
        """Pooled states of padded pairs, (B, K, hidden size) float32: see `GradeHead.forward`."""
        import torch

        read = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        hidden = self.backbone(**read).last_hidden_state.float()
        assert self.cfg.pooling is not None
        if self.cfg.pooling == "spans":
            return torch.stack([pool(hidden, batch["query_mask"], "mean"), pool(hidden, batch["pin_mask"], "mean")], 1)
        return pool(hidden, batch["attention_mask"], self.cfg.pooling).unsqueeze(1)

    def shift_logits(self, by: np.ndarray) -> None:
        """See `GradeHead.shift_logits`."""
        self.head.shift_logits(by)

    def merge_adapters(self) -> None:
        """Merge low-rank adapters, if there are any, into the weights: the same function, and faster."""
        if hasattr(self.backbone, "merge_and_unload"):
            self.backbone = self.backbone.merge_and_unload()
            self.base = None  # its weights are merged

    # --- training and files ---

    def before_training(self, queries: Sequence[str], pin_texts: Sequence[str], cfg: TrainConfig) -> None:
        """Do nothing: a cross-encoder has no states to cache."""

    def param_groups(self, cfg: TrainConfig) -> list[dict[str, Any]]:
        """Optimiser groups: the language model's layers, and everything else at the head's learning rate."""
        groups = backbone_groups(self.backbone, cfg)
        ours = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        return [*groups, {"params": ours, "lr": cfg.head_learning_rate}]

    def save_pretrained(self, folder: Path) -> None:
        """Write `lm/` (transformers, or peft for adapters), `head.safetensors` and `model.json`.

        `model.json` names the weights under the adapters, so that the folder's hash covers them too.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save_pretrained(folder / "lm")
        self.tokenizer.save_pretrained(folder / "lm")
        about = {"kind": "cross_encoder", "config": self.cfg.model_dump(mode="json"), "token_type_ids": self.segments}
        self.head.save(folder, about | ({} if self.base is None else {"base": self.base}))

    @classmethod
    def from_pretrained(cls, folder: Path, scaler: FeatureScaler | None = None) -> "CrossEncoder":
        """Read what `save_pretrained` wrote, in evaluation mode.

        Args:
            scaler: Replaces the saved one, to train further: then adapters can be trained, over a base model held as
                `train_teacher.quantize` says. None: for inference, with the base model in full precision.

        Raises:
            UserError: the weights under its adapters are others than those that it was trained over.
        """
        cfg, base = read_teacher_config(folder), read_about(folder).get("base")
        if base is not None and (found := model_identity(cfg.base_model, cfg.revision)) != base:
            raise UserError(
                f"the teacher in {folder} was trained as adapters over train_teacher.base_model {cfg.base_model!r} with the weights "
                f"{base}, which are now {found}; put the old ones back, or run `python pipelines/train_teacher.py` again"
            )
        further = scaler is not None
        backbone, tokenizer = load_saved_backbone(
            folder / "lm", cfg.base_model, cfg.revision, cfg.num_layers,
            quantize=cfg.quantize if further else None, trainable=further,
        )  # fmt: skip
        head = GradeHead.load(folder, scaler)
        return cls(backbone, tokenizer, cfg, head, base, reads_segments(folder)).eval()
