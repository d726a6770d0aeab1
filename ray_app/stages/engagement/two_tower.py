"""A two-tower model of engagement, in the manner of SearchSAGE: trained on (query, engaged pin) pairs of the log.

Both towers read zero-shot vectors; a pin adds what is learned of it alone. Plain torch, no Ray: `train` is one call.
Source: SearchSAGE, https://medium.com/pinterest-engineering/searchsage-learning-search-query-representations-at-pinterest-654f2bb887fc
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_app.base.config import EngagementConfig
from ray_app.features.query_tower import QueryTower
from ray_app.stages.engagement.events import Pairs
from ray_app.training.contrastive import (
    batches,
    false_negative_mask,
    log_frequency,
    recall,
    sampled_softmax_loss,
    svd_components,
)

OWN_RATE = 10.0  # measured on the demo (2,000 and 10,000 pins): 1 gains nothing, 30 no more
MAX_MEASURED = 2_000  # guessed: held-out queries, or saves, that recall is measured on: enough for two digits


@dataclass(frozen=True, kw_only=True)
class TwoTower:
    """A trained model.

    Args:
        tower: Of queries.
        pin_vectors: (num_pins, dim) float32 unit vectors of the engaged pins.
        info: Recall and losses.
    """

    tower: QueryTower
    pin_vectors: np.ndarray
    info: dict[str, Any]


def train(pairs: Pairs, queries: np.ndarray, pins: np.ndarray, cfg: EngagementConfig, seed: int) -> TwoTower:
    """Train on the pairs that are not held out, and measure on those that are.

    The same on any machine that computes the same sums; the caller sets the number of threads, which decides their order.

    Args:
        pairs: Engaged pairs; may be none.
        queries: (number of queries in `pairs`, width) float32 zero-shot vectors.
        pins: (number of pins in `pairs`, width) float32 zero-shot vectors.
        cfg: Settings.
        seed: Decides the first weights, the order of pairs and dropout.
    """
    import torch
    from torch.nn.functional import normalize

    rng = np.random.default_rng(seed)
    axes = svd_components(pins, cfg.dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        query_tower, pin_tower = (_build_tower(axes, cfg.hidden_dim) for _ in range(2))
    own = torch.nn.Embedding(len(pins), cfg.dim, _weight=torch.zeros(len(pins), cfg.dim))  # of a pin alone
    groups: list[dict[str, Any]] = [
        {"params": [*query_tower.parameters(), *pin_tower.parameters()]},
        {"params": own.parameters(), "lr": OWN_RATE * cfg.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, lr=cfg.learning_rate)
    x_queries, x_pins = torch.tensor(queries), torch.tensor(pins)

    used = np.flatnonzero(~pairs.held_out)
    log_prob = log_frequency(pairs.pin[used], len(pins))
    codes = np.sort(pairs.query[used] * len(pins) + pairs.pin[used])
    losses = []
    for _ in range(cfg.epochs):
        total, steps = 0.0, batches(len(used), cfg.batch_size, rng)
        for step in steps:
            rows = used[step]
            query, pin = pairs.query[rows], pairs.pin[rows]
            kept = torch.from_numpy((rng.random(len(rows)) >= cfg.id_dropout).astype(np.float32))[:, None]
            query_vectors = normalize(_forward(query_tower, x_queries[query]), dim=1)
            pin_vectors = normalize(_forward(pin_tower, x_pins[pin]) + kept * own(torch.from_numpy(pin)), dim=1)
            loss = sampled_softmax_loss(
                query_vectors @ pin_vectors.T,
                torch.from_numpy(log_prob[pin]),
                torch.from_numpy(false_negative_mask(query, pin, codes, len(pins))),
                torch.from_numpy(pairs.weight[rows]),
                cfg.temperature,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) / len(steps)
        losses.append(round(total, 4))

    tower = QueryTower(weights={name: value.detach().numpy() for name, value in query_tower.state_dict().items()})
    with torch.no_grad():
        text_only = normalize(_forward(pin_tower, x_pins), dim=1).numpy()
        with_own = normalize(_forward(pin_tower, x_pins) + own.weight, dim=1).numpy()
    asked = np.unique(pairs.query[pairs.held_out])
    if len(asked) > MAX_MEASURED:
        asked = rng.choice(asked, MAX_MEASURED, replace=False)
    measured = np.flatnonzero(pairs.held_out & np.isin(pairs.query, asked))
    query, pin = pairs.query[measured], pairs.pin[measured]
    learned = tower.encode(queries)
    info = {
        "recall_at_10": recall(learned, with_own, query, pin, codes),
        "recall_at_10_text_only": recall(learned, text_only, query, pin, codes),
        "recall_at_10_zero_shot": recall(queries, pins, query, pin, codes),
        "measured_queries": len(asked),
        "measured_among_pins": len(pins),
        "losses": losses,
    }
    return TwoTower(tower=tower, pin_vectors=with_own, info=info)


def _build_tower(axes: np.ndarray, hidden: int) -> Any:
    """The layers of a `QueryTower`, starting as the projection on `axes`: the last layer starts as zeros."""
    import torch

    dim, width = axes.shape
    tower: Any = torch.nn.ModuleDict(
        {
            "skip": torch.nn.Linear(width, dim, bias=False),
            "hidden": torch.nn.Linear(width, hidden),
            "out": torch.nn.Linear(hidden, dim),
        }
    )
    with torch.no_grad():
        tower["skip"].weight.copy_(torch.from_numpy(axes))
        tower["out"].weight.zero_()
        tower["out"].bias.zero_()
    return tower


def _forward(tower: Any, x: Any) -> Any:
    return tower["skip"](x) + tower["out"](tower["hidden"](x).relu())
