"""The HTTP app before its routes: ways past the token, headers that break it, text that forges the log."""

import logging

import pytest
from fastapi import FastAPI
from serve_world import Service, talk_to

from ray_app.base.config import ServeConfig, ServeLimits
from serve.http import build_http
from serve.middleware import route_path

TOKEN = "right"
JSON = {"authorization": "Bearer right", "content-type": "application/json"}


def ask(method, path, prefix="", app=None, **options):
    """One request to the app as Serve calls it: under a `route_prefix` the path holds it, and so does root_path."""
    app = app or build_http(Service(), token=TOKEN)
    return talk_to(app, lambda client: client.request(method, prefix + path, **options), prefix)


SECRET = [
    ("POST", "/v1/encode", {"queries": ["a"]}), ("POST", "/v1/search", {"query": "a"}),
    ("POST", "/v1/rerank", {"query": "a", "pin_ids": ["p"]}), ("GET", "/v1/related/p", None), ("GET", "/v1/about", None),
    ("POST", "/v1/boards/encode", {"title": "a"}),
]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "/relevance", "/a/b"])
@pytest.mark.parametrize(("method", "path", "body"), SECRET)
def test_the_token_is_asked_for_under_any_prefix(prefix, method, path, body):
    """Under a `route_prefix` the path did not begin with /v1/, so every route was open."""
    assert ask(method, path, prefix, json=body).status_code == 401
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert ask(method, path, prefix, json=body, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["//v1/about", "/v1//about", "/V1/about", "/v1/about/", "/./v1/about", "/page/../v1/about", "/v1/pins/../about"])  # fmt: skip
def test_no_spelling_of_a_path_gets_past_the_token(path):
    assert ask("GET", path).status_code in (401, 404)


@pytest.mark.parametrize("prefix", ["", "/relevance"])
@pytest.mark.parametrize("path", ["/", "/page/app.js", "/healthz", "/readyz", "/v1/pins/p/image"])
def test_the_page_and_health_need_no_token(prefix, path):
    assert ask("GET", path, prefix).status_code == 200


@pytest.mark.parametrize(
    ("path", "root", "seen"),
    [("/a", "", "/a"), ("/p/a", "/p", "/a"), ("/pa", "/p", "/pa"), ("/p", "/p", "/p"), ("/a", "/p", "/a")],
)
def test_the_guard_sees_the_path_that_the_routes_see(path, root, seen):
    assert route_path({"path": path, "root_path": root}) == seen


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e3", "", "0x10", "１０"])
def test_an_odd_content_length_is_refused_with_an_answer(length):
    """Python refuses to read thousands of digits: that was an error without an answer."""
    headers = [(b"content-length", length.encode()), (b"authorization", b"Bearer right")]
    assert ask("POST", "/v1/encode", headers=headers, content=b"{}").status_code == 413


def test_a_key_that_is_no_unicode_gets_an_answer():
    content = b'{"queries": ["a"], "\\ud800": 1}'
    answer = ask("POST", "/v1/encode", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")


def test_an_error_is_short_however_long_the_key():
    content = b'{"' + b"k" * 200_000 + b'": 1}'
    answer = ask("POST", "/v1/encode", content=content, headers=JSON)
    assert answer.status_code == 422 and len(answer.content) < 2000


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"9" * 5000, b"\xff\xfe", b"NaN", b'{"queries": [1e999]}', b"", b'{"queries": [']
)
def test_odd_json_is_the_callers_mistake(content):
    assert ask("POST", "/v1/encode", content=content, headers=JSON).status_code in (400, 422)


@pytest.mark.parametrize("top_k", [True, "3", 2.5, [1], "١"])
def test_a_number_is_a_number(top_k):
    """`true` was taken for 1."""
    answer = ask("POST", "/v1/search", json={"query": "mug", "top_k": top_k}, headers=JSON)
    assert answer.status_code == 422 and "top_k" in answer.json()["message"]


