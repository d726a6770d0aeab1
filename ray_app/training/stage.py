"""The training loop on Ray Train: workers, gradients over the network, checkpoints, restarts after a death."""

import itertools
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from ray_app.config import DistillConfig, TeachConfig, TrainConfig, WarmUpConfig, WorkersConfig
from ray_app.errors import UserError
from ray_app.models.backbone import transformer_layers
from ray_app.models.calibration import FILE as CALIBRATION_FILE
from ray_app.models.calibration import fit_calibration
from ray_app.models.checkpoint import model_files, save_model
from ray_app.models.sources import pinned_revision
from ray_app.models.text_encoder import pick_dtype
from ray_app.storage import CorruptFileError, Storage
from ray_app.training.batches import Source, Streamed, query_batches
from ray_app.training.examples import Examples
from ray_app.training.loop import Worker, fit, predict, trained_weights
from ray_app.training.quantized import labelling_form
from ray_app.training.tracking import start_tracking

logger = logging.getLogger(__name__)

JOB_FILE = "job.json"  # in a checkpoint: which job it is of, and the bytes of its files
_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of the checkpoints
_ROWS_PER_FILE = 8192  # of examples that are streamed: windows are made of such files


_Trained = TypeVar("_Trained", TeachConfig, DistillConfig)


def resolved(cfg: _Trained) -> _Trained:
    """A training's section as all workers are to read it: no dtype `auto`, and the commit of its base model.

    Both are part of what decides the model, and a worker's machine may choose otherwise than the driver's. With GPUs
    (`use_gpu`) `auto` is bfloat16, else as this machine's CPU has it.
    """

    def loop(train: TrainConfig) -> TrainConfig:
        if train.dtype != "auto":
            return train
        return train.model_copy(update={"dtype": pick_dtype("auto", "cuda" if _use_gpu(cfg) else "cpu")})

    update: dict[str, Any] = {"revision": pinned_revision(cfg.base_model, cfg.revision)}
    for name in type(cfg).model_fields:
        value = getattr(cfg, name)
        if isinstance(value, TrainConfig):
            update[name] = loop(value)
        elif isinstance(value, WarmUpConfig):
            update[name] = value.model_copy(update={"train": loop(value.train)})
    return cfg.model_copy(update=update)


@dataclass(frozen=True, kw_only=True)
class CalibrationPairs:
    """Pairs that temperatures are fitted on.

    Args:
        examples: Not trained on, with locales; targets without label smoothing, and weights that balance no grade.
        fitted_to: What the targets are, for the model card: see `ray_app.models.calibration`.
    """

    examples: Examples
    fitted_to: str


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
        card: Makes the model card from the keywords `history` and `calibration`; None: no card.
        calibrate_on: What temperatures are fitted on; None: the model is not calibrated.
    """

    build: Callable[[], Any]
    train: Examples
    valid: Examples
    cfg: TrainConfig
    model_folder: str
    extra_files: dict[str, str] = field(default_factory=dict)
    card: Callable[..., str] | None = None
    calibrate_on: "CalibrationPairs | None" = None
    logit_shift: np.ndarray | None = None
    """(5,) float, added to the trained model's logits, which must then have `shift_logits`; None: nothing."""

    def seed_of(self, run: int) -> int:
        """The job's own seed, or that of the run."""
        return run if self.cfg.seed is None else self.cfg.seed


def train_on_ray(
    name: str, jobs: Sequence[TrainJob], seed: int, store: Storage, workers: WorkersConfig | None = None
) -> None:
    """Train models one after the other on one group of workers, and save the best epoch of each.

    Small models would otherwise spend more time on starting workers than on training. A driver, worker or controller that
    died is resumed from the last checkpoint, found by `name`: give equal runs equal names and different runs different
    ones.

    Args:
        name: Identity of the run, such as stage and fingerprint.
        jobs: In order; a job may build on the models of those before it.
        seed: Decides data order and dropout of the jobs whose settings have none.
        store: Where checkpoints and the models go.
        workers: How many, and what happens when they die; None: one.

    Raises:
        UserError: training failed more often than `max_failures`.
    """
    jobs = [job for job in jobs if model_files(store, job.model_folder) is None]
    if not jobs:
        return
    cfg = workers or WorkersConfig()
    sent = []
    for job in jobs:
        examples = _write_examples(job, f"training/{name}/examples/{job.model_folder}", job.seed_of(seed), store)
        nothing = job.train.rows(np.arange(0))
        pairs = job.calibrate_on and replace(job.calibrate_on, examples=nothing)
        sent.append((examples, replace(job, train=nothing, valid=nothing, calibrate_on=pairs)))
    for deaths in itertools.count():
        trainer = _trainer(name, sent, seed, store, cfg)
        try:
            trainer.fit()
            break
        except ray.train.TrainingFailedError as error:
            raise UserError(
                f"training {name} failed: {_last_line(error)}; mend that and run again, it resumes"
            ) from error
        except ray.exceptions.RayActorError as error:
            # The controller's: Ray Train survives deaths of its workers only.
            if 0 <= cfg.max_failures <= deaths:
                raise UserError(
                    f"training {name} failed: its controller died {deaths + 1} times ({_last_line(error)}); run again, it resumes"
                ) from error
            logger.warning("training %s: its controller died; going on from the last checkpoint", name)
    store.delete(f"training/{name}")


