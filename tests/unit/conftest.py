"""Unit tests use no Ray: a test that starts a cluster is slow, and belongs in tests/ray."""

import pytest
import ray


@pytest.fixture(autouse=True)
def no_ray_cluster(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a unit test started Ray: move it to tests/ray")

    monkeypatch.setattr(ray, "init", refuse)
    # Ray Data starts a cluster by itself, past `ray.init`, unless this is 0.
    monkeypatch.setattr(ray._private.worker, "init", refuse)
