"""The training loop on Ray Train: workers, gradients over the network, checkpoints, restarts after a death."""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from ray_app.config import TrainConfig
from ray_app.errors import UserError
from ray_app.models.checkpoint import save_model
from ray_app.storage import Storage
from ray_app.training.examples import Examples
from ray_app.training.loop import Worker, fit

logger = logging.getLogger(__name__)


def train_on_ray(
    *,
    name: str,
    build: Callable[[], Any],
    train: Examples,
    valid: Examples,
    cfg: TrainConfig,
    seed: int,
    store: Storage,
    model_folder: str,
    extra_files: dict[str, str] | None = None,
) -> list[dict[str, float]]:
    """Train a model on the cluster and save its best epoch under `model_folder`.

    A driver or worker that died is resumed from the last epoch's checkpoint, found by `name`: give equal runs equal
    names and different runs different ones.

    Args:
        name: Identity of the run, such as stage and fingerprint.
        build: Makes the untrained model; must be picklable and cheap to send.
        train: Examples that are trained on.
        valid: Examples that choose the best epoch; may be empty.
        cfg: The loop's settings.
        seed: Decides data order and dropout.
        store: Where checkpoints and the model go.
        model_folder: Folder of the finished model under the storage root.
        extra_files: name -> text, saved beside the model.

    Returns:
        One dict per epoch: epoch, train_loss, valid_loss.

    Raises:
        UserError: training failed more often than `cfg.max_failures`.
    """
    store.write_table(f"training/{name}/examples/train.parquet", train.to_table())
    store.write_table(f"training/{name}/examples/valid.parquet", valid.to_table())
    use_gpu = _use_gpu(cfg)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "build": build, "cfg": cfg, "seed": seed, "store": store, "name": name, "model_folder": model_folder,
            "extra_files": extra_files or {},
        },
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cfg.num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1}
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=store.full_path("training"),
            storage_filesystem=store.fs,
            failure_config=ray.train.FailureConfig(max_failures=cfg.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(f"training {name} failed: {_last_line(error)}; mend that and run again, it resumes") from error
    history: list[dict[str, float]] = store.read_json(f"{model_folder}/history.json")
    store.delete(f"training/{name}")
    return history


def _train_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import torch
    import torch.distributed as dist

    cfg: TrainConfig = config["cfg"]
    store: Storage = config["store"]
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        # Ray sets OMP_NUM_THREADS to the logical CPUs of the task, which is not what the machine has.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))

    def total(value: float) -> float:
        if size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return float(tensor)

    def wrap(model: Any) -> Any:
        return torch.nn.parallel.DistributedDataParallel(model) if size > 1 else model

    def report(metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        if rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    examples = f"training/{config['name']}/examples"
    train = Examples.from_table(store.read_table(f"{examples}/train.parquet"))
    valid = Examples.from_table(store.read_table(f"{examples}/valid.parquet"))
    torch.manual_seed(config["seed"])  # the head starts the same on every worker
    model = config["build"]().to(device)
    worker = Worker(rank=rank, size=size, wrap=wrap, report=report, total=total)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        state = fit(model, train, valid, cfg, config["seed"], worker)
    else:
        with checkpoint.as_directory() as folder:
            state = fit(model, train, valid, cfg, config["seed"], worker, resume_from=Path(folder))
    if rank == 0:
        save_model(model, store, config["model_folder"], state.history, config["extra_files"])
    if size > 1:
        dist.barrier()


def _use_gpu(cfg: TrainConfig) -> bool:
    if cfg.use_gpu == "auto":
        return ray.cluster_resources().get("GPU", 0) >= cfg.num_workers
    return bool(cfg.use_gpu)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
