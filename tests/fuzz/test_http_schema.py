# ruff: noqa: E402  -- without schemathesis nothing below is imported
"""Requests made up from the app's own OpenAPI, valid and broken, by schemathesis, over real HTTP.

The routes answer from a real release (tests/whole_release.py), so what gets through the models is
understood, retrieved, ranked and shown. Whatever is sent: a documented status, a body of the documented shape, and no error
on our side. HYPOTHESIS_PROFILE=long sends many more.
"""

import os
from pathlib import Path
from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install -e '.[dev]'")

import hypothesis
import serve_world
import whole_release
from hypothesis import HealthCheck
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from ray_app.base.config import ImageLimits, ServeLimits
from ray_app.online.service import Service
from serve.http import build_http, build_routes

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
TOKEN = "token-of-the-test"
statuses: dict[int, int] = {}


class App:
    """The app over a release, which is loaded by the first request: in the loop that answers."""

    def __init__(self, folder: Path) -> None:
        world = whole_release.build(folder)
        self.served = world.served[1]
        # No deadline: a busy machine must not look like an error of ours.
        limits = ServeLimits(deadline_ms=60_000, encoder_timeout_ms=60_000)
        cfg = whole_release.shards.EVERYTHING.model_copy(update={"limits": limits})
        self.service = Service(cfg, ImageLimits(), world.store, folder, load=self._load)
        self._http = build_http(self.service, lambda route, status, _: self._count(status), TOKEN)
        self._loaded = False

    async def _load(self, *_: Any) -> Any:
        return self.served

    def _count(self, status: int) -> None:
        statuses[status] = statuses.get(status, 0) + 1

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not self._loaded:
            self._loaded = await self.service.refresh(must=True)
        await self._http(scope, receive, send)


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory):
    with serve_world.listening(App(tmp_path_factory.mktemp("schema"))) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def operations() -> list[str]:
    """Such as `POST /v1/search`."""
    paths = build_routes(serve_world.Service()).openapi()["paths"]  # type: ignore[arg-type]
    return [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]


NOTHING_TO_BREAK = ("GET /v1/about", "GET /v1/pins/{pin_id}/image")  # any text is a pin id
KINDS = [
    pytest.param(operation, mode, id=f"{operation} {mode.value}")
    for operation in operations() for mode in GenerationMode
    if mode == GenerationMode.POSITIVE or operation not in NOTHING_TO_BREAK
]  # fmt: skip


@pytest.mark.parametrize(("operation", "mode"), KINDS)
def test_every_answer_is_as_the_openapi_says(schema: Any, operation: str, mode: GenerationMode) -> None:
    method, _, path = operation.partition(" ")

    @hypothesis.given(case=schema[path][method].as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=2000 if LONG else 20, derandomize=not LONG, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def check(case: Any) -> None:
        answer = case.call(headers={"authorization": f"Bearer {TOKEN}"})
        # Words that say nothing (`empty_query`) are refused although no schema can say so; and that 413 is a refusal of what
        # breaks the schema by its size, schemathesis does not know.
        excluded = [positive_data_acceptance, *([negative_data_rejection] if answer.status_code == 413 else [])]
        case.validate_response(answer, excluded_checks=excluded)

    check()


def test_requests_reached_the_core() -> None:
    """Else all of the above could have been refused at the door."""
    print(f"answers by status: {statuses}")  # with -s
    assert statuses.get(200, 0) > 20 and statuses.get(422, 0) > 20, statuses
    assert not [status for status in statuses if status >= 500]
