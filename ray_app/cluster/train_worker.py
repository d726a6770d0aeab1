"""Body of one Ray Train worker."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from ray_app.base.storage import Storage
from ray_app.cluster.streaming import Streamed
from ray_app.cluster.train_job import JOB_FILE, ExampleFiles, TrainJob
from ray_app.models.backbone import transformer_layers
from ray_app.models.calibration import FILE as CALIBRATION_FILE
from ray_app.models.calibration import fit_calibration
from ray_app.models.checkpoint import save_model
from ray_app.tables.model_files import model_files
from ray_app.training.batches import Source
from ray_app.training.examples import Examples
from ray_app.training.loop import fit, predict
from ray_app.training.quantized import labelling_form
from ray_app.training.state import Worker, trained_weights
from ray_app.training.tracking import start_tracking


def train_worker(config: dict[str, Any]) -> None:
    """Training function of each Ray Train worker."""
    import torch

    device = ray.train.torch.get_device()
    size = ray.train.get_context().get_world_size()
    if device.type == "cpu":
        # Ray sets OMP_NUM_THREADS to the logical CPUs of the task, which is not what the machine has.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    for files, job in config["jobs"]:
        if model_files(config["store"], job.model_folder) is None:  # else: finished before a restart
            _train_job(job, files, config, device)


def _train_job(job: TrainJob, where: ExampleFiles, config: dict[str, Any], device: Any) -> None:
    import torch
    import torch.distributed as dist

    name, seed, store = config["name"], job.seed_of(config["seed"]), config["store"]
    torch.manual_seed(seed)  # the head starts the same on every worker
    model = job.build().to(device)
    peer = _Peer(job, device)
    valid = _read(store, where.valid)
    train: Examples | Source
    if len(where.train) == 1:
        train = _read(store, where.train)
    else:
        train = Streamed(store, where.train, where.train_rows, where.train_weight, model.preparer)
    worker = Worker(
        rank=peer.rank, size=peer.size, wrap=peer.wrap, report=peer.report, is_due=peer.is_due, total=peer.total
    )
    if peer.rank == 0:
        worker.track = start_tracking(job.cfg, store, name, job.model_folder)
    with peer.checkpoint(store, config["rescued"]) as folder:
        state = fit(model, train, valid, job.cfg, seed, worker, resume_from=folder)
    if peer.is_sharded:
        whole = trained_weights(model)
        if peer.rank == 0:
            model = job.build()
            model.load_state_dict(whole, strict=False)  # the frozen ones are the base model's
    if peer.rank == 0:
        if job.logit_shift is not None:
            model.shift_logits(job.logit_shift)
        pairs = _read(store, where.calibrate_on) if where.calibrate_on else None
        labels_with, about = labelling_form(model, valid, job.cfg)
        files = job.extra_files | about | _describe(job, labels_with, pairs, state.history)
        save_model(model, store, job.model_folder, state.history, files)
    if peer.size > 1:
        dist.barrier()


def _read(store: Storage, files: Sequence[str]) -> Examples:
    return Examples.concatenate([Examples.from_table(store.read_table(file)) for file in files])


def _describe(
    job: TrainJob, model: Any, pairs: Examples | None, history: list[dict[str, float | None]]
) -> dict[str, str]:
    """Texts to save with a trained model: its calibration and its card."""
    calibration, texts = None, {}
    if pairs is not None and job.calibrate_on is not None:
        assert pairs.locales is not None, "calibration is per locale"
        model.before_training(
            pairs.queries, pairs.pin_texts, job.cfg
        )  # a frozen student has states of known texts only
        probs = predict(model, pairs, job.cfg)
        calibration = fit_calibration(
            probs, pairs.targets, pairs.weights, pairs.locales, pairs.queries, job.calibrate_on.fitted_to
        )
    if calibration is not None:
        texts[CALIBRATION_FILE] = calibration.to_json()
    if job.card is not None:
        texts["README.md"] = job.card(history=history, calibration=asdict(calibration) if calibration else None)
    return texts


class _Peer:
    """One of the Ray Train workers of a job: sums over all, and checkpoints by the clock."""

    def __init__(self, job: TrainJob, device: Any) -> None:
        context = ray.train.get_context()
        self.job, self.device = job, device
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.is_sharded = job.cfg.strategy == "fsdp" and self.size > 1
        self._reported = time.monotonic()

    def total(self, value: float) -> float:
        """Sum over the workers."""
        import torch
        import torch.distributed as dist

        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor)

    def wrap(self, model: Any) -> Any:
        """Gradient communication backend."""
        import torch

        if self.is_sharded:
            return _shard(model)
        return torch.nn.parallel.DistributedDataParallel(model) if self.size > 1 else model

    def is_due(self, _epoch_ended: bool) -> bool:
        """Return True if a checkpoint is due; the first worker's clock decides for all."""
        late = time.monotonic() - self._reported >= self.job.cfg.checkpoint_interval_sec
        return self.total(float(self.rank == 0 and late)) > 0

    def report(self, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        """Hand a checkpoint to Ray Train; all workers must call it."""
        self._reported = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            if self.rank == 0 or self.is_sharded:
                save(Path(folder))
            if self.rank != 0:
                ray.train.report(metrics)
                return
            about = {"job": self.job.model_folder, "bytes": {p.name: p.stat().st_size for p in Path(folder).iterdir()}}
            (Path(folder) / JOB_FILE).write_text(json.dumps(about))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    @contextmanager
    def checkpoint(self, store: Storage, rescued: str | None) -> Iterator[Path | None]:
        """Folder of the last checkpoint of this job, if there is one; `rescued`: for want of one that Ray Train knows."""
        found = ray.train.get_checkpoint()
        if found is None and rescued is not None:
            found = ray.train.Checkpoint(rescued, store.fs)
        if found is None:
            yield None
            return
        with found.as_directory() as folder:
            about = json.loads((Path(folder) / JOB_FILE).read_text())
            is_ours = about["job"] == self.job.model_folder  # else it is of the job before
            yield Path(folder) if is_ours else None


def _shard(model: Any) -> Any:
    """FSDP2: each layer's weights, gradients and moments are spread over the workers, and gathered when it computes."""
    from torch.distributed.fsdp import fully_shard

    for layer in [layer for backbone in model.backbones for layer in transformer_layers(backbone)]:
        fully_shard(layer)
    return fully_shard(model)
