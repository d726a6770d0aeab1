"""The training loop on Ray Train: workers, gradients over the network, checkpoints, restarts after a death."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from ray_app.base.config import DistillConfig, PretrainConfig, TeacherConfig, TrainConfig, WorkersConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import CorruptFileError, Storage
from ray_app.cluster.example_files import ROWS_PER_FILE, with_calibration
from ray_app.cluster.resources import connect, total_gpus
from ray_app.cluster.train_job import JOB_FILE, ExampleFiles, TrainJob
from ray_app.models.devices import pick_dtype
from ray_app.models.model_sources import pinned_revision
from ray_app.tables.model_files import model_files
from ray_app.training.batches import query_batches
from ray_app.training.examples import Examples

if TYPE_CHECKING:
    from ray_app.cluster.trainer import LeanTrainer

logger = logging.getLogger(__name__)

_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of the checkpoints


_Trained = TypeVar("_Trained", TeacherConfig, DistillConfig)


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
        elif isinstance(value, PretrainConfig):
            update[name] = value.model_copy(update={"train": loop(value.train)})
    return cfg.model_copy(update=update)


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
    import ray.train

    connect()
    cfg = workers or WorkersConfig()
    sent = []
    for job in jobs:
        folder = f"training/{name}/examples/{job.model_folder}"
        files = job.files or _write_examples(job, folder, job.seed_of(seed), store)
        pairs = job.calibrate_on and replace(job.calibrate_on, examples=None)
        sent.append((files, replace(job, train=None, valid=None, calibrate_on=pairs, files=None)))
    for deaths in itertools.count():
        trainer = _trainer(name, sent, seed, store, cfg)
        try:
            trainer.fit()
            break
        except ray.train.TrainingFailedError as error:
            raise UserError(
                f"training {name} failed: {_last_line(error)}; fix that and run again, it resumes"
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
) -> "LeanTrainer":
    """Ray Train run configuration; a run of the same name resumes from its last checkpoint."""
    import ray.train

    from ray_app.cluster.train_worker import train_worker
    from ray_app.cluster.trainer import LeanTrainer, LonelyTorchConfig

    rescued = _rescue(f"training/{name}", store)
    use_gpu = _use_gpu(cfg)
    num_workers: Any = cfg.num_workers if cfg.min_workers is None else (cfg.min_workers, cfg.num_workers)
    return LeanTrainer(
        train_worker,
        train_loop_config={"jobs": sent, "seed": seed, "store": store, "name": name, "rescued": rescued},
        torch_config=LonelyTorchConfig(backend="nccl" if use_gpu else "gloo"),
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
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=cfg.num_checkpoints_to_keep),
        ),
    )


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


def _write_examples(job: TrainJob, folder: str, seed: int, store: Storage) -> ExampleFiles:
    """In one file, or shuffled into many if they are to be streamed."""
    assert job.train is not None and job.valid is not None, "a job has its examples, or files of them"
    table = job.train.to_table()
    parts = [table]
    if len(job.train) > job.cfg.shuffle_window_rows:
        per_file = min(ROWS_PER_FILE, job.cfg.shuffle_window_rows)
        parts = [table.take(pa.array(rows)) for rows in _shuffled_files(job.train, job.cfg, per_file, seed)]
    paths = [f"{folder}/train-{i:05d}.parquet" for i in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        store.write_table(path, part)
    store.write_table(f"{folder}/valid.parquet", job.valid.to_table())
    files = ExampleFiles(
        train=paths, train_rows=[part.num_rows for part in parts], train_weight=float(job.train.weights.sum()),
        valid=[f"{folder}/valid.parquet"], calibrate_on=[],
    )  # fmt: skip
    return files if job.calibrate_on is None else with_calibration(store, folder, files, job.calibrate_on.examples)


def _shuffled_files(train: Examples, cfg: TrainConfig, per_file: int, seed: int) -> list[np.ndarray]:
    """Row numbers of each file; a query is in one file if the loss compares its pins, which meet within a window only."""
    if cfg.margin_mse_weight > 0:
        groups = np.unique(np.array(train.queries, dtype=object), return_inverse=True)[1]
        return query_batches(groups, per_file, seed, epoch=0)
    order = np.random.default_rng(seed).permutation(len(train))
    return [order[start : start + per_file] for start in range(0, len(order), per_file)]


def _use_gpu(cfg: WorkersConfig) -> bool:
    if cfg.use_gpu == "auto":
        return total_gpus() >= cfg.num_workers
    return bool(cfg.use_gpu)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
