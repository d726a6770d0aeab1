"""State of a training run: what a checkpoint holds."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray_app.base.config import TrainConfig
from ray_app.training.batches import Place


@dataclass
class TrainState:
    """State of a resumed run besides the weights."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps finished in the current epoch
    total_steps: int = 0  # steps finished
    loss_sum: float = 0.0  # sum over those `step` steps and all workers
    tokens: int = 0  # processed by all workers
    padded_tokens: int = 0
    best_epoch: int = -1
    best_loss: float = math.inf
    history: list[dict[str, float | None]] = field(default_factory=list)
    """One entry per epoch: epoch, train_loss, valid_loss (None: no validation pairs), padding_share."""

    def stopped(self, cfg: TrainConfig) -> bool:
        """Return True if training is over: all epochs done, or no better epoch for `early_stopping_patience` epochs."""
        return self.epoch >= cfg.epochs or (
            self.best_epoch >= 0 and self.epoch - 1 - self.best_epoch >= cfg.early_stopping_patience
        )


@dataclass
class Worker:
    """Rank of this process among the training workers, and its handling of checkpoints and metrics."""

    rank: int = 0
    size: int = 1
    wrap: Callable[[Any], Any] = lambda model: model  # DistributedDataParallel or FSDP2 on a cluster
    report: Callable[[dict[str, float], Callable[[Path], None]], None] = lambda metrics, save: None
    """Called the same number of times by every worker; `save(folder)` writes a resumable checkpoint, if this worker is to write one."""
    is_due: Callable[[bool], bool] = lambda epoch_ended: epoch_ended
    """Returns True if this step is to be reported, given whether it ended an epoch; the same on every worker."""
    total: Callable[[float], float] = lambda value: value  # sum over the workers
    track: Callable[[dict[str, float], int], None] = lambda metrics, step: None  # on the first worker only

    @property
    def place(self) -> Place:
        """Place of this worker among all."""
        return Place(self.rank, self.size)


# --- weights and checkpoints ---


def _options(load: bool = False, spread: bool = False) -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    # Frozen weights are those of the base model. When loading, the first worker has all weights and sends the others theirs.
    return StateDictOptions(
        full_state_dict=True, cpu_offload=not load, ignore_frozen_params=True, broadcast_from_rank0=spread, strict=False
    )


def trained_weights(model: Any) -> dict[str, Any]:
    """Complete trained weights on the CPU; empty on all workers but the first if the model is sharded."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    found: dict[str, Any] = get_model_state_dict(model, options=_options())
    return {name: tensor.clone() for name, tensor in found.items()}


def set_weights(model: Any, weights: dict[str, Any], worker: Worker) -> None:
    """Load these weights into the model; each worker of a sharded one gets its shard."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(model, weights, options=_options(load=True, spread=_is_sharded(model)))


def _is_sharded(model: Any) -> bool:
    return hasattr(model, "set_requires_gradient_sync")


def save_checkpoint(
    model: Any, optimizer: Any, state: TrainState, best: dict[str, Any], worker: Worker, folder: Path
) -> None:
    """Write a checkpoint. Every worker must call it if the model is sharded; the first one writes."""
    import torch
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, moments = get_state_dict(model, optimizer, options=_options())
    if worker.rank == 0:
        torch.save({"model": weights, "best": best, "optimizer": moments}, folder / "state.pt")
        (folder / "state.json").write_text(json.dumps(asdict(state)))


def load_checkpoint(folder: Path, model: Any, optimizer: Any, worker: Worker) -> tuple[TrainState, dict[str, Any]]:
    """The inverse of `save_checkpoint`."""
    import torch
    from torch.distributed.checkpoint.state_dict import set_state_dict

    saved = torch.load(folder / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    set_state_dict(
        model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"],
        options=_options(load=True, spread=_is_sharded(model)),
    )  # fmt: skip
    return TrainState(**json.loads((folder / "state.json").read_text())), saved["best"]
