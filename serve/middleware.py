"""Admission middleware: host, token, body size, requests at once, deadline, access log, headers.

Plain ASGI, so that a refusal costs next to nothing: that is what keeps an overloaded replica alive.
"""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ray_app.base.config import ServeLimits

logger = logging.getLogger(__name__)
access = logging.getLogger("relevance.access")

RETRY_AFTER_SEC = 1
REQUEST_ID = "relevance.request_id"  # in the ASGI scope
OPEN_PATHS = ("/healthz", "/readyz")  # answered whatever the load
# Answered without the token: the page, what it is made of, and pictures, since an <img> cannot send a header.
_NO_TOKEN = ("/", "/openapi.json")
_NO_TOKEN_BELOW = ("/page/", "/v1/pins/")
MIN_DEADLINE_MS = 50  # less only makes work that nobody waits for
_MAX_DIGITS = 18  # of a header's number; Python refuses to read thousands of them
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Observe = Callable[[str, int, float], None]  # (route, status, seconds) of an answered request


class AdmissionMiddleware:
    """Checks and limits before the routes.

    Args:
        app: The routes.
        limits: Of the config.
        observe: See `build_http`.
        token: See `build_http`.
        log_queries: Write bodies of requests into the access log.
        allow_hosts: See `build_http`.
        image_hosts: See `build_http`.
    """

    def __init__(
        self, app: FastAPI, limits: ServeLimits, observe: Observe | None, token: str | None, log_queries: bool,
        allow_hosts: Sequence[str] | None = None, image_hosts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.app, self.limits, self.observe, self.log_queries = app, limits, observe, log_queries
        self._token = token.encode() if token else None
        self._hosts = None if allow_hosts is None else frozenset(map(_host_name, allow_hosts))
        pictures = " ".join(("'self'", "data:", *image_hosts))
        self._headers = {
            "x-content-type-options": "nosniff",
            "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
            f"img-src {pictures}; base-uri 'none'; form-action 'self'; "
            "frame-ancestors 'self'",
        }
        self.in_flight = self.open_in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, self._headers)
        started = time.perf_counter()
        headers = {name: value for name, value in scope["headers"]}
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        answer.request_id = request_id if _SAFE_ID.fullmatch(request_id) else uuid.uuid4().hex[:16]
        scope[REQUEST_ID] = answer.request_id
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
        path = route_path(scope)
        if path in OPEN_PATHS:
            await self.app(scope, body.receive, answer.send)
            return
        is_open = path in _NO_TOKEN or path.startswith(_NO_TOKEN_BELOW)
        if refusal := self._refused(is_open, headers):
            await refusal(scope, body.receive, answer.send)
            return
        self._count(is_open, 1)
        try:
            async with asyncio.timeout(self._deadline(headers)):
                await self.app(scope, body.receive, answer.send)
        except TimeoutError:
            await answer.instead(scope, body, error_response(503, "deadline", "this took too long; try again"))
        except Exception:
            # Where every unforeseen error ends: the caller has a number to quote, the log has the traceback.
            logger.exception("request %s failed", answer.request_id)
        finally:
            self._count(is_open, -1)

    def _count(self, is_open: bool, change: int) -> None:
        if is_open:
            self.open_in_flight += change
        else:
            self.in_flight += change

    def _refused(self, is_open: bool, headers: dict[bytes, bytes]) -> Response | None:
        if self._hosts is not None and _host_name(headers.get(b"host", b"").decode("latin-1")) not in self._hosts:
            return error_response(421, "wrong_host", "this app is not served under that name: see serve.allow_hosts")
        if self._token is not None and not is_open:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                return error_response(401, "unauthorized", "send the header `Authorization: Bearer TOKEN`")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > _MAX_DIGITS or int(length) > self.limits.max_body_bytes:
            return too_large(self.limits.max_body_bytes)
        limits = self.limits
        number, most = (
            (self.open_in_flight, limits.max_concurrent_open_requests)
            if is_open
            else (self.in_flight, limits.max_concurrent_requests)
        )
        if number >= most:
            return error_response(429, "overloaded", f"too many concurrent requests (limit {most}); retry later")
        return None

    def _deadline(self, headers: dict[bytes, bytes]) -> float:
        """Seconds that a request may take: the config's, or less if the caller says so."""
        asked = headers.get(b"x-deadline-ms", b"")
        limit = self.limits.deadline_ms
        wanted = max(int(asked), MIN_DEADLINE_MS) if asked.isdigit() and len(asked) < 10 else limit
        return min(wanted, limit) / 1000


def route_path(scope: Scope) -> str:
    """The path as routes see it: without the `route_prefix` under which Serve has put the app."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _host_name(host: str) -> str:
    """Host name of a Host header or a name in the config: no port, no brackets, no dot at the end."""
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    return host.casefold().rstrip(".")


class TooLarge(HTTPException):
    """A body that grew too large. FastAPI turns any other exception while it reads a body into a 400."""

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
            raise TooLarge
        if self._keep:
            self.seen += chunk
        return message


class _Answer:
    """Adds headers, remembers the status, and knows whether an answer has begun."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send, self._headers = send, headers
        self.status = 0
        self.request_id = ""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = {**self._headers, "x-request-id": self.request_id}
            message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
        await self._send(message)

    async def instead(self, scope: Scope, body: _Body, response: Response) -> None:
        """Answer with `response`, unless an answer is on its way already."""
        if not self.status:
            await response(scope, body.receive, self.send)


def error_response(status: int, code: str, message: str) -> Response:
    """An answer of the shape `serve.models.ErrorBody`."""
    headers = {"retry-after": str(RETRY_AFTER_SEC)} if status in (429, 503) else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    body = orjson.dumps({"error": code, "message": message})
    return Response(body, status, headers=headers, media_type="application/json")


def too_large(max_bytes: int) -> Response:
    """The answer to a body that is too large."""
    return error_response(413, "too_large", f"a body has at most {max_bytes} bytes")
