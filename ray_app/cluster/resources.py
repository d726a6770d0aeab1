"""Allocation of cluster resources to a stage, before anything runs: a job that can never start fails immediately."""

import logging
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_app.base.errors import UserError

# Ray runs whatever it is sent. This variable keeps a cluster on the loopback interface: Ray's own default on Windows and macOS.
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, NVIDIA in WSL, AMD
_LEAST_CPUS = 0.5  # logical, of a worker or a task on a cluster that has no whole one for each


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolRequest:
    """Resources that a stage requests for its model workers; field names are the keys of its config section."""

    section: str
    num_actors: int = 1
    max_actors: int | None = None
    """Ray Data adds workers up to that many while rows wait; None: `num_actors`, always."""
    num_cpus: float | None = None
    """Logical CPUs per worker; None: 1, or less on a cluster too small for that."""
    num_gpus: float = 0.0
    """Per worker, over all of its processes."""
    num_processes: int = 1
    """GPU bundles per worker: tensor x pipeline parallelism."""
    accelerator_type: str | None = None
    max_restarts: int = 3
    """Restarts of a worker whose process died. Ray restarts without limit by default, which hides a dead engine."""
    upstream_tasks: int = 0
    """CPU tasks that run beside the workers at a time, to prepare rows and to commit results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolAllocation:
    """Resources allocated to a `PoolRequest`."""

    pool: PoolRequest
    num_actors: int
    max_actors: int
    num_cpus: float  # logical, per worker
    task_cpus: float  # logical, per feeding task; 0: there are none
    notes: tuple[str, ...]

    @property
    def actor_options(self) -> dict[str, Any]:
        """Arguments of `map_batches` for actor workers."""
        pool = self.pool
        kind = {"accelerator_type": pool.accelerator_type} if pool.accelerator_type else {}
        return {
            "num_cpus": self.num_cpus, "num_gpus": pool.num_gpus or None,
            "max_restarts": pool.max_restarts, "max_task_retries": pool.max_restarts, **kind,
        }  # fmt: skip

    def __str__(self) -> str:
        pool = self.pool
        many = f"{self.num_actors}" if self.num_actors == self.max_actors else f"{self.num_actors}..{self.max_actors}"
        gpus = f" and {pool.num_gpus:g} GPU" if pool.num_gpus else ""
        kind = f" ({pool.accelerator_type})" if pool.accelerator_type else ""
        tasks = f"; tasks that feed them: {self.task_cpus:g} CPU each" if self.task_cpus else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{many} workers with {self.num_cpus:g} CPU{gpus}{kind} each{tasks}{notes}"


def allocate_pool(pool: PoolRequest, nodes: Sequence[dict[str, float]], may_grow: bool = False) -> PoolAllocation:
    """Fit a pool to a cluster.

    Args:
        pool: What is asked for.
        nodes: Resources of each node, such as {"CPU": 8, "GPU": 1, "accelerator_type:H100": 1}.
        may_grow: An autoscaler may add nodes, so that only what fits on none is refused.

    Raises:
        UserError: not one worker fits; the message names the key to change.
    """
    section = pool.section
    if pool.accelerator_type:
        key = f"accelerator_type:{pool.accelerator_type}"
        if not may_grow and not any(node.get(key) for node in nodes):
            found = sorted({k.partition(":")[2] for node in nodes for k in node if k.startswith("accelerator_type:")})
            raise UserError(
                f"{section}: accelerator_type is {pool.accelerator_type}, but the Ray cluster has {found or 'none'}"
            )
        nodes = [node for node in nodes if node.get(key)] or nodes
    for name, kind, need in (("num_cpus", "CPU", pool.num_cpus or 0.0), ("num_gpus", "GPU", pool.num_gpus)):
        share = need / pool.num_processes
        most = max((node.get(kind, 0.0) for node in nodes), default=0.0)
        if share > most and not may_grow:
            raise UserError(
                f"{section}: {name} is {need:g}, but no node of the Ray cluster has more than {most:g}; lower it"
            )
    notes: list[str] = []
    cpus = pool.num_cpus
    if cpus is None:
        # Logical CPUs are permits, not cores: a small cluster gives each worker part of one rather than none.
        cpus = next((c for c in (1.0, _LEAST_CPUS) if _fitting(pool, nodes, c)), _LEAST_CPUS)
    fitting = _fitting(pool, nodes, cpus)
    if not fitting and not may_grow:
        total = sum(node.get("CPU", 0.0) for node in nodes)
        beside = " beside the tasks that feed it" if pool.upstream_tasks else ""
        raise UserError(
            f"{section}: not one worker with {cpus:g} logical CPU and {pool.num_gpus:g} GPU fits on the Ray cluster{beside}; "
            f"it has {total:g} CPU: lower {section}.num_cpus (a logical CPU is a permit, not a core), or add nodes"
        )
    wanted = pool.num_actors
    num = wanted if may_grow else min(wanted, fitting)
    if num < wanted:
        notes.append(f"{section}.num_actors is {wanted}, but only {num} fit on the cluster")
    most_actors = max(num, pool.max_actors or num)
    most_actors = most_actors if may_grow else min(most_actors, fitting)
    return PoolAllocation(
        pool=pool,
        num_actors=num,
        max_actors=most_actors,
        num_cpus=cpus,
        task_cpus=_task_cpus(nodes, cpus * max(most_actors, 1), may_grow) if pool.upstream_tasks else 0.0,
        notes=tuple(notes),
    )


def local_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables of a cluster of this machine alone: no port open to the network, and a token that only its processes know.

    A mode or a token that the user has set stays. Otherwise the token is new; without it in the environment Ray would write
    one to the home directory and ask for it in later clusters too.

    Args:
        environ: The environment to which they are added, before Ray is started in it.
    """
    mode = environ.get("RAY_AUTH_MODE", "token")
    given = mode != "token" or "RAY_AUTH_TOKEN" in environ or "RAY_AUTH_TOKEN_PATH" in environ
    token = {} if given else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Nothing preempts this machine; Ray Train would start an actor for each training to look for it.
    train = {
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # 2 by default: so long would each checkpoint of a small model wait
    }
    # After 1 s by default, idle workers above the number of CPUs end, and a second later new ones import torch.
    workers = {"RAY_idle_worker_killing_time_threshold_ms": "10000"}
    kept = {name: environ.get(name, value) for name, value in (train | workers).items()}
    return {_LOOPBACK: "0", "RAY_AUTH_MODE": mode, **kept, **token}


