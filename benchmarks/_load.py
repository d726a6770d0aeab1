"""HTTP load over keep-alive connections, cheap enough for the client not to be what is measured (some 0.1 ms a request).

Closed loop: each client sends its next request when the last one is answered.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

TIMEOUT_SEC = 30.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request: path, JSON body, headers."""

    path: str
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Load:
    """What came of it."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    wall: float = 0.0

    def summary(self) -> dict[str, float]:
        """Milliseconds, requests per second, failures."""
        ms = 1000 * np.array(self.seconds or [np.nan])
        failed = sum(count for status, count in self.statuses.items() if status != 200)
        return {
            "requests": len(self.seconds),
            "per_sec": round(len(self.seconds) / self.wall, 1),
            "p50_ms": round(float(np.percentile(ms, 50)), 2),
            "p95_ms": round(float(np.percentile(ms, 95)), 2),
            "p99_ms": round(float(np.percentile(ms, 99)), 2),
            "failed": failed,
        }


def load(url: str, requests: Iterator[Request], clients: int, seconds: float, max_requests: int = 0) -> Load:
    """Send requests for so many seconds, or until there are no more."""
    return asyncio.run(_load(url, requests, clients, seconds, max_requests))


async def _load(url: str, requests: Iterator[Request], clients: int, seconds: float, max_requests: int) -> Load:
    result = Load()
    where = urlsplit(url)
    assert where.hostname is not None
    started = time.perf_counter()
    stop = started + seconds
    await asyncio.gather(
        *(_client(where.hostname, where.port or 80, requests, stop, result, max_requests) for _ in range(clients))
    )
    result.wall = time.perf_counter() - started
    return result


async def _client(
    host: str, port: int, requests: Iterator[Request], stop: float, result: Load, max_requests: int
) -> None:
    connection = None
    while time.perf_counter() < stop and not (max_requests and len(result.seconds) >= max_requests):
        request = next(requests, None)
        if request is None:
            break
        started = time.perf_counter()
        try:
            if connection is None:
                connection = await asyncio.open_connection(host, port)
            async with asyncio.timeout(TIMEOUT_SEC):
                status, closed = await _ask(connection, host, request)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            status, closed = 0, True
        result.seconds.append(time.perf_counter() - started)
        result.statuses[status] += 1
        if closed and connection is not None:
            connection[1].close()
            connection = None
    if connection is not None:
        connection[1].close()


async def _ask(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], host: str, request: Request
) -> tuple[int, bool]:
    """Status, and whether the server closes the connection."""
    reader, writer = connection
    body = json.dumps(request.body).encode()
    head = [
        f"POST {request.path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json",
        f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in request.headers.items()),
    ]  # fmt: skip
    writer.write(("\r\n".join(head) + "\r\n\r\n").encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(answer.split(" ", 2)[1])
    headers = dict(line.split(": ", 1) for line in answer.split("\r\n")[1:] if ": " in line)
    if "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    return status, headers.get("connection") == "close"
