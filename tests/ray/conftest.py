"""One small cluster for all Ray tests of a session. Tests never assert order, block count or repr of Ray's own objects."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for pipeline_world

from pipeline_world import run_stages, write_source

from ray_app.base.config import Config, load_config
from ray_app.cluster.resources import local_environment, start_local
from ray_app.tables.manifest import Manifest

os.environ.update(local_environment(os.environ))  # one token for this cluster and those of programs that tests start
# Workers import the classes that tests define by the name of their file.
paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")


@pytest.fixture(scope="session")
def ray_cluster():
    """A local cluster of 6 logical CPUs: with 2, operators of one Ray Data chain starve each other."""
    import ray

    start_local(num_cpus=6, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: str) -> Path:
    """A folder with a tiny catalogue and its config."""
    folder = tmp_path_factory.mktemp("source")
    write_source(folder, tiny_encoder)
    return folder


@pytest.fixture(scope="session")
def finished(source: Path, ray_cluster: None) -> tuple[Config, dict[str, Manifest]]:
    """All stages, run once. Nobody changes this run: take a copy of its output."""
    cfg = load_config(source / "config.yaml")
    return cfg, run_stages(cfg)
