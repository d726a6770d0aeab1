"""Unit tests use no Ray: a test that starts a cluster is slow, and belongs in tests/ray."""

import threading

import pytest
import ray
from moto.server import ThreadedMotoServer

from ray_app.base.storage import Storage


@pytest.fixture(autouse=True)
def no_ray_cluster(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a unit test started Ray: move it to tests/ray")

    monkeypatch.setattr(ray, "init", refuse)
    # Ray Data starts a cluster by itself, past `ray.init`, unless this is 0.
    monkeypatch.setattr(ray._private.worker, "init", refuse)


@pytest.fixture
def store(tmp_path):
    """An empty one; some tests have their own."""
    return Storage(str(tmp_path / "out"))


@pytest.fixture(scope="module")
def endpoint():
    """URL of a server that speaks S3, on a real socket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def redis_server():
    """URL of a server that speaks Redis' protocol, on a real socket."""
    fakeredis = pytest.importorskip("fakeredis")
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()