def test_a_path_cannot_forge_a_line_of_the_log(caplog):
    caplog.set_level(logging.INFO)
    for path in ("/v1/related/x%0a12:00:00%20POST%20/v1/search%20200", "/%1b[2Jnowhere", "/v1/pins/a%0d%0ab/image"):
        ask("GET", path, headers={"x-request-id": "a\tb"})
    lines = [record.getMessage() for record in caplog.records if record.name == "relevance.access"]
    assert len(lines) == 3 and all(line.isprintable() for line in lines)


def test_a_query_cannot_forge_a_line_of_the_log_where_queries_are_logged(caplog):
    caplog.set_level(logging.INFO)
    service = Service()
    service.log_queries = True
    content = '{"query": "a\x1b[2J\u2028\\n12:00 all is well"}'.encode()
    ask("POST", "/v1/search", app=build_http(service), content=content)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "relevance.access"]
    assert line.isprintable() and "all is well" in line


def test_guard_counts_no_request_twice():
    """A refused one must not hold a place."""
    guard = build_http(Service(), token=TOKEN)
    guard.limits = ServeLimits(max_concurrent_requests=1)
    for _ in range(3):
        assert ask("GET", "/v1/about", app=guard).status_code == 401
    assert guard.in_flight == 0
    assert isinstance(guard.app, FastAPI)


# --- the name under which it is asked, and what the page may load ---

LOOPBACK = ["localhost", "127.0.0.1", "::1"]


def ask_as(host, path, allow_hosts):
    return ask("GET", path, app=build_http(Service(), allow_hosts=allow_hosts), headers={"host": host})


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST.", "localhost"])
def test_this_machines_names_are_answered(host):
    assert ask_as(host, "/v1/about", LOOPBACK).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
                                  "", "localhost@evil.example", "evil.example:localhost", "::1:evil"])  # fmt: skip
def test_other_names_are_refused(host):
    """A page that somebody visits may give its own name this machine's address (DNS rebinding), and read what it answers."""
    answer = ask_as(host, "/v1/about", LOOPBACK)
    assert (answer.status_code, answer.json()["error"]) == (421, "wrong_host")
    assert "serve.allow_hosts" in answer.json()["message"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_ask_by_the_pods_address(path):
    assert ask_as("10.1.2.3:8000", path, ["relevance.example.org"]).status_code == 200


@pytest.mark.parametrize("path", ["/page/app.js/", "/v1/about/", "/v1/search/", "/healthz/"])
def test_no_redirect_goes_to_whatever_the_host_header_says(path):
    answer = ask("GET", path, headers={"host": "evil.example", "authorization": "Bearer right"})
    assert answer.status_code in (404, 405) and "location" not in answer.headers


def policy(**options):
    return ask("GET", "/healthz", app=build_http(Service(), **options)).headers["content-security-policy"]


def test_pictures_of_the_page_come_from_listed_hosts_only():
    """Who writes a pin chose the host, which then saw the address of everyone who searched; http ones reach intranets."""
    parts = policy().split("; ")
    assert "default-src 'none'" in parts and "img-src 'self' data:" in parts
    assert "img-src 'self' data: cdn.example.org *.example.com:8443;" in policy(image_hosts=["cdn.example.org", "*.example.com:8443"])  # fmt: skip


@pytest.mark.parametrize("host", ["*", "https:", "https://a.example", "a.example/x", "a.example; script-src *", "'self'", "", "a b", "*.*.example"])  # fmt: skip
def test_an_image_host_is_a_host(host):
    with pytest.raises(ValueError, match="is no host such as"):
        ServeConfig(image_hosts=[host])


@pytest.mark.parametrize(
    ("config", "hosts"),
    [({}, LOOPBACK), ({"auth_token_env": "T"}, None), ({"allow_hosts": ["a.example"]}, ["a.example"]),
     ({"auth_token_env": "T", "allow_hosts": ["a.example"]}, ["a.example"])],
)  # fmt: skip
def test_without_a_token_only_this_machines_names_are_answered_unless_others_are_listed(config, hosts):
    assert ServeConfig.model_validate(config).answered_hosts() == hosts
