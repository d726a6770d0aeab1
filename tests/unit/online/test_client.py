"""The Python client against real HTTP servers."""

from collections import Counter
from http.server import BaseHTTPRequestHandler

import httpx
import numpy as np
import pytest
from minimal import http_server
from serve_world import Service, running

from ray_app.client import RelevanceClient, RelevanceError, query_key

SECRET = "token-of-the-user"


class Handler(BaseHTTPRequestHandler):
    """Gives the next prepared answer, and keeps what it was asked."""

    def _answer(self):
        length = int(self.headers.get("content-length", 0))
        self.server.asked.append((self.path, dict(self.headers), self.rfile.read(length)))
        status, headers, body = self.server.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer


@pytest.fixture
def server():
    with http_server(Handler, answers=[], asked=[]) as server:
        yield server


BUSY = (429, {"retry-after": "0"}, b'{"error": "overloaded", "message": "try again"}')
DENSE = (200, {}, b'{"embeddings": [[0.6, 0.8]]}')


def test_vectors_come_as_an_array(server):
    server.answers = [DENSE]
    with RelevanceClient(server.url) as client:
        np.testing.assert_allclose(client.encode(["red mug"]), [[0.6, 0.8]])


def test_equal_queries_carry_equal_keys_which_do_not_say_the_query(server):
    server.answers = [DENSE] * 3
    with RelevanceClient(server.url) as client:
        for query in ("Red  mug", "red mug ", "blue mug"):
            client.encode([query])
    keys = [headers["x-query-key"] for _, headers, _ in server.asked]
    assert keys[0] == keys[1] != keys[2] and "mug" not in keys[0]


def test_a_key_is_that_of_many_queries():
    """Else whoever reads headers in a log tests whether one is that of a name."""
    keys = Counter(query_key(f"query {n}") for n in range(20_000))
    assert len(keys) == 256  # enough to spread over replicas
    assert min(keys.values()) > 40


def test_a_busy_server_is_asked_again(server):
    server.answers = [BUSY, DENSE]
    with RelevanceClient(server.url) as client:
        assert client.encode(["a"]).shape == (1, 2)


def test_it_does_not_ask_for_ever(server):
    server.answers = [BUSY] * 9
    with RelevanceClient(server.url, retries=2) as client, pytest.raises(RelevanceError) as caught:
        client.encode(["a"])
    assert (caught.value.status, caught.value.code, len(server.asked)) == (429, "overloaded", 3)


def test_the_callers_own_mistake_is_told_at_once(server):
    server.answers = [(422, {}, b'{"error": "too_long", "message": "query: at most 500 characters"}')]
    with RelevanceClient(server.url) as client, pytest.raises(RelevanceError, match="422 too_long: query: at most 500"):
        client.search("x")
    assert len(server.asked) == 1


def test_a_proxys_own_page_is_an_error_too(server):
    server.answers = [(502, {}, b"<html>")]
    with RelevanceClient(server.url) as client, pytest.raises(RelevanceError, match="502 http"):
        client.about()


def test_pin_ids_travel_whole(server):
    server.answers = [(200, {}, b'{"results": []}')]
    with RelevanceClient(server.url) as client:
        client.related("a/b?c", 3)
    assert server.asked[0][0] == "/v1/related/a%2Fb%3Fc?k=3"


def test_nobody_there_is_one_clear_error():
    with RelevanceClient("http://127.0.0.1:9", retries=0) as client:
        assert not client.ready()
        with pytest.raises(RelevanceError, match=r"http://127\.0\.0\.1:9 does not answer"):
            client.about()


def test_the_token_is_sent_and_never_shown(server):
    server.answers = [(401, {}, b'{"error": "unauthorized", "message": "no"}')]
    with RelevanceClient(server.url, token=SECRET) as client, pytest.raises(RelevanceError) as caught:
        client.about()
    assert server.asked[0][1]["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in repr(client) + str(caught.value)


@pytest.mark.parametrize(
    "ask", [lambda c: c.encode("red mug"), lambda c: c.rerank("red", "pin1"), lambda c: c.encode_board("", "pin1")]
)
def test_one_text_in_place_of_a_list_is_refused(ask, server):
    """A str is a sequence of its letters: the answer would be seven vectors, of r, e, d and so on."""
    server.answers = [DENSE]
    with RelevanceClient(server.url) as client, pytest.raises(ValueError, match="a list of"):
        ask(client)
    assert not server.asked


def test_a_slow_server_is_not_asked_again():
    """It would do the work again while it is behind with it, and the caller would wait three times `timeout_sec`."""
    calls = []
    client = RelevanceClient("http://test")

    def late(request):
        calls.append(request)
        raise httpx.ReadTimeout("")

    client._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(late))
    with client, pytest.raises(RelevanceError, match="0 timeout"):
        client.about()
    assert len(calls) == 1


def test_a_broken_connection_is_tried_again():
    calls = []
    client = RelevanceClient("http://test")

    def answer(request):
        calls.append(request)
        if len(calls) == 1:
            raise httpx.ConnectError("")
        return httpx.Response(200, json={"dim": 2})

    client._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
    with client:
        assert client.about() == {"dim": 2}


def test_no_server_makes_it_wait_long(server, monkeypatch):
    waits = []
    monkeypatch.setattr("ray_app.client.time.sleep", waits.append)
    server.answers = [(503, {"retry-after": "86400"}, b"{}"), DENSE]
    with RelevanceClient(server.url) as client:
        client.encode(["a"])
    assert waits == [5.0]


def test_an_answer_that_is_no_json_is_an_error_of_the_same_kind(server):
    server.answers = [(200, {}, b"<html>please log in")]
    with RelevanceClient(server.url) as client, pytest.raises(RelevanceError, match="200 http"):
        client.about()


@pytest.mark.parametrize("token", [SECRET + "\n", "tökén", ""])
def test_a_token_that_no_header_can_hold_is_refused_without_being_shown(token):
    with pytest.raises(ValueError, match="token") as caught:
        RelevanceClient("http://test", token=token)
    assert "tök" not in str(caught.value) and SECRET not in str(caught.value)


def test_nothing_logged_holds_a_query_or_the_token(server, caplog):
    caplog.set_level("DEBUG")
    server.answers = [BUSY, DENSE]
    with RelevanceClient(server.url, token=SECRET) as client:
        client.encode(["confidential words"])
    assert "confidential" not in caplog.text and SECRET not in caplog.text


def test_every_method_against_the_app():
    with running(Service(), token=SECRET) as world, RelevanceClient(world.url, token=SECRET) as client:
        assert client.ready()
        assert client.about()["num_pins"] == 2000
        assert client.encode(["a", "b"]).shape == (2, 2)
        assert [hit["pin_id"] for hit in client.rerank("a", ["x", "y"], top_k=1)["results"]] == ["x"]
        assert client.search("mug", "de-DE")["results"][0]["locale"] == "de-DE"
        assert client.related("mug/1", 3)[0]["title"] == "near mug/1"
        assert client.encode_board("mugs", ["x"]).dtype == np.float32


def test_who_names_no_locale_asks_from_no_country():
    with running(Service()) as world, RelevanceClient(world.url) as client:
        assert client.search("mug")["results"][0]["locale"] == "und"
