"""The training loop that teach and distill share: plain torch, no Ray.

A model offers `prepare(queries, pin_texts, features) -> batch` and `forward(batch) -> logits (B, 5)`; the loop knows
nothing else of it. The order of the data is a function of (seed, epoch) alone, and a global batch is cut into one
share per worker, so the same run on 1 or 2 workers sees the same batches, and a resumed run continues where it was.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.config import TrainConfig
from ray_app.models.text_encoder import autocast, pick_dtype
from ray_app.training.examples import Examples

logger = logging.getLogger(__name__)

BUCKET_BATCHES = 20  # batches that are sorted by length together: guessed; more pads less and shuffles less


@dataclass
class TrainState:
    """What a resumed run needs besides the weights."""

    epoch: int = 0  # epochs finished
    best_epoch: int = -1
    best_loss: float = math.inf
    history: list[dict[str, float]] = field(default_factory=list)

    def stopped(self, cfg: TrainConfig) -> bool:
        """Whether training is over: all epochs done, or no better epoch for `patience` epochs."""
        return self.epoch >= cfg.epochs or (self.best_epoch >= 0 and self.epoch - 1 - self.best_epoch >= cfg.patience)


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Row numbers of each global batch of an epoch: shuffled, then grouped by similar length to save padding.

    Args:
        lengths: (N,) a measure of each example's cost, such as its characters.
        batch_size: Rows per batch; the last batch may be shorter.
        seed: Of the run.
        epoch: 0-based.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    span = batch_size * BUCKET_BATCHES
    for start in range(0, len(order), span):
        bucket = order[start : start + span]
        bucket = bucket[np.argsort(-lengths[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def soft_cross_entropy(logits: Any, targets: Any) -> Any:
    """Cross-entropy against distributions. Shapes (B, 5), (B, 5) -> (B,)."""
    return -(targets * logits.log_softmax(-1)).sum(-1)


def learning_rate_factor(step: int, total: int, warmup_share: float) -> float:
    """Linear warm-up, then linear decay to zero at `total` steps."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


@dataclass
class Worker:
    """This process's place among the training workers, and what it does after each epoch."""

    rank: int = 0
    size: int = 1
    wrap: Callable[[Any], Any] = lambda model: model  # DistributedDataParallel on a cluster
    report: Callable[[dict[str, float], Callable[[Path], None]], None] = lambda metrics, save: None
    """Called by every worker equally often; `save(folder)` writes a resumable checkpoint."""
    is_due: Callable[[], bool] = lambda: True  # whether an epoch's end is worth a report; the same on every worker
    total: Callable[[float], float] = lambda value: value  # sum over the workers


def fit(
    model: Any,
    train: Examples,
    valid: Examples,
    cfg: TrainConfig,
    seed: int,
    worker: Worker,
    resume_from: Path | None = None,
) -> TrainState:
    """Train `model` in place and leave the weights of its best epoch in it.

    Args:
        model: Has `prepare`, `forward`, `param_groups(cfg)` and `before_training(queries, pin_texts, cfg)`.
        train: Must not be empty.
        valid: May be empty: then the last epoch counts as the best.
        cfg: The loop's settings.
        seed: Decides data order and dropout.
        worker: This process among the workers.
        resume_from: Folder that `report` saved earlier; None: from the start.

    Raises:
        ValueError: nothing to train on, or the loss is not finite.
    """
    import torch

    if len(train) == 0 or float(train.weights.sum()) <= 0:
        raise ValueError("there is no training example with a weight above 0; training would change nothing")
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.param_groups(cfg), weight_decay=cfg.weight_decay)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    lengths = np.array([len(q) + len(p) for q, p in zip(train.queries, train.pin_texts, strict=True)])
    steps_per_epoch = math.ceil(len(train) / cfg.batch_size)
    total_steps = steps_per_epoch * cfg.epochs

    state = TrainState()
    best = _copy_weights(model)
    if resume_from is not None:
        state, best = _load(resume_from, model, optimizer)
        logger.info("resuming after epoch %d", state.epoch)
    model.before_training([*train.queries, *valid.queries], [*train.pin_texts, *valid.pin_texts], cfg)
    wrapped = worker.wrap(model)

    while not state.stopped(cfg):
        torch.manual_seed(seed * 100_003 + state.epoch * 101 + worker.rank)  # dropout of this epoch, resumed or not
        model.train()
        loss_sum = 0.0
        step = state.epoch * steps_per_epoch
        for rows in epoch_batches(lengths, cfg.batch_size, seed, state.epoch):
            factor = learning_rate_factor(step, total_steps, cfg.warmup_share)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            loss_sum += _train_step(wrapped, model, optimizer, train, rows, cfg, worker, device)
            step += 1
        train_loss = worker.total(loss_sum) / float(train.weights.sum())
        if not math.isfinite(train_loss):
            raise ValueError(f"the training loss is {train_loss} in epoch {state.epoch}; lower train.learning_rate")
        valid_loss = evaluate_loss(model, valid, cfg, worker) if len(valid) else train_loss
        state.history.append({"epoch": state.epoch, "train_loss": train_loss, "valid_loss": valid_loss})
        if valid_loss < state.best_loss or not len(valid):
            state.best_epoch, state.best_loss = state.epoch, valid_loss
            best = _copy_weights(model)
        state.epoch += 1
        logger.info("epoch %d: train loss %.4f, valid loss %.4f", state.epoch, train_loss, valid_loss)
        if worker.is_due():
            worker.report(state.history[-1], partial(_save, model, optimizer, state, best))
    model.load_state_dict(best)
    model.eval()
    return state


