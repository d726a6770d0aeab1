"""The pipeline from Python: `ray_app.run`, `ray_app.evaluate`, `ray_app.serve`.

cfg = ray_app.load_config("mine.yaml")
ray_app.run(cfg)
with ray_app.serve(cfg) as client:
    best = client.search("red mug", locale="en-US")["results"]
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.cli import open_run
from ray_app.stages.order import enabled_stages, load_stage
from ray_app.tables.manifest import Manifest

if TYPE_CHECKING:
    from ray_app.client import RelevanceClient


def run(config: Config, stages: Sequence[str] | None = None) -> dict[str, Manifest]:
    """Run stages in order; those that are up to date are skipped.

    Uses the Ray cluster that this process is connected to, else the one that RAY_ADDRESS names, else starts one on this
    machine when the first stage needs it.

    Args:
        config: From `load_config`.
        stages: Names, such as `["ingest", "enrich"]`; None: all that the config switches on.

    Returns:
        Name -> manifest: counts, outputs with paths, wall_sec, versions.

    Raises:
        UserError: the config or the data has a problem; the message names it and what to do.
    """
    enabled = enabled_stages(config)
    if unknown := [name for name in stages or () if name not in enabled]:
        raise UserError(f"stages: {unknown[0]!r} is none of this config's stages: {', '.join(enabled)}")
    store = open_run(config)
    return {name: load_stage(name).run(config, store) for name in enabled if stages is None or name in stages}


def evaluate(config: Config) -> list[dict[str, Any]]:
    """Evaluate teacher, student and baselines of a finished run on human labels, and write the report.

    Args:
        config: Of the run; `evaluate.human_labels` names a file with labels, or None for the run's test queries.

    Returns:
        One dict per system and slice, as in `metrics.json`: the system, the slice, metrics with confidence intervals.

    Raises:
        UserError: a stage has not run, or there is nothing to evaluate on.
    """
    store = open_run(config)
    rows: list[dict[str, Any]] = load_stage("evaluate").run(config, store).info["rows"]
    return rows


@contextmanager
def serve(config: Config, port: int = 8000) -> Iterator["RelevanceClient"]:
    """Serve a finished run on this machine, on a Ray cluster of its own, until the block ends.

    Args:
        config: Of the run.
        port: Of the HTTP API and the search page, on 127.0.0.1.

    Yields:
        A client that is connected to it.

    Raises:
        UserError: there is no release, the port is taken, or the extra `serve` is not installed.
    """
    from ray_app.base.extras import require_extra

    require_extra("serve", "ray_app.serve")
    from ray_app.client import RelevanceClient
    from serve.local import serving

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(config.model_dump(mode="json")))  # JSON is YAML
        with serving(str(path), [], port) as (url, _), RelevanceClient(url) as client:
            yield client
