"""Losses: five logits against a distribution over grades, and margin-MSE between pins of one query.

The head always gives a distribution over the five grades, so that whatever reads probabilities is the same for each.
"""

from collections.abc import Callable
from typing import Any

from ray_app.base.config import TrainConfig
from ray_app.base.schemas import NUM_GRADES

Loss = Callable[[Any, Any], Any]  # logits (B, 5), targets (B, 5) -> (B,)

_LEAST = 1e-6  # probability: a teacher that is sure leaves no other grade a logarithm


def soft_cross_entropy(logits: Any, targets: Any) -> Any:
    """Cross-entropy against distributions. Shapes (B, 5), (B, 5) -> (B,)."""
    return -(targets * logits.log_softmax(-1)).sum(-1)


def hard_cross_entropy(logits: Any, targets: Any) -> Any:
    """Cross-entropy against the likeliest grade (of equal ones the lowest)."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, targets.argmax(-1), reduction="none")


def ordinal_cross_entropy(logits: Any, targets: Any) -> Any:
    """Sum over k of the cross-entropy of "the grade is above k": two grades off costs more than one."""
    log_probs = logits.log_softmax(-1)
    # Sums of probabilities as logarithms: one that is clamped away from 0 has no gradient, however wrong it is.
    above = log_probs.flip(-1).logcumsumexp(-1).flip(-1)[:, 1:]
    at_most = log_probs.logcumsumexp(-1)[:, :-1]
    wanted = targets.flip(-1).cumsum(-1).flip(-1)[:, 1:]
    return -(wanted * above + (1 - wanted) * at_most).sum(-1)


def kl_with_temperature(logits: Any, targets: Any, temperature: float) -> Any:
    """KL divergence of both sides softened by `temperature`, times its square, as in Hinton et al. (2015)."""
    soft = (targets.clamp(min=_LEAST).log() / temperature).log_softmax(-1)
    ours = (logits / temperature).log_softmax(-1)
    return temperature**2 * (soft.exp() * (soft - ours)).sum(-1)


def margin_mse(logits: Any, targets: Any, groups: Any) -> Any:
    """Margin-MSE: squared error of the difference of two pins' scores, mean over the query's other pins.

    Source: margin-MSE of Hofstätter et al. (2020), on expected grades.

    Args:
        logits, targets: (B, 5).
        groups: (B,) int64, equal for pairs of one query.

    Returns:
        (B,); 0 where the batch has no other pin of the query.
    """
    import torch

    grades = torch.arange(1, NUM_GRADES + 1, device=logits.device, dtype=logits.dtype)
    off = logits.softmax(-1) @ grades - targets @ grades
    other = (groups[:, None] == groups[None]) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    return ((off[:, None] - off[None]) ** 2 * other).sum(1) / other.sum(1).clamp(min=1)


def loss_of(cfg: TrainConfig) -> Loss:
    """Return the loss that the config names, without its margin part."""
    if cfg.loss == "kl":
        return lambda logits, targets: kl_with_temperature(logits, targets, cfg.loss_temperature)
    return {"soft": soft_cross_entropy, "hard": hard_cross_entropy, "ordinal": ordinal_cross_entropy}[cfg.loss]
