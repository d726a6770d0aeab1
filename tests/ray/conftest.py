"""One small cluster for all Ray tests of a session. Tests never assert order, block count or repr of Ray's own objects."""

import os
from pathlib import Path

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"  # else Ray 2.60 writes a token file into the home directory
# Workers import the classes that tests define by the name of their file.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(
    os.pathsep
)
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# How often Ray Train looks at its workers. They wait for it between two checkpoints, which tests take in quick succession.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")


@pytest.fixture(scope="session")
def ray_cluster():
    """A local cluster of 6 logical CPUs: with 2, operators of one Ray Data chain starve each other."""
    import ray

    ray.init(address="local", num_cpus=6, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False)
    yield
    ray.shutdown()
