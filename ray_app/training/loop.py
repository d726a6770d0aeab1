"""The training loop that train_teacher and distill share: plain torch, no Ray.

A model has a `preparer` that makes its inputs and gives logits (B, 5), or while it trains (views, B, 5) that all count;
the loop knows nothing else of it. A run is a function of seed, data and settings: it takes the same steps on any number
of workers, and one that is resumed at any step takes those that the fault-free one would have taken.
"""

import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.base.config import TrainConfig
from ray_app.models.backbone import save_memory
from ray_app.models.devices import autocast, pick_dtype
from ray_app.training.batches import InMemory, MicroBatch, Source, Step, cut_micro_batches
from ray_app.training.examples import Examples
from ray_app.training.losses import loss_of, margin_mse
from ray_app.training.state import TrainState, Worker, load_checkpoint, save_checkpoint, set_weights, trained_weights

logger = logging.getLogger(__name__)

_STEPS_TO_MOVE = 10  # guessed: the first batch of a run may have weight 0, or a loss that is flat there


def learning_rate_factor(step: int, total: int, warmup_ratio: float, schedule: str = "linear") -> float:
    """Linear warm-up, then linear or cosine decay to zero at `total` steps."""
    warmup = max(1, round(total * warmup_ratio))
    if step < warmup:
        return (step + 1) / warmup
    left = max(0.0, (total - step) / max(1, total - warmup))
    return left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def fit(
    model: Any, train: Examples | Source, valid: Examples, cfg: TrainConfig, seed: int, worker: Worker,
    resume_from: Path | None = None,
) -> TrainState:  # fmt: skip
    """Train `model` in place and leave the weights of its best epoch in it.

    Args:
        model: Has `preparer`, `forward`, `param_groups(cfg)` and `before_training(queries, pin_texts, cfg)`, which may
            make another preparer.
        valid: May be empty: then there is no validation loss and no early stopping, and the last epoch is kept.
        resume_from: Folder that `report` saved earlier; None: from the start.

    Raises:
        ValueError: nothing to train on, a training or validation loss is not finite, or a part of the model that should
            train gets no gradient.
    """
    import torch

    if isinstance(train, Examples):
        if len(train) == 0 or float(train.weights.sum()) <= 0:
            raise ValueError("there is no training example with a weight above 0; training would change nothing")
        model.before_training([*train.queries, *valid.queries], [*train.pin_texts, *valid.pin_texts], cfg)
        train = InMemory(train, model.preparer)
    device = next(model.parameters()).device
    model.param_groups(cfg)  # freezes what is not trained, before the weights are sharded
    save_memory(model, cfg)
    wrapped = worker.wrap(model)
    optimizer = torch.optim.AdamW(model.param_groups(cfg), weight_decay=cfg.weight_decay)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    total_steps = train.steps_per_epoch(cfg) * cfg.epochs

    state, best = TrainState(), trained_weights(model)
    if resume_from is not None:
        state, best = load_checkpoint(resume_from, model, optimizer, worker)
        logger.info("resuming after %d steps of epoch %d", state.step, state.epoch + 1)
    if not state.stopped(cfg):
        run = _Run(model, wrapped, optimizer, cfg, worker, device)
        steps = train.steps(cfg, seed, worker.place, state.epoch, state.step)
        reported, reported_at = state.tokens, time.monotonic()
        loss_sum = state.loss_sum if worker.rank == 0 else 0.0
        tokens, padded = (state.tokens, state.padded_tokens) if worker.rank == 0 else (0, 0)
        step = next(steps, None)
        while step is not None and not state.stopped(cfg):
            model.train()
            factor = learning_rate_factor(state.total_steps, total_steps, cfg.warmup_ratio, cfg.lr_schedule)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            # Dropout of this step, resumed or not.
            torch.manual_seed(((seed * 1009 + state.epoch) * 100_003 + step.index) * 101 + worker.rank)
            loss_sum += run.step(step)
            tokens += sum(micro.tokens for micro in step.micro_batches)
            padded += sum(micro.padded_tokens for micro in step.micro_batches)
            state.step, state.total_steps = step.index + 1, state.total_steps + 1
            following = next(steps, None)
            ended = following is None or following.epoch != step.epoch
            due = worker.is_due(ended)
            if ended or due:
                state.loss_sum = worker.total(loss_sum)
                state.tokens, state.padded_tokens = round(worker.total(tokens)), round(worker.total(padded))
            if ended:
                best, loss_sum = _end_epoch(model, valid, cfg, worker, state, train.weight, best), 0.0
                per_sec = (state.tokens - reported) / max(time.monotonic() - reported_at, 1e-9)
                reported, reported_at = state.tokens, time.monotonic()
                last = {name: value for name, value in state.history[-1].items() if value is not None}
                worker.track(last | {"tokens_per_sec": per_sec}, state.total_steps)
                logger.info(
                    "epoch %d: train loss %.4f, validation loss %s; %.0f tokens/s, %.1f%% padding",
                    state.epoch, last["train_loss"],
                    f"{last['valid_loss']:.4f}" if "valid_loss" in last else "none (no validation pairs)", per_sec,
                    100 * last["padding_share"],
                )  # fmt: skip
            elif worker.rank == 0 and state.total_steps % cfg.logging_steps == 0:
                worker.track({"step_loss": run.last_loss, "learning_rate_factor": factor}, state.total_steps)
            if due:
                shown = {"epochs": float(state.epoch), "total_steps": float(state.total_steps)}
                worker.report(
                    (last if ended else {}) | shown, partial(save_checkpoint, model, optimizer, state, best, worker)
                )
            step = following
        steps.close()
        if run.num_steps:
            run.refuse_untouched()
    set_weights(model, best, worker)
    model.eval()
    return state


