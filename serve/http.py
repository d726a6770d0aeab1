"""The HTTP API over a `Service`: plain FastAPI without Ray, so that tests run it in process.

Around the routes stands one ASGI layer (`Guard`): token, body size, requests at once, deadline, access log. It answers
before FastAPI has parsed anything, which is what keeps an overloaded replica alive.
"""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from ray_app.config import ServeLimits
from ray_app.online.problems import BadRequest, NotFound, Overloaded, RequestProblem, Unavailable
from serve.models import (
    About,
    BoardRequest,
    BoardResponse,
    EncodeRequest,
    EncodeResponse,
    Problem,
    RelatedResponse,
    RerankRequest,
    RerankResponse,
    SearchRequest,
    SearchResponse,
)

if TYPE_CHECKING:
    from ray_app.online.service import Service

logger = logging.getLogger(__name__)
access = logging.getLogger("relevance.access")

PAGE = Path(__file__).parent / "page"
RETRY_AFTER_SEC = 1
STATUS: dict[type[RequestProblem], int] = {BadRequest: 422, NotFound: 404, Overloaded: 429, Unavailable: 503}
OPEN_PATHS = ("/healthz", "/readyz")  # answered whatever the load
HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' https: http: data:; base-uri 'none'; form-action 'self'; frame-ancestors 'self'",
}
_REQUEST_ID = "relevance.request_id"  # in the ASGI scope
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Observe = Callable[[str, int, float], None]  # (route, status, seconds) of an answered request


def build_http(service: "Service", observe: Observe | None = None, token: str | None = None) -> Asgi:
    """The whole ASGI app.

    Args:
        service: Answers.
        observe: Told of each request; for metrics.
        token: Bearer token that /v1 asks for; None: anyone may ask.
    """
    return Guard(build_routes(service), service.limits, observe, token, service.log_queries)


def build_routes(service: "Service") -> FastAPI:
    """Routes, OpenAPI and errors."""
    app = FastAPI(title="Search relevance", version="1", description=__doc__, redoc_url=None, docs_url=None)
    _add_errors(app, service.limits.max_body_bytes)
    _add_api(app, service)
    _add_page(app, service)
    return app


def _add_errors(app: FastAPI, max_body_bytes: int) -> None:
    @app.exception_handler(RequestProblem)
    async def _on_problem(_: Request, problem: RequestProblem) -> Response:
        return _problem(STATUS[type(problem)], problem.code, problem.message)

    @app.exception_handler(RequestValidationError)
    async def _on_invalid(_: Request, error: RequestValidationError) -> Response:
        return _problem(422, "invalid", _explained(error))

    @app.exception_handler(HTTPException)
    async def _on_http(_: Request, error: HTTPException) -> Response:
        if isinstance(error, _TooLarge):
            return _too_large(max_body_bytes)
        return _problem(error.status_code, "http", str(error.detail))

    @app.exception_handler(Exception)
    async def _on_error(request: Request, _: Exception) -> Response:
        # Starlette raises it again after this answer, and `Guard` logs it.
        text = f"an error on our side; it is in the log as {request.scope[_REQUEST_ID]}"
        return _problem(500, "internal", text)


def _add_api(app: FastAPI, service: "Service") -> None:
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem} for status in (401, 404, 413, 422, 429, 503)
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
        """What is served."""
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
        status = service.readiness()
        return _json(status, 200 if status["ready"] else 503)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in ("app.js", "style.css"):
            raise NotFound("not_found", "there is no such file")
        return FileResponse(PAGE / name)


