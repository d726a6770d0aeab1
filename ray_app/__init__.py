"""Search relevance with an LLM teacher, a distilled student and offline pin embeddings, on Ray.

The names in `__all__` are the stable Python API (docs/python_api.md); all other modules may change in any version.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_app.api import evaluate, run, serve
    from ray_app.base.config import Config, load_config
    from ray_app.base.errors import UserError
    from ray_app.client import RelevanceClient, RelevanceError
    from ray_app.tables.manifest import Manifest

__all__ = [
    "Config", "Manifest", "RelevanceClient", "RelevanceError", "UserError", "evaluate", "load_config", "run", "serve",
]  # fmt: skip

_HOMES = {
    "ray_app.api": ("evaluate", "run", "serve"),
    "ray_app.base.config": ("Config", "load_config"),
    "ray_app.base.errors": ("UserError",),
    "ray_app.client": ("RelevanceClient", "RelevanceError"),
    "ray_app.tables.manifest": ("Manifest",),
}


def __getattr__(name: str) -> Any:
    """Import a name of the API when it is asked for: `import ray_app` alone loads nothing else."""
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'ray_app' has no attribute {name!r}")