def _end_epoch(
    model: Any, valid: Examples, cfg: TrainConfig, worker: Worker, state: TrainState, weight: float,
    best: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Close the epoch in `state`; returns the best weights."""
    train_loss = state.loss_sum / weight
    if not math.isfinite(train_loss):
        raise ValueError(f"the training loss is {train_loss} in epoch {state.epoch}; lower train.learning_rate")
    valid_loss = evaluate_loss(model, valid, cfg, worker) if len(valid) else None
    padding = 1 - state.tokens / max(state.padded_tokens, 1)
    state.history.append(
        {"epoch": state.epoch, "train_loss": train_loss, "valid_loss": valid_loss, "padding_share": round(padding, 4)}
    )
    if valid_loss is None or valid_loss < state.best_loss:
        state.best_epoch, state.best_loss = state.epoch, math.inf if valid_loss is None else valid_loss
        best = trained_weights(model)
    state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
    return best


def evaluate_loss(model: Any, examples: Examples, cfg: TrainConfig, worker: Worker) -> float:
    """Weighted mean loss over all examples, without the margin part; the workers share the batches.

    Raises:
        ValueError: it is not finite: no epoch would ever be the best, and the weights from before training would be kept.
    """
    import torch

    model.eval()
    device = next(model.parameters()).device
    loss, batches = loss_of(cfg), _batches_without_gradients(model, examples, cfg)
    loss_sum, culprit = 0.0, ""
    with torch.inference_mode():
        for start in range(0, len(batches), worker.size):
            # Sharded models need every worker in each forward pass; one without a batch left repeats the last one.
            mine = start + worker.rank < len(batches)
            part = examples.rows(batches[start + worker.rank if mine else -1])
            logits = _logits(model, model.prepare(part.queries, part.pin_texts, part.features), cfg, device)
            losses = loss(logits, torch.from_numpy(np.ascontiguousarray(part.targets, np.float32)).to(device))
            losses = losses.cpu() * torch.from_numpy(part.weights.astype(np.float32))
            loss_sum += float(losses.sum()) if mine else 0.0
            if mine and not culprit and not bool(losses.isfinite().all()):
                row = int((~losses.isfinite()).nonzero()[0])
                culprit = f": query {part.queries[row]!r}, pin text {part.pin_texts[row][:80]!r}"
    mean = worker.total(loss_sum) / max(float(examples.weights.sum()), 1e-9)
    if not math.isfinite(mean):
        raise ValueError(
            f"the validation loss is {mean}{culprit or ', by a pair of another worker'}; check this pair's features and "
            "text, or lower train.learning_rate"
        )
    return mean


def predict(model: Any, examples: Examples, cfg: TrainConfig) -> np.ndarray:
    """Probabilities of grades 1..5, (N, 5) float32, by a model that is not sharded."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    probs = np.zeros((len(examples), examples.targets.shape[1]), np.float32)
    with torch.inference_mode():
        for rows in _batches_without_gradients(model, examples, cfg):
            part = examples.rows(rows)
            logits = _logits(model, model.prepare(part.queries, part.pin_texts, part.features), cfg, device)
            probs[rows] = logits.softmax(-1).cpu().numpy()
    return probs


def _logits(model: Any, inputs: dict[str, Any], cfg: TrainConfig, device: Any) -> Any:
    """Probabilities of a batch, float32."""
    with autocast(device.type, pick_dtype(cfg.dtype, device.type)):
        return model({name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}).float()


def _batches_without_gradients(model: Any, examples: Examples, cfg: TrainConfig) -> list[np.ndarray]:
    """Row numbers of each batch, longest first; they may be twice as large as in training."""
    lengths = model.preparer.lengths(examples.queries, examples.pin_texts)
    longest_first = np.argsort(-lengths, kind="stable")
    size, limit = 2 * cfg.batch_size, cfg.micro_batch_tokens and 2 * cfg.micro_batch_tokens
    batches = [longest_first[start : start + size] for start in range(0, len(examples), size)]
    return [run for rows in batches for run in cut_micro_batches(rows, lengths, limit)]


class _Run:
    """Optimiser steps of one worker."""

    def __init__(self, model: Any, wrapped: Any, optimizer: Any, cfg: TrainConfig, worker: Worker, device: Any) -> None:
        self.model, self.wrapped, self.optimizer = model, wrapped, optimizer
        self.cfg, self.worker, self.device = cfg, worker, device
        self.loss = loss_of(cfg)
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.untouched = list(range(len(optimizer.param_groups)))  # parameter groups without a gradient so far
        self.num_steps = 0
        self.last_loss = math.nan  # mean of the last step over this worker's share

    def step(self, step: Step) -> float:
        """One optimiser step on this worker's share of a global batch; returns its summed, weighted loss."""
        import torch

        # Workers' gradients are averaged, so scale by the worker count to get the mean over the global batch.
        scale = self.worker.size / max(step.weight, 1e-9)
        loss_sum = torch.zeros((), device=self.device)
        for number, micro in enumerate(step.micro_batches, start=1):
            with self._gradients_stay_here(number < len(step.micro_batches)):
                loss = self._loss_of(micro)
                (loss * scale).backward()
            loss_sum += loss.detach()
        if self.untouched:
            self._note_gradients()
        torch.nn.utils.clip_grad_norm_(self.trained, self.cfg.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        total = float(loss_sum)
        self.last_loss = total * scale
        return total

    def _note_gradients(self) -> None:
        """Remove parameter groups that have a gradient from the list of those that had none yet."""
        groups = self.optimizer.param_groups
        for number in list(self.untouched):
            parameters = [p for p in groups[number]["params"] if p.numel()]
            moved = any(map(_has_gradient, parameters)) or not parameters
            if self.worker.total(float(moved)) > 0:
                self.untouched.remove(number)
        self.num_steps += 1
        if self.num_steps == _STEPS_TO_MOVE:
            self.refuse_untouched()

    def refuse_untouched(self) -> None:
        """Refuse a training in which a trainable part of the model stays unchanged, for any reason.

        Such a run ends well with a normal loss curve, since the other parts learn. A part is a parameter group: a layer,
        the embeddings, the head.
        """
        if not self.untouched:
            return
        groups = self.optimizer.param_groups
        names = {id(p): name for name, p in self.model.named_parameters()}
        first = [names.get(id(groups[number]["params"][0]), "?") for number in self.untouched]
        raise ValueError(
            f"{len(first)} of {len(groups)} parts of the model that should train had no gradient in {self.num_steps} steps: "
            f"{', '.join(first[:5])}; they would stay as they were. Check lora_rank, train_top_layers and train_embeddings, "
            "and that the model reads its text"
        )

    def _loss_of(self, micro: MicroBatch) -> Any:
        """Summed, weighted loss of a micro-batch, mean over the model's views."""
        import torch

        targets, weights = micro.targets.to(self.device), micro.weights.to(self.device)
        views = _logits(self.wrapped, micro.inputs, self.cfg, self.device).reshape(-1, *targets.shape)
        total = torch.zeros((), device=self.device)
        for view in views:
            losses = self.loss(view, targets)
            if self.cfg.margin_mse_weight > 0:
                losses = losses + self.cfg.margin_mse_weight * margin_mse(view, targets, micro.groups.to(self.device))
            total = total + (losses * weights).sum()
        return total / len(views)

    def _gradients_stay_here(self, yes: bool) -> AbstractContextManager[Any]:
        """Synchronise gradients between workers only for the last micro-batch."""
        if hasattr(self.wrapped, "set_requires_gradient_sync"):  # FSDP2
            self.wrapped.set_requires_gradient_sync(not yes)
            return nullcontext()
        return self.wrapped.no_sync() if yes and hasattr(self.wrapped, "no_sync") else nullcontext()


def _has_gradient(parameter: Any) -> bool:
    gradient = parameter.grad
    if gradient is None:
        return False
    gradient = gradient.to_local() if hasattr(gradient, "to_local") else gradient  # of FSDP2: this worker's shard
    return bool(gradient.any())
