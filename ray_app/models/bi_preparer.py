"""Inputs of the bi-encoder: texts to token ids, on the CPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_app.base.config import DistillConfig
from ray_app.models.encoder_usage import Role, with_prompt
from ray_app.models.head import FeatureScaler
from ray_app.models.tokens import pad_rows, token_rows

TOWERS: tuple[Role, ...] = ("query", "pin")


def tower_limit(cfg: DistillConfig, tower: Role) -> int:
    """Longest text of a tower in tokens, its prompt and special tokens included."""
    return {"query": cfg.max_query_tokens, "pin": cfg.max_pin_tokens}[tower]


def tower_prompt(cfg: DistillConfig, tower: Role) -> str:
    """Prompt before each text of a student's tower."""
    return {"query": cfg.query_prompt, "pin": cfg.pin_prompt}[tower] or ""


def tower_rows(tokenizer: Any, cfg: DistillConfig, tower: Role, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts as a student's tower reads them, in training and after it; see `pad_rows`."""
    return token_rows(tokenizer, with_prompt(tower_prompt(cfg, tower), texts), tower_limit(cfg, tower))


@dataclass(frozen=True)
class BiPreparer:
    """Preparer of a bi-encoder's inputs; has no weights, so that it can be sent to where the texts are."""

    tokenizer: Any  # of the language model; None: the model reads features only
    cfg: DistillConfig  # lengths and prompts
    scaler: FeatureScaler  # of the query-pin features
    states: Mapping[tuple[str, str], Any] | None = None
    """(tower, text) -> its pooled state, where they were computed once for all epochs."""

    def lengths(self, queries: Sequence[str], pin_texts: Sequence[str]) -> np.ndarray:
        """Tokens of query and pin together, (B,) int64; 1 where no token is read."""
        if self.tokenizer is None or self.states is not None:
            return np.ones(len(queries), np.int64)
        total = np.zeros(len(queries), np.int64)
        for name, texts in zip(TOWERS, (queries, pin_texts), strict=True):
            unique, place = np.unique(np.array(texts, dtype=object), return_inverse=True)
            ids = tower_rows(self.tokenizer, self.cfg, name, unique.tolist()) if len(unique) else []
            total += np.array([len(row) for row in ids], np.int64)[place]
        return total

    def prepare(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> dict[str, Any]:
        """CPU tensors of a batch of B pairs; a text of several pairs is encoded once.

        Args:
            features: (B, num_features), not standardised.
        """
        import torch

        batch: dict[str, Any] = {"features": torch.from_numpy(self.scaler.transform(features))}
        if self.tokenizer is None:
            return batch
        for name, texts in zip(TOWERS, (queries, pin_texts), strict=True):
            unique = list(dict.fromkeys(texts))
            place = {text: i for i, text in enumerate(unique)}
            batch[f"{name}_rows"] = torch.tensor([place[text] for text in texts])
            if self.states is not None:
                batch[f"{name}_states"] = torch.stack([self.states[name, text] for text in unique])
                continue
            tokens = pad_rows(self.tokenizer, tower_rows(self.tokenizer, self.cfg, name, unique))
            batch |= {f"{name}_{key}": value for key, value in tokens.items()}
        return batch
