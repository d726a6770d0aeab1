"""Pooling of a sequence's hidden states to one vector. Shapes: B batch, T tokens, D hidden size."""

from typing import Any


def pool(hidden_BTD: Any, mask_BT: Any, mode: str) -> Any:
    """One vector per sequence, shape (B, D).

    Args:
        mask_BT: 1 for tokens that count, 0 for padding.
        mode: `cls` (the first token that counts), `mean` (over tokens that count) or `last` (the last token that counts).
    """
    import torch

    if mode == "cls":
        first = mask_BT.argmax(1)  # the first 1: padding may be on the left
        return hidden_BTD[torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device), first]
    if mode == "mean":
        mask = mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
        # A row without any token gives zeros: 0 / 1 rather than 0 / 0.
        return (hidden_BTD * mask).sum(1) / mask.sum(1).clamp(min=1.0)
    if mode == "last":
        # argmax over a position ramp finds the last 1 for left and right padding.
        ramp = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        last = (mask_BT * ramp).argmax(1)
        return hidden_BTD[torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device), last]
    raise ValueError(f"pooling must be cls, mean or last, not {mode!r}")
