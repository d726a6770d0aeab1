"""What many tests begin with: the smallest valid config, graded pairs, a server on a free port, the text of a refusal."""

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.training.examples import Examples


def make_config(output: object = "runs/x", **sections: Any) -> Config:
    """A config whose sources and models are only names; a section is merged into the one that is there."""
    found: dict[str, Any] = {
        "output": str(output),
        "ingest": {"pins": {"adapter": "table", "path": "unused.csv"}},
        "features": {"zero_shot_model": "m"},
        "train_teacher": {"base_model": "m"},
        "distill": {"base_model": "m"},
    }
    for name, section in sections.items():
        found[name] = found[name] | section if name in found else section
    return Config.model_validate(found)


def make_examples(queries: list[str], pin_texts: list[str], features: Any, grades: Any, **more: Any) -> Examples:
    """Pairs that surely have those grades."""
    n, targets = len(queries), np.eye(5, dtype=np.float32)[np.array(grades, int) - 1]
    columns = {"queries": queries, "pin_texts": pin_texts, "features": features, "targets": targets}
    return Examples(**columns | {"weights": np.ones(n, np.float32)} | more)


def message(act: Callable[[], object], error: type[Exception] = UserError) -> str:
    """The text of the error that `act` raises: one line."""
    with pytest.raises(error) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def peak_bytes(act: Callable[[], object]) -> int:
    """Bytes of Python objects that were alive at once while `act` ran."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler], **state: Any) -> Iterator[Any]:
    """A server at its `url`; `state` becomes attributes of it, which its handler finds in `self.server`."""
    handler.log_message = lambda *_: None  # type: ignore[method-assign]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        vars(server).update(state, url=f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()
