"""The online app on Ray Serve: `serve deploy serve/config.yaml`, or `make serve`.

One deployment: each replica answers HTTP itself, with encoder, vectors and ranking in one process. A second deployment
behind it would cost more than all the work of a cached query (NOTES: a handle hop takes milliseconds). Only pins that do
not fit into one process (`serve.shards`) are in deployments of their own, Shard0, Shard1 and so on.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util import metrics

from ray_app.base.cache_folder import cache_folder, private_folder
from ray_app.base.config import Config, load_config, section_hash
from ray_app.base.config.credentials import read_secret
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.umask import keep_private
from ray_app.online.messages import ShardStats
from ray_app.online.pin_files import Shard
from ray_app.online.problems import RequestError, Unavailable
from ray_app.online.query_cache import redis_secrets
from ray_app.online.service import Service
from ray_app.online.shards import ShardServer

logger = logging.getLogger("ray_app.serve")

# Of a shard's deployment, where config.yaml says nothing else of it. Routers bound how much they ask at once.
SHARD_OPTIONS: dict[str, Any] = {
    "num_replicas": 1, "max_ongoing_requests": 256, "graceful_shutdown_timeout_s": 10, "health_check_period_s": 5,
    "health_check_timeout_s": 10, "ray_actor_options": {"num_cpus": 1},
}  # fmt: skip
SECONDS = [0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0]


class AppArgs(BaseModel):
    """Arguments of the app, in serve/config.yaml under `args`."""

    model_config = ConfigDict(extra="forbid")

    config: str = "configs/demo.yaml"
    """Config of the run whose release is served."""
    set: list[str] = []
    """Overrides, as `--set` of the pipelines."""


def build_app(args: AppArgs) -> Application:
    """The application of a config.

    Raises:
        UserError: the config is wrong, or an environment variable that it names is not set.
    """
    cfg = load_config(args.config, args.set)
    if cfg.serve.auth_token_env is not None:
        read_secret(cfg.serve.auth_token_env, "serve.auth_token_env")
    if cfg.serve.cache.redis_url is not None:
        redis_secrets(cfg.serve.cache)
    store, num = Storage(cfg.output), cfg.serve.shards
    shards = [
        serve.deployment(name=f"Shard{i}", **SHARD_OPTIONS)(ShardReplica).bind(cfg, store, (i, num))
        for i in range(num if num > 1 else 0)
    ]
    deployment = serve.deployment(name="Relevance")(serve.ingress()(Relevance))
    return deployment.bind(cfg, store, shards)


class Relevance:
    """One replica."""

    async def __init__(self, cfg: Config, store: Storage, shards: Sequence[DeploymentHandle]) -> None:  # type: ignore[misc]  # Serve awaits it
        _set_up(cfg)
        self.cfg = cfg
        handles = [_RemoteShard(f"Shard{i}", handle) for i, handle in enumerate(shards)]
        self.service = Service(cfg.serve, cfg.caption.limits, store, local_cache_dir(cfg, store), handles)
        self.metrics = _Metrics(self.service)
        await self.service.start()
        self._reporting = asyncio.create_task(self.metrics.report())

    def __serve_build_asgi_app__(self) -> Any:
        """The HTTP app of this replica."""
        from serve.http import build_http

        serve = self.cfg.serve
        token = read_secret(serve.auth_token_env, "serve.auth_token_env") if serve.auth_token_env else None
        return build_http(self.service, self.metrics.observe, token, serve.answered_hosts(), serve.image_hosts)

    def check_health(self) -> None:
        """Ray restarts a replica that raises here."""
        if not self.service.readiness()["ready"]:
            raise RuntimeError("no release is loaded")


class ShardReplica:
    """One replica of a shard. Any number of them may hold the same pins."""

    async def __init__(self, cfg: Config, store: Storage, shard: Shard) -> None:  # type: ignore[misc]  # Serve awaits it
        _set_up(cfg)
        self.server = ShardServer(cfg.serve, cfg.caption.limits, store, local_cache_dir(cfg, store), shard)
        await self.server.start()

    async def prepare(self, release_id: str) -> ShardStats | Exception:
        """See `ShardHandle`; what it raises is returned."""
        return await _returned(self.server.prepare(release_id))

    async def ask(self, release_id: str, question: str, *args: Any) -> Any:
        """See `ShardHandle`; what it raises is returned."""
        return await _returned(self.server.ask(release_id, question, *args))


class _RemoteShard:
    """A `ShardHandle` over the shard's deployment."""

    def __init__(self, name: str, handle: DeploymentHandle) -> None:
        self._name, self._handle, self._ask = name, handle, handle.ask

    async def prepare(self, release_id: str) -> ShardStats:
        """Every replica of the shard holds it, before any is asked."""
        stats = await self._reached(self._handle.broadcast("prepare", release_id).results_async())
        if not stats:
            raise self._away()
        for one in stats:
            _raised(one)
        return stats[0]

    async def ask(self, release_id: str, question: str, *args: Any) -> Any:
        response = self._ask.remote(release_id, question, *args)
        try:
            return _raised(await self._reached(response))
        except asyncio.CancelledError:  # the caller's time is over: nobody waits for the answer
            response.cancel()
            raise

    async def _reached(self, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except RayTaskError:  # an error in the shard's code; its traceback goes into the log
            raise
        except (RayError, RayServeException) as error:
            logger.warning("%s does not answer: %s", self._name, type(error).__name__)
            raise self._away() from None

    def _away(self) -> Unavailable:
        return Unavailable("shard_unavailable", f"{self._name} does not answer now; try again")


async def _returned(answer: Awaitable[Any]) -> Any:
    """Answer of a shard, or the error of the request: if it were raised, Ray would wrap and log it."""
    try:
        return await answer
    except (RequestError, UserError) as problem:
        return problem


def _raised(answer: Any) -> Any:
    if isinstance(answer, RequestError | UserError):
        raise answer
    return answer


class _Metrics:
    """Ray metrics, which Ray's agents export to Prometheus."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.requests = metrics.Counter("relevance_requests", "Answered requests.", ("route", "status"))
        self.seconds = metrics.Histogram("relevance_request_seconds", "From first byte to answer.", SECONDS, ("route",))
        self.cache = metrics.Gauge("relevance_query_cache", "Since the release was loaded.", ("stat",))
        self.degraded = metrics.Counter("relevance_degraded_requests", "Requests ranked without the query's vector.")
        self._reported = 0

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self.requests.inc(1, {"route": route, "status": str(status)})
        self.seconds.observe(seconds, {"route": route})

    async def report(self) -> None:
        """Copy the cache's counts every few seconds."""
        while True:
            await asyncio.sleep(5)
            degraded = self.service.num_degraded
            if degraded > self._reported:  # Ray's counters refuse an increase of 0
                self.degraded.inc(degraded - self._reported)
                self._reported = degraded
            if (cache := self.service.cache) is not None:
                for stat, value in cache.counts().items():
                    self.cache.set(value, {"stat": stat})


def _set_up(cfg: Config) -> None:
    """Settings of a replica's process."""
    import torch

    keep_private()
    torch.set_num_threads(cfg.serve.cpu_threads)
    # Threads that encode and rank hand Python back to the event loop after 0.5 ms, not 5.
    sys.setswitchinterval(0.0005)
    logging.getLogger("ray_app").setLevel(logging.INFO)


def local_cache_dir(cfg: Config, store: Storage) -> Path:
    """Local cache folder of files built from the run's releases; native code is loaded from there.

    Raises:
        UserError: others can write there.
    """
    name = section_hash(store.shown)
    root = cfg.serve.local_cache_dir
    return cache_folder(f"serve/{name}") if root is None else private_folder(Path(root).expanduser() / name)
