"""The HTTP layer in process, over a service that answers by arithmetic: limits, errors, what reaches the log."""

import asyncio
import logging

import pytest
from serve_world import talk_to

from ray_app.base.config import ServeLimits
from ray_app.online.problems import BadRequest, NotFound, Overloaded, Unavailable
from serve import models
from serve.http import build_http

REFERENCE = "secret-of-the-user"


class CountingService:
    """Vectors are [length of the query]; a query `sleep` waits until it is let go, `boom` breaks."""

    def __init__(self, limits=None, log_queries=False):
        self.limits = limits or ServeLimits()
        self.log_queries = log_queries
        self.go_on = asyncio.Event()
        self.ready = True
        self.refused = None

    async def encode(self, queries):
        if "sleep" in queries:
            await self.go_on.wait()
        if "boom" in queries:
            raise RuntimeError(f"weights of {REFERENCE} are broken")
        problems = {"bad": BadRequest, "missing": NotFound, "busy": Overloaded, "down": Unavailable}
        for name, problem in problems.items():
            if name in queries:
                raise problem(name, "say it otherwise")
        return {"student": "s", "dim": 1, "embeddings": [[len(q)] for q in queries]}

    async def related(self, pin_id, k):
        return {"release": "r", "pin_id": pin_id, "results": []}

    def readiness(self):
        return {"ready": self.ready, "refused": self.refused, "release": "r", "student": "s", "cache": {"hits": 3}}


def ask(
    service, talk, token = None,
    seen = None,
):  # fmt: skip
    observe = None if seen is None else lambda route, status, _: seen.append((route, status))
    return talk_to(build_http(service, observe, token), talk)


def post(service, body, token=None, **options):
    return ask(service, lambda client: client.post("/v1/encode", json=body, **options), token)


def test_an_answer_has_the_documented_shape():
    answer = post(CountingService(), {"queries": ["red mug", "a"]})
    assert models.EncodeResponse.model_validate(answer.json()).embeddings == [[7.0], [1.0]]


@pytest.mark.parametrize(("query", "status"), [("bad", 422), ("missing", 404), ("busy", 429), ("down", 503)])
def test_problems_of_the_core_become_statuses(query, status):
    answer = post(CountingService(), {"queries": [query]})
    assert (answer.status_code, answer.json()) == (status, {"error": query, "message": "say it otherwise"})
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_a_broken_part_shows_no_inside_to_the_caller_but_the_log_has_it(caplog):
    answer = post(CountingService(), {"queries": ["boom"]}, headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500
    assert REFERENCE not in answer.text and "Traceback" not in answer.text
    assert "abc-1" in answer.json()["message"]
    assert REFERENCE in caplog.text


@pytest.mark.parametrize(
    ("body", "field"),
    [({"queries": ["a"], "querys": 1}, "querys"), ({"queries": []}, "queries"), ({"queries": [7]}, "queries.0"),
     ({}, "queries"), ([], "body"), ({"queries": [{"x": REFERENCE}]}, "queries.0")],
)  # fmt: skip
def test_a_bad_body_is_told_its_field_and_not_repeated(body, field):
    answer = post(CountingService(), body)
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")
    assert field in answer.json()["message"] and REFERENCE not in answer.text


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_refused_by_its_declared_length_or_while_it_comes(declared):
    async def chunks():
        for _ in range(10):
            yield b" " * 50

    service = CountingService(ServeLimits(max_body_bytes=100))
    answer = ask(service, lambda c: c.post("/v1/encode", content=b" " * 500 if declared else chunks()))
    assert (answer.status_code, answer.json()["error"]) == (413, "too_large")


def test_a_request_too_many_is_told_when_to_come_again_and_the_others_are_answered():
    service = CountingService(ServeLimits(max_concurrent_requests=2))

    async def talk(client):
        slow = [asyncio.create_task(client.post("/v1/encode", json={"queries": ["sleep"]})) for _ in range(2)]
        while not any(task.done() for task in slow) and client._transport.app.in_flight < 2:
            await asyncio.sleep(0)
        refused = await client.post("/v1/encode", json={"queries": ["late"]})
        healthy = await client.get("/healthz")
        service.go_on.set()
        after = [*(await asyncio.gather(*slow)), await client.post("/v1/encode", json={"queries": ["late"]})]
        return [refused, healthy, *after]

    refused, healthy, *answered = ask(service, talk)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert healthy.status_code == 200
    assert [answer.status_code for answer in answered] == [200, 200, 200]


def test_a_request_beyond_its_deadline_ends_and_leaves_room():
    service = CountingService(ServeLimits(max_concurrent_requests=1))

    async def talk(client):
        late = await client.post("/v1/encode", json={"queries": ["sleep"]}, headers={"x-deadline-ms": "10"})
        return [late, await client.post("/v1/encode", json={"queries": ["next"]})]

    late, after = ask(service, talk)
    assert (late.status_code, late.json()["error"], after.status_code) == (503, "deadline", 200)


@pytest.mark.parametrize("asked", ["999999", "soon", "-5", "", "9" * 400])
def test_a_caller_cannot_lengthen_the_deadline(asked):
    service = CountingService(ServeLimits(deadline_ms=10))
    answer = post(service, {"queries": ["sleep"]}, headers={"x-deadline-ms": asked})
    assert answer.json()["error"] == "deadline"


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Basic right", "Bearer ", "right", "Bearer right2", "bearer right"]
)
def test_without_the_token_nobody_gets_in(header):
    headers = {} if header is None else {"authorization": header}
    answer = post(CountingService(), {"queries": ["a"]}, token="right", headers=headers)
    assert answer.status_code == (200 if header == "bearer right" else 401)