def evaluate_loss(model: Any, examples: Examples, cfg: TrainConfig, worker: Worker) -> float:
    """Weighted mean loss over all examples; the workers share the batches."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    loss_sum = 0.0
    with torch.inference_mode():
        starts = list(range(0, len(examples), 2 * cfg.batch_size))
        for start in starts[worker.rank :: worker.size]:
            share = examples.rows(np.arange(start, min(start + 2 * cfg.batch_size, len(examples))))
            loss_sum += float(_weighted_loss(model, model, share, cfg, device).sum())
    return worker.total(loss_sum) / max(float(examples.weights.sum()), 1e-9)


def _train_step(
    wrapped: Any, model: Any, optimizer: Any, train: Examples, rows: np.ndarray, cfg: TrainConfig, worker: Worker,
    device: Any,
) -> float:  # fmt: skip
    """One optimiser step on this worker's share of a global batch; returns its summed, weighted loss."""
    import torch

    # Every worker needs at least one row, or the others wait for its gradients for ever.
    share = np.array_split(rows, worker.size)[worker.rank] if len(rows) >= worker.size else rows[:1]
    losses = _weighted_loss(wrapped, model, train.rows(share), cfg, device)
    # Workers' gradients are averaged, so scale by the worker count to get the mean over the global batch.
    scale = worker.size / max(float(train.weights[rows].sum()), 1e-9)
    if len(rows) < worker.size and worker.rank >= len(rows):
        scale = 0.0
    (losses.sum() * scale).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(losses.detach().sum()) if scale else 0.0


def _weighted_loss(forward: Any, model: Any, examples: Examples, cfg: TrainConfig, device: Any) -> Any:
    import torch

    batch = {
        name: tensor.to(device)
        for name, tensor in model.prepare(examples.queries, examples.pin_texts, examples.features).items()
    }
    targets = torch.from_numpy(np.ascontiguousarray(examples.targets, dtype=np.float32)).to(device)
    weights = torch.from_numpy(np.ascontiguousarray(examples.weights, dtype=np.float32)).to(device)
    with autocast(device.type, pick_dtype(cfg.dtype, device.type)):
        logits = forward(batch)
    return soft_cross_entropy(logits.float(), targets) * weights


def _copy_weights(model: Any) -> dict[str, Any]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _save(model: Any, optimizer: Any, state: TrainState, best: dict[str, Any], folder: Path) -> None:
    import torch

    torch.save({"model": model.state_dict(), "best": best, "optimizer": optimizer.state_dict()}, folder / "state.pt")
    (folder / "state.json").write_text(json.dumps(asdict(state)))


def _load(folder: Path, model: Any, optimizer: Any) -> tuple[TrainState, dict[str, Any]]:
    import torch

    saved = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return TrainState(**json.loads((folder / "state.json").read_text())), saved["best"]