def start_local(**options: Any) -> None:
    """Start a cluster on this machine that no other machine can reach and no other user can enter.

    Args:
        options: Of `ray.init`.
    """
    os.environ.update(local_environment(os.environ))
    import ray

    # Ray reads these variables when it is imported, which may have happened.
    raylet: Any = ray._raylet
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    try:
        ray.init(address="local", **options)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        # Ray waits 30 s for its own processes, which a machine with other work may need longer to start.
        logging.getLogger(__name__).warning("Ray took more than 30 s to start; trying once more")
        ray.init(address="local", **options)
    global _owned_session
    _owned_session = ray.get_runtime_context().get_session_name()


def owns_cluster() -> bool:
    """Return True if this process has started the cluster that it is connected to, which ends with it."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_session_name() == _owned_session


_owned_session: str | None = None
_local_options: dict[str, Any] = {}
_after_connect: list[Callable[[], None]] = []


def on_connect(then: Callable[[], None], **local: Any) -> None:
    """Set how `connect` starts Ray in this process.

    Args:
        then: Called once when it has.
        local: Options of `ray.init` for a local cluster.
    """
    _local_options.update(local)
    _after_connect[:] = [then]


def connect() -> None:
    """Use Ray: what this process is connected to, else the cluster that RAY_ADDRESS names, else a local one."""
    import ray

    if ray.is_initialized():
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level=logging.WARNING)
    else:
        start_local(**_local_options)
    while _after_connect:
        _after_connect.pop()()


def total_gpus() -> float:
    """GPUs of the cluster; starts no Ray on a machine that has none."""
    may_have_some = "RAY_ADDRESS" in os.environ or any(Path(device).exists() for device in _GPU_DEVICES)
    is_connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if not may_have_some and not is_connected:
        return 0.0
    import ray

    connect()
    return float(ray.cluster_resources().get("GPU", 0))


def cluster_nodes() -> tuple[list[dict[str, float]], bool]:
    """Resources of the living nodes, and whether an autoscaler may add others."""
    import ray

    grown = ray._private.state.state.get_max_resources_from_cluster_config()  # None on a fixed cluster
    nodes = [{k: float(v) for k, v in node["Resources"].items()} for node in ray.nodes() if node["Alive"]]
    return nodes, grown is not None


def _fitting(pool: PoolRequest, nodes: Sequence[dict[str, float]], cpus: float) -> int:
    """Number of workers that fit concurrently, leaving CPUs for one upstream task if there are any."""
    parts = pool.num_processes
    slots = 0
    for node in nodes:
        by_cpu = node.get("CPU", 0.0) / (cpus / parts) if cpus else float("inf")
        by_gpu = node.get("GPU", 0.0) / (pool.num_gpus / parts) if pool.num_gpus else float("inf")
        slots += int(min(by_cpu, by_gpu) + 1e-9)
    workers = slots // parts
    total = sum(node.get("CPU", 0.0) for node in nodes)
    if pool.upstream_tasks and cpus:
        workers = min(workers, int((total - _LEAST_CPUS) / cpus + 1e-9))
    return max(workers, 0)


def _task_cpus(nodes: Sequence[dict[str, float]], taken: float, may_grow: bool) -> float:
    free = sum(node.get("CPU", 0.0) for node in nodes) - taken
    return 1.0 if free >= 1.0 or may_grow else max(free, _LEAST_CPUS)