class Guard:
    """What stands before the routes.

    Args:
        app: The routes.
        limits: Of the config.
        observe: See `build_http`.
        token: See `build_http`.
        log_queries: Write bodies of requests into the access log.
    """

    def __init__(
        self, app: FastAPI, limits: ServeLimits, observe: Observe | None, token: str | None, log_queries: bool
    ) -> None:
        self.app, self.limits, self.observe, self.log_queries = app, limits, observe, log_queries
        self._token = token.encode() if token else None
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        started = time.perf_counter()
        headers = {name: value for name, value in scope["headers"]}
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        answer.request_id = request_id if _SAFE_ID.fullmatch(request_id) else uuid.uuid4().hex[:16]
        scope[_REQUEST_ID] = answer.request_id
        body = _Body(receive, self.limits.max_body_bytes, keep=self.log_queries)
        try:
            await self._answer(scope, headers, body, answer)
        finally:
            took = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unknown")
            status = answer.status or 499  # the client went away
            if self.observe is not None:
                self.observe(route, status, took)
            if route not in OPEN_PATHS:
                said = f" {body.seen!r}" if self.log_queries and body.seen else ""
                access.info(
                    "%s %s %d %.1fms %s%s", scope["method"], route, status, 1000 * took, answer.request_id, said
                )

    async def _answer(self, scope: Scope, headers: dict[bytes, bytes], body: "_Body", answer: "_Answer") -> None:
        path = scope["path"]
        if path in OPEN_PATHS:
            await self.app(scope, body.receive, answer.send)
            return
        if problem := self._refused(path, headers):
            await problem(scope, body.receive, answer.send)
            return
        self.in_flight += 1
        try:
            async with asyncio.timeout(self._deadline(headers)):
                await self.app(scope, body.receive, answer.send)
        except TimeoutError:
            await answer.instead(scope, body, _problem(503, "deadline", "this took too long; try again"))
        except Exception:
            # Where every unforeseen error ends: the caller has a number to quote, the log has the traceback.
            logger.exception("request %s failed", answer.request_id)
        finally:
            self.in_flight -= 1

    def _refused(self, path: str, headers: dict[bytes, bytes]) -> Response | None:
        # Pictures are left open: an <img> cannot send a header.
        if self._token is not None and path.startswith("/v1/") and not path.startswith("/v1/pins/"):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                return _problem(401, "unauthorized", "send the header `Authorization: Bearer TOKEN`")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limits.max_body_bytes:
            return _too_large(self.limits.max_body_bytes)
        if self.in_flight >= self.limits.max_in_flight:
            return _problem(429, "overloaded", f"more than {self.limits.max_in_flight} requests at once; try again")
        return None

    def _deadline(self, headers: dict[bytes, bytes]) -> float:
        """Seconds that a request may take: the config's, or less if the caller says so."""
        asked = headers.get(b"x-deadline-ms", b"")
        limit = self.limits.deadline_ms
        return (min(int(asked), limit) if asked.isdigit() and len(asked) < 10 else limit) / 1000


class _TooLarge(HTTPException):  # FastAPI turns any other exception while it reads a body into a 400
    def __init__(self) -> None:
        super().__init__(413)


class _Body:
    """Counts what comes in."""

    def __init__(self, receive: Receive, max_bytes: int, keep: bool) -> None:
        self._receive, self._max_bytes, self._keep = receive, max_bytes, keep
        self._count = 0
        self.seen = b""

    async def receive(self) -> Message:
        message = await self._receive()
        chunk = message.get("body", b"")
        self._count += len(chunk)
        if self._count > self._max_bytes:
            raise _TooLarge
        if self._keep:
            self.seen += chunk
        return message


class _Answer:
    """Adds headers, remembers the status, and knows whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.request_id = ""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = {**HEADERS, "x-request-id": self.request_id}
            message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
        await self._send(message)

    async def instead(self, scope: Scope, body: _Body, response: Response) -> None:
        """Answer with `response`, unless an answer is on its way already."""
        if not self.status:
            await response(scope, body.receive, self.send)


def _json(value: Any, status: int = 200) -> Response:
    # The core's answers have the models' shape (a test compares them), so they are not validated once more.
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")


def _problem(status: int, code: str, message: str) -> Response:
    headers = {"retry-after": str(RETRY_AFTER_SEC)} if status in (429, 503) else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    body = orjson.dumps({"error": code, "message": message})
    return Response(body, status, headers=headers, media_type="application/json")


def _too_large(max_bytes: int) -> Response:
    return _problem(413, "too_large", f"a body has at most {max_bytes} bytes")


def _explained(error: RequestValidationError) -> str:
    """Which field is wrong and how, without repeating what was sent."""
    parts = []
    for problem in error.errors()[:5]:
        place = ".".join(str(part) for part in problem["loc"] if part != "body") or "body"
        parts.append(f"{place}: {problem['msg']}")
    return "; ".join(parts)