def test_strangers_learn_no_more_than_whether_it_is_ready():
    """The text names the storage, the release the student: a map for whoever looks for a way in."""
    service = CountingService()
    service.refused = {"release": "0123456789abcdef", "why": "/data/customer-acme/releases/CURRENT names no release"}
    answer = ask(service, lambda c: c.get("/readyz"), token="right")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "code": "release_refused"})
    service.refused = None
    assert ask(service, lambda c: c.get("/readyz")).json() == {"ready": True, "code": "ok"}
    service.ready = False
    answer = ask(service, lambda c: c.get("/readyz"))
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "code": "not_ready"})


def test_query_texts_and_tokens_stay_out_of_the_log(caplog):
    caplog.set_level(logging.DEBUG)
    headers = {"authorization": f"Bearer {REFERENCE}"}
    for query in (REFERENCE, "bad", "boom2"):
        post(CountingService(), {"queries": [query, REFERENCE]}, token=REFERENCE, headers=headers)
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("relevance", "serve", "ray_app"))]
    assert ours and not [line for line in ours if REFERENCE in line]


@pytest.mark.parametrize("given", ["evil\x01id", "x" * 65, "a b"])
def test_a_strange_request_id_is_replaced(given):
    answer = post(CountingService(), {"queries": ["a"]}, headers={"x-request-id": given.encode("latin-1").decode()})
    assert answer.headers["x-request-id"] != given


def test_metrics_know_routes_not_paths():
    """A label per pin id would make Prometheus grow without end."""
    seen = []
    ask(CountingService(), lambda c: c.get("/v1/related/some%2Fpin"), seen=seen)
    ask(CountingService(), lambda c: c.get("/nowhere"), seen=seen)
    assert seen == [("/v1/related/{pin_id:path}", 200), ("unknown", 404)]


@pytest.mark.parametrize("name", ["../app.py", "%2e%2e/app.py", "secrets.txt"])
def test_only_the_pages_own_files_are_served(name):
    assert ask(CountingService(), lambda c: c.get(f"/page/{name}")).status_code == 404


class Listening(CountingService):
    """Remembers the locales that reach it."""

    def __init__(self):
        super().__init__()
        self.locales = []

    async def search(self, query, locale, top_k):
        self.locales.append(locale)
        return {}

    async def rerank(self, query, locale, pin_ids, top_k):
        self.locales.append(locale)
        return {}


@pytest.mark.parametrize(
    ("said", "locale"),
    [({"locale": "en_us"}, "en-US"), ({"locale": "EN-US"}, "en-US"), ({"locale": "zh-hant-tw"}, "zh-Hant-TW"), ({}, "und")],
)  # fmt: skip
def test_a_locale_arrives_in_its_one_spelling_and_none_is_not_english(said, locale):
    service = Listening()

    async def talk(client):
        search = await client.post("/v1/search", json={"query": "mug", **said})
        rerank = await client.post("/v1/rerank", json={"query": "mug", "pin_ids": ["a"], **said})
        return [search.status_code, rerank.status_code]

    assert ask(service, talk) == [200, 200]
    assert service.locales == [locale, locale]


def test_what_is_no_locale_is_the_callers_mistake_and_not_repeated():
    service = Listening()
    answer = ask(service, lambda client: client.post("/v1/search", json={"query": "mug", "locale": "english (US)"}))
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")
    assert answer.json()["message"].startswith("locale: ") and "BCP 47" in answer.json()["message"]
    assert "english" not in answer.text and service.locales == []
