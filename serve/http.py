"""The HTTP API over a `Service`: plain FastAPI without Ray, so that tests run it in process."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from ray_app.online.problems import BadRequest, NotFound, Overloaded, RequestError, Unavailable
from serve.middleware import REQUEST_ID, AdmissionMiddleware, Observe, TooLarge, error_response, too_large
from serve.models import (
    About,
    BoardRequest,
    BoardResponse,
    EncodeRequest,
    EncodeResponse,
    ErrorBody,
    RelatedResponse,
    RerankRequest,
    RerankResponse,
    SearchRequest,
    SearchResponse,
)

if TYPE_CHECKING:
    from ray_app.online.service import Service

PAGE = Path(__file__).parent / "page"
_SHOWN_CHARS = 100  # of an unknown key, which may be as long as a body
STATUS: dict[type[RequestError], int] = {BadRequest: 422, NotFound: 404, Overloaded: 429, Unavailable: 503}


def build_http(
    service: "Service", observe: Observe | None = None, token: str | None = None,
    allow_hosts: Sequence[str] | None = None, image_hosts: Sequence[str] = (),
) -> AdmissionMiddleware:  # fmt: skip
    """The whole ASGI app.

    Args:
        service: Answers.
        observe: Told of each request; for metrics.
        token: Bearer token that /v1 asks for; None: anyone may ask.
        allow_hosts: Names under which the app may be asked; None: any.
        image_hosts: Whose pictures the page may load, beside the app's own.
    """
    return AdmissionMiddleware(
        build_routes(service), service.limits, observe, token, service.log_queries, allow_hosts, image_hosts
    )  # fmt: skip


def build_routes(service: "Service") -> FastAPI:
    """Routes, OpenAPI and errors."""
    app = FastAPI(
        title="Search relevance", version="1", description=__doc__, redoc_url=None, docs_url=None,
        redirect_slashes=False,  # it redirects to whatever the header Host says
    )  # fmt: skip
    _add_errors(app, service.limits.max_body_bytes)
    _add_api(app, service)
    _add_page(app, service)
    return app


def _add_errors(app: FastAPI, max_body_bytes: int) -> None:
    @app.exception_handler(RequestError)
    async def _on_problem(_: Request, problem: RequestError) -> Response:
        return error_response(STATUS[type(problem)], problem.code, problem.message)

    @app.exception_handler(RequestValidationError)
    async def _on_invalid(_: Request, error: RequestValidationError) -> Response:
        return error_response(422, "invalid", _explained(error))

    @app.exception_handler(HTTPException)
    async def _on_http(_: Request, error: HTTPException) -> Response:
        if isinstance(error, TooLarge):
            return too_large(max_body_bytes)
        return error_response(error.status_code, "http", str(error.detail))

    @app.exception_handler(Exception)
    async def _on_error(request: Request, _: Exception) -> Response:
        # Starlette raises it again after this answer, and `AdmissionMiddleware` logs it.
        text = f"an error on our side; it is in the log as {request.scope[REQUEST_ID]}"
        return error_response(500, "internal", text)


def _add_api(app: FastAPI, service: "Service") -> None:
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody} for status in (400, 401, 404, 413, 421, 422, 429, 500, 503)
    }

    @app.post("/v1/encode", response_model=EncodeResponse, responses=problems, tags=["vectors"])
    async def encode(body: EncodeRequest) -> Response:
        """Vectors of queries, in the space of the release's pins."""
        return _json(await service.encode(body.queries))

    @app.post("/v1/rerank", response_model=RerankResponse, responses=problems, tags=["search"])
    async def rerank(body: RerankRequest) -> Response:
        """Relevance of candidates that another system retrieved, best first."""
        return _json(await service.rerank(body.query, body.locale, body.pin_ids, body.top_k))

    @app.post("/v1/search", response_model=SearchResponse, responses=problems, tags=["search"])
    async def search(body: SearchRequest) -> Response:
        """Retrieve, rerank, blend."""
        return _json(await service.search(body.query, body.locale, body.top_k))

    @app.get("/v1/related/{pin_id:path}", response_model=RelatedResponse, responses=problems, tags=["vectors"])
    async def related(pin_id: str, k: Annotated[int, Query(ge=1, le=200)] = 12) -> Response:
        """Pins near a pin."""
        return _json(await service.related(pin_id, k))

    @app.post("/v1/boards/encode", response_model=BoardResponse, responses=problems, tags=["vectors"])
    async def board(body: BoardRequest) -> Response:
        """A board's vector: of its title, its pins, or both."""
        return _json(await service.encode_board(body.title, body.pin_ids))

    @app.get("/v1/about", response_model=About, responses=problems, tags=["page"])
    async def about() -> Response:
        """Description of the served release."""
        return _json(service.about())

    @app.get("/v1/pins/{pin_id:path}/image", responses=problems, tags=["page"])
    async def image(pin_id: str) -> Response:
        """A pin's picture, made smaller."""
        data = await service.image(pin_id)
        return Response(data, media_type="image/jpeg", headers={"cache-control": "public, max-age=3600"})


def _add_page(app: FastAPI, service: "Service") -> None:
    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        # Anyone may ask: what is served, and why another release is not, stands in the log, with the storage's paths.
        status = service.readiness()
        code = "not_ready" if not status["ready"] else "release_refused" if status["refused"] else "ok"
        return _json({"ready": status["ready"], "code": code}, 200 if status["ready"] else 503)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in ("app.js", "style.css"):
            raise NotFound("not_found", "there is no such file")
        return FileResponse(PAGE / name)


def _json(value: Any, status: int = 200) -> Response:
    # The core's answers have the models' shape (a test compares them), so they are not validated once more.
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")


def _explained(error: RequestValidationError) -> str:
    """Name the invalid field and its problem, without repeating the input."""
    parts = []
    for problem in error.errors()[:5]:
        place = ".".join(str(part)[:_SHOWN_CHARS] for part in problem["loc"] if part != "body") or "body"
        parts.append(f"{place}: {problem['msg'][:_SHOWN_CHARS]}")
    return "; ".join(parts)
