"""Texts -> unit embeddings with a language model: prepare (CPU) -> forward (device) -> finish (CPU)."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_app.base.config import CaptionConfig, EmbedConfig, FeatureConfig, LabelConfig
from ray_app.models.devices import autocast, pick_device, pick_dtype, use_cpu_threads
from ray_app.models.encoder_usage import EncoderUsage, Role, check_prompt_fits, read_usage, with_prompt
from ray_app.models.model_sources import load_backbone
from ray_app.models.tokens import pad_rows, token_rows


class TextEncoder:
    """A bi-encoder as published (its own pooling and prompts, L2 norm), not trained by us: baseline, retriever and
    teacher feature.

    Args:
        max_tokens: Longer texts are cut; the prompt counts and is never cut.
        usage: Pooling and prompts; None: as the model's files say.

    Raises:
        UserError: the model cannot be loaded, or cannot be used as its files say.
    """

    def __init__(
        self, source: str, revision: str | None, max_tokens: int, dtype: str = "float32", cpu_threads: int = 0,
        *, role: Role, usage: EncoderUsage | None = None,
    ) -> None:  # fmt: skip
        import torch

        self.usage = usage or read_usage(source, revision, "features.zero_shot_")
        self.role = role
        self.model, self.tokenizer = load_backbone(source, revision)
        for prompt in (self.usage.query_prompt, self.usage.pin_prompt):
            check_prompt_fits(self.tokenizer, prompt, max_tokens, "features.zero_shot_max_tokens")
        self.model.eval()
        self.max_tokens = max_tokens
        self.dim: int = self.model.config.hidden_size
        self.device = pick_device(cpu_threads)
        self.dtype = pick_dtype(dtype, self.device)
        self.model.to(self.device)
        self._torch = torch

    def as_role(self, role: Role) -> "TextEncoder":
        """The same model for texts of that role."""
        other = copy.copy(self)
        other.role = role
        return other

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Embeddings of shape (num_texts, dim), float32, unit length, row i for text i."""
        prompted = with_prompt(self.usage.prompt(self.role), texts)
        return run_bucketed(token_rows(self.tokenizer, prompted, self.max_tokens), batch_size, self._encode_batch)

    def _encode_batch(self, rows: Sequence[list[int]]) -> np.ndarray:
        from ray_app.models.pooling import pool

        use_cpu_threads()
        batch = {name: t.to(self.device) for name, t in pad_rows(self.tokenizer, rows).items()}
        with self._torch.inference_mode(), autocast(self.device, self.dtype):
            hidden = self.model(**batch).last_hidden_state
        vectors = pool(hidden.float(), batch["attention_mask"], self.usage.pooling)
        return self._torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()


def run_bucketed(rows: Sequence[Any], batch_size: int, forward: Any) -> np.ndarray:
    """Apply `forward` to batches of similar length and put the rows back in order.

    The batches depend on the rows alone, so that equal blocks give equal bytes.

    Args:
        rows: Texts, or better lists of their tokens: on product texts batches by characters held 40% padding.
        forward: Rows of a batch -> array, row i for row i.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), rows[i], i))
    results: list[np.ndarray] = []
    for start in range(0, len(order), batch_size):
        results.append(forward([rows[i] for i in order[start : start + batch_size]]))
    stacked = np.concatenate(results)
    back = np.empty_like(stacked)
    back[order] = stacked
    return back


def stage_dtype(section: CaptionConfig | EmbedConfig | LabelConfig) -> str:
    """The stage's `dtype` with `auto` resolved: call it on the driver, and pass the result to recipe and workers.

    Else a result would depend on the machine that processes a row, and both kinds would share one key. Workers
    without such hardware compute bfloat16 slowly, but equally.
    """
    return pick_dtype(section.dtype, "cuda" if section.num_gpus else "cpu")


def build_zero_shot(cfg: FeatureConfig, usage: EncoderUsage, role: Role, dtype: str, cpu_threads: int) -> TextEncoder:
    """Load the encoder; runs in the Ray actor."""
    return TextEncoder(
        cfg.zero_shot_model, cfg.zero_shot_revision, cfg.zero_shot_max_tokens, dtype, cpu_threads, role=role,
        usage=usage,
    )  # fmt: skip
