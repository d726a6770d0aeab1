"""The online app on Ray Serve: `serve deploy serve/config.yaml`, or `make serve`.

One deployment: each replica answers HTTP itself, with encoder, vectors and ranking in one process. A second deployment
behind it would cost more than all the work of a cached query (NOTES: a handle hop takes milliseconds).
"""

import asyncio
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from ray.util import metrics

from ray_app.config import Config, load_config
from ray_app.errors import UserError
from ray_app.online.service import Service
from ray_app.storage import Storage

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
        UserError: the config is wrong, or the token's environment variable is not set.
    """
    cfg = load_config(args.config, args.set)
    name = cfg.serve.token_env
    if name is not None and not os.environ.get(name):
        raise UserError(f"serve.token_env: the environment variable {name} is not set")
    deployment = serve.deployment(name="Relevance")(serve.ingress()(Relevance))
    return deployment.bind(cfg, Storage(cfg.output))


class Relevance:
    """One replica."""

    async def __init__(self, cfg: Config, store: Storage) -> None:  # type: ignore[misc]  # Serve awaits it
        import torch

        torch.set_num_threads(cfg.serve.cpu_threads)
        # Threads that encode and rank hand Python back to the event loop after 0.5 ms, not 5.
        sys.setswitchinterval(0.0005)
        logging.getLogger("ray_app").setLevel(logging.INFO)
        self.cfg = cfg
        self.service = Service(cfg.serve, store, local_dir(cfg, store))
        self.metrics = _Metrics(self.service)
        await self.service.start()
        self._reporting = asyncio.create_task(self.metrics.report())

    def __serve_build_asgi_app__(self) -> Any:
        """The HTTP app of this replica."""
        from serve.http import build_http

        name = self.cfg.serve.token_env
        return build_http(self.service, self.metrics.observe, os.environ[name] if name else None)

    def check_health(self) -> None:
        """Ray restarts a replica that raises here."""
        if not self.service.readiness()["ready"]:
            raise RuntimeError("no release is loaded")


class _Metrics:
    """Ray metrics, which Ray's agents export to Prometheus."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.requests = metrics.Counter("relevance_requests", "Answered requests.", ("route", "status"))
        self.seconds = metrics.Histogram("relevance_request_seconds", "From first byte to answer.", SECONDS, ("route",))
        self.cache = metrics.Gauge("relevance_query_cache", "Since the release was loaded.", ("what",))
        self.degraded = metrics.Gauge("relevance_degraded", "Requests ranked without the query's vector.")

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self.requests.inc(1, {"route": route, "status": str(status)})
        self.seconds.observe(seconds, {"route": route})

    async def report(self) -> None:
        """Copy the cache's counts every few seconds."""
        while True:
            await asyncio.sleep(5)
            self.degraded.set(self.service.num_degraded)
            if (cache := self.service.cache) is not None:
                for what, value in cache.counts().items():
                    self.cache.set(value, {"what": what})


def local_dir(cfg: Config, store: Storage) -> Path:
    """Where this machine keeps what it makes of the run's releases."""
    from ray_app.config import section_hash

    root = cfg.serve.local_dir or str(Path(tempfile.gettempdir()) / "ray_app_serve")
    path = Path(root) / section_hash(store.shown)
    path.mkdir(parents=True, exist_ok=True)
    return path
