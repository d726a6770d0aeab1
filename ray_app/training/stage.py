"""The training loop on Ray Train: workers, gradients over the network, checkpoints, restarts after a death."""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.torch import TorchTrainer

from ray_app.config import TrainConfig
from ray_app.errors import UserError
from ray_app.models.checkpoint import model_files, save_model
from ray_app.storage import Storage
from ray_app.training.examples import Examples
from ray_app.training.loop import Worker, fit

logger = logging.getLogger(__name__)

_JOB_FILE = "job.txt"  # in a checkpoint: which job it is of


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One model to train.

    Args:
        build: Makes the untrained model in the worker; must be picklable and cheap to send.
        train: Examples that are trained on.
        valid: Examples that choose the best epoch; may be empty.
        cfg: The loop's settings.
        model_folder: Of the finished model under the storage root; a job whose folder is finished is skipped.
        extra_files: name -> text, saved beside the model.
    """

    build: Callable[[], Any]
    train: Examples
    valid: Examples
    cfg: TrainConfig
    model_folder: str
    extra_files: dict[str, str] = field(default_factory=dict)


def train_on_ray(name: str, jobs: Sequence[TrainJob], seed: int, store: Storage) -> None:
    """Train models one after the other on one group of workers, and save the best epoch of each.

    Small models would otherwise spend more time on starting workers than on training. A driver or worker that died is
    resumed from the last epoch's checkpoint, found by `name`: give equal runs equal names and different runs different
    ones.

    Args:
        name: Identity of the run, such as stage and fingerprint.
        jobs: In order; a job may build on the models of those before it. All on the same number of workers.
        seed: Decides data order and dropout.
        store: Where checkpoints and the models go.

    Raises:
        UserError: training failed more often than `max_failures` of the first job.
    """
    jobs = [job for job in jobs if model_files(store, job.model_folder) is None]
    if not jobs:
        return
    cfg = jobs[0].cfg
    assert all(job.cfg.num_workers == cfg.num_workers for job in jobs), "the jobs share their workers"
    sent = []
    for job in jobs:
        examples = f"training/{name}/examples/{job.model_folder}"
        store.write_table(f"{examples}/train.parquet", job.train.to_table())
        store.write_table(f"{examples}/valid.parquet", job.valid.to_table())
        nothing = job.train.rows(np.arange(0))
        sent.append((examples, replace(job, train=nothing, valid=nothing)))
    use_gpu = _use_gpu(cfg)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"jobs": sent, "seed": seed, "store": store},
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
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(f"training {name} failed: {_last_line(error)}; mend that and run again, it resumes") from error
    store.delete(f"training/{name}")


def _train_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import torch

    device = ray.train.torch.get_device()
    size = ray.train.get_context().get_world_size()
    if device.type == "cpu":
        # Ray sets OMP_NUM_THREADS to the logical CPUs of the task, which is not what the machine has.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    for examples, job in config["jobs"]:
        if model_files(config["store"], job.model_folder) is None:  # else: finished before a restart
            _train_job(job, examples, config["seed"], config["store"], device)


def _train_job(job: TrainJob, examples: str, seed: int, store: Storage, device: Any) -> None:
    import torch
    import torch.distributed as dist

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()

    def total(value: float) -> float:
        if size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return float(tensor)

    def wrap(model: Any) -> Any:
        return torch.nn.parallel.DistributedDataParallel(model) if size > 1 else model

    reported = time.monotonic()

    def is_due() -> bool:
        late = time.monotonic() - reported >= job.cfg.checkpoint_sec
        return total(float(rank == 0 and late)) > 0  # the first worker's clock decides for all

    def report(metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        nonlocal reported
        reported = time.monotonic()
        if rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            (Path(folder) / _JOB_FILE).write_text(job.model_folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    train = Examples.from_table(store.read_table(f"{examples}/train.parquet"))
    valid = Examples.from_table(store.read_table(f"{examples}/valid.parquet"))
    torch.manual_seed(seed)  # the head starts the same on every worker
    model = job.build().to(device)
    worker = Worker(rank=rank, size=size, wrap=wrap, report=report, is_due=is_due, total=total)
    checkpoint = ray.train.get_checkpoint()
    state = None
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            if (Path(folder) / _JOB_FILE).read_text() == job.model_folder:  # else it is of the job before
                state = fit(model, train, valid, job.cfg, seed, worker, resume_from=Path(folder))
    if state is None:
        state = fit(model, train, valid, job.cfg, seed, worker)
    if rank == 0:
        save_model(model, store, job.model_folder, state.history, job.extra_files)
    if size > 1:
        dist.barrier()


def _use_gpu(cfg: TrainConfig) -> bool:
    if cfg.use_gpu == "auto":
        return ray.cluster_resources().get("GPU", 0) >= cfg.num_workers
    return bool(cfg.use_gpu)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