def _trainer(
    name: str, sent: list[tuple["ExampleFiles", TrainJob]], seed: int, store: Storage, cfg: WorkersConfig
) -> TorchTrainer:
    """Of the run of that name, which goes on from its last checkpoint."""
    rescued = _rescue(f"training/{name}", store)
    use_gpu = _use_gpu(cfg)
    num_workers: Any = cfg.num_workers if cfg.min_workers is None else (cfg.min_workers, cfg.num_workers)
    return TorchTrainer(
        train_worker,
        train_loop_config={"jobs": sent, "seed": seed, "store": store, "name": name, "rescued": rescued},
        torch_config=_TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": 1},
            accelerator_type=cfg.accelerator_type if use_gpu else None,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=store.full_path("training"),
            storage_filesystem=store.fs,
            failure_config=ray.train.FailureConfig(max_failures=cfg.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=cfg.keep_checkpoints),
        ),
    )


class _TorchBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if len(worker_group) > 1:
            super().on_start(worker_group, backend_config)


class _TorchConfig(TorchConfig):
    """Ray's, but a worker alone joins no process group: torch's store would listen on all interfaces, without a token."""

    @property
    def backend_cls(self) -> type:
        return _TorchBackend


def _rescue(folder: str, store: Storage) -> str | None:
    """Path in the storage's filesystem of the last whole checkpoint, if Ray Train's own list of them cannot be read.

    Ray Train writes that list in place: a kill in that moment leaves half of it, or nothing, and every later run would
    fail on it.
    """
    try:
        if store.exists(f"{folder}/{_SNAPSHOT}"):
            store.read_json(f"{folder}/{_SNAPSHOT}")
            return None
    except CorruptFileError:
        store.delete(f"{folder}/{_SNAPSHOT}")
    for about in reversed(store.list_files(folder, f"/{JOB_FILE}")):  # named by their time
        checkpoint = about.removesuffix(f"/{JOB_FILE}")
        try:
            wanted = store.read_json(about)["bytes"]
        except (CorruptFileError, KeyError):
            continue
        infos = store.fs.get_file_info([store.full_path(f"{checkpoint}/{name}") for name in wanted])
        if [info.size for info in infos] == list(wanted.values()):
            logger.warning("Ray Train's list of checkpoints is damaged; going on from %s", checkpoint)
            return store.full_path(checkpoint)
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleFiles:
    """Where a job's examples lie."""

    train: list[str]
    train_rows: list[int]
    train_weight: float
    valid: str
    calibrate_on: str | None


def _write_examples(job: TrainJob, folder: str, seed: int, store: Storage) -> ExampleFiles:
    """In one file, or shuffled into many if they are to be streamed."""
    table = job.train.to_table()
    parts = [table]
    if len(job.train) > job.cfg.window_rows:
        per_file = min(_ROWS_PER_FILE, job.cfg.window_rows)
        parts = [table.take(pa.array(rows)) for rows in _shuffled_files(job, per_file, seed)]
    paths = [f"{folder}/train-{i:05d}.parquet" for i in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        store.write_table(path, part)
    store.write_table(f"{folder}/valid.parquet", job.valid.to_table())
    pairs = None
    if job.calibrate_on is not None:
        pairs = f"{folder}/calibrate_on.parquet"
        store.write_table(pairs, job.calibrate_on.examples.to_table())
    return ExampleFiles(
        train=paths, train_rows=[part.num_rows for part in parts], train_weight=float(job.train.weights.sum()),
        valid=f"{folder}/valid.parquet", calibrate_on=pairs,
    )  # fmt: skip


def _shuffled_files(job: TrainJob, per_file: int, seed: int) -> list[np.ndarray]:
    """Row numbers of each file; a query is in one file if the loss compares its pins, which meet within a window only."""
    if job.cfg.margin_weight > 0:
        groups = np.unique(np.array(job.train.queries, dtype=object), return_inverse=True)[1]
        return query_batches(groups, per_file, seed, epoch=0)
    order = np.random.default_rng(seed).permutation(len(job.train))
    return [order[start : start + per_file] for start in range(0, len(order), per_file)]


def train_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
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
    valid = Examples.from_table(store.read_table(where.valid))
    train: Examples | Source
    if len(where.train) == 1:
        train = Examples.from_table(store.read_table(where.train[0]))
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
        pairs = where.calibrate_on and Examples.from_table(store.read_table(where.calibrate_on))
        labels_with, about = labelling_form(model, valid, job.cfg)
        files = job.extra_files | about | _describe(job, labels_with, pairs or None, state.history)
        save_model(model, store, job.model_folder, state.history, files)
    if peer.size > 1:
        dist.barrier()


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
        """What exchanges gradients."""
        import torch

        if self.is_sharded:
            return _shard(model)
        return torch.nn.parallel.DistributedDataParallel(model) if self.size > 1 else model

    def is_due(self, _epoch_ended: bool) -> bool:
        """Whether it is time for a checkpoint; the first worker's clock decides for all."""
        late = time.monotonic() - self._reported >= self.job.cfg.checkpoint_sec
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


def _use_gpu(cfg: WorkersConfig) -> bool:
    if cfg.use_gpu == "auto":
        return ray.cluster_resources().get("GPU", 0) >= cfg.num_workers
    return bool(cfg.use_gpu)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
