"""The Python client against real HTTP servers."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest

from ray_app.client import RelevanceClient, RelevanceError

SECRET = "token-of-the-user"


class Handler(BaseHTTPRequestHandler):
    """Gives the next prepared answer, and keeps what it was asked."""

    def _answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self.server.asked.append((self.path, dict(self.headers), self.rfile.read(length)))  # type: ignore[attr-defined]
        status, headers, body = self.server.answers.pop(0)  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[Any]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked = [], []  # type: ignore[attr-defined]
    server.url = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


BUSY = (429, {"retry-after": "0"}, b'{"error": "overloaded", "message": "try again"}')
VECTORS = (200, {}, b'{"embeddings": [[0.6, 0.8]]}')


def test_vectors_come_as_an_array(server: Any) -> None:
    server.answers = [VECTORS]
    with RelevanceClient(server.url) as client:
        np.testing.assert_allclose(client.encode(["red mug"]), [[0.6, 0.8]])


def test_equal_queries_carry_equal_keys_which_do_not_say_the_query(server: Any) -> None:
    server.answers = [VECTORS] * 3
    with RelevanceClient(server.url) as client:
        for query in ("Red  mug", "red mug ", "blue mug"):
            client.encode([query])
    keys = [headers["x-query-key"] for _, headers, _ in server.asked]
    assert keys[0] == keys[1] != keys[2] and "mug" not in keys[0]


def test_a_busy_server_is_asked_again(server: Any) -> None:
    server.answers = [BUSY, VECTORS]
    with RelevanceClient(server.url) as client:
        assert client.encode(["a"]).shape == (1, 2)


def test_it_does_not_ask_for_ever(server: Any) -> None:
    server.answers = [BUSY] * 9
    with RelevanceClient(server.url, retries=2) as client, pytest.raises(RelevanceError) as caught:
        client.encode(["a"])
    assert (caught.value.status, caught.value.code, len(server.asked)) == (429, "overloaded", 3)


def test_the_callers_own_mistake_is_told_at_once(server: Any) -> None:
    server.answers = [(422, {}, b'{"error": "too_long", "message": "query: at most 500 characters"}')]
    with RelevanceClient(server.url) as client, pytest.raises(RelevanceError, match="422 too_long: query: at most 500"):
        client.search("x")
    assert len(server.asked) == 1


def test_a_proxys_own_page_is_an_error_too(server: Any) -> None:
    server.answers = [(502, {}, b"<html>")]
    with RelevanceClient(server.url) as client, pytest.raises(RelevanceError, match="502 http"):
        client.about()


def test_pin_ids_travel_whole(server: Any) -> None:
    server.answers = [(200, {}, b'{"results": []}')]
    with RelevanceClient(server.url) as client:
        client.related("a/b?c", 3)
    assert server.asked[0][0] == "/v1/related/a%2Fb%3Fc?k=3"


def test_nobody_there_is_one_clear_error() -> None:
    with RelevanceClient("http://127.0.0.1:9", retries=0) as client:
        assert not client.ready()
        with pytest.raises(RelevanceError, match=r"http://127\.0\.0\.1:9 does not answer"):
            client.about()


def test_the_token_is_sent_and_never_shown(server: Any) -> None:
    server.answers = [(401, {}, b'{"error": "unauthorized", "message": "no"}')]
    with RelevanceClient(server.url, token=SECRET) as client, pytest.raises(RelevanceError) as caught:
        client.about()
    assert server.asked[0][1]["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in repr(client) + str(caught.value)
