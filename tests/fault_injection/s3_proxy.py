"""An S3 server (moto's) behind a proxy that misbehaves on command: 500 and 503, dropped connections, stale lists, slowness.

What a request meets is a function of the seed and of its number since `begin`, so that a burst can be had again.
"""

import contextlib
import http.client
import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "faults"
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing-key-id",
    "AWS_SECRET_ACCESS_KEY": "testing-secret-value",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# Of the requests that are hit, by what is wrong.
SHARES = {"errors": 0.5, "drops": 0.4, "stale_lists": 1.0, "slow": 1.0}
SLOW_SEC = 0.2
_HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


class S3Proxy:
    """Address of the proxy, and what is wrong with it at this moment."""

    def __init__(self, port: int, client: Any) -> None:
        self._client = client
        self.server = _Server(self, port)
        self.port: int = self.server.server_address[1]
        self.wrong, self.until, self.seed, self.number, self.hit = "", 0.0, 0, 0, 0
        self.lists: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}  # as they were first answered
        self.lock = threading.Lock()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def uri(self, prefix: str) -> str:
        """Of a run's output."""
        return f"s3://{BUCKET}/{prefix}?endpoint_override=http://127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def upload(self, folder: Path, prefix: str) -> None:
        """Put a folder's files under `prefix`, past the proxy."""
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder)}"
                self._client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())

    def begin(self, wrong: str, seconds: float, seed: int) -> None:
        """Misbehave for so long."""
        with self.lock:
            self.wrong, self.until, self.seed, self.number, self.hit = wrong, time.monotonic() + seconds, seed, 0, 0

    def end(self) -> int:
        """Behave; returns how many requests were hit."""
        with self.lock:
            self.wrong = ""
            self.lists.clear()
            return self.hit

    def fate(self, is_list: bool) -> tuple[str, float]:
        """What is wrong with the next request ("": nothing), and a number in [0, 1) that decides how."""
        with self.lock:
            if not self.wrong or time.monotonic() > self.until:
                return "", 0.0
            self.number += 1
            rng = random.Random(f"{self.seed}-{self.number}")
            if rng.random() >= SHARES[self.wrong] or (self.wrong == "stale_lists" and not is_list):
                return "", 0.0
            self.hit += 1
            return self.wrong, rng.random()


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self._body()
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        is_list = self.command == "GET" and ("list-type" in query or "prefix" in query)
        wrong, how = self.server.proxy.fate(is_list)
        if wrong == "errors":
            code = 500 if how < 0.5 else 503
            name = b"InternalError" if code == 500 else b"SlowDown"
            self._send(code, [("content-type", "application/xml")], b"<Error><Code>" + name + b"</Code></Error>")
            return
        if wrong == "drops" and how < 0.5:  # before the server hears of it
            self._drop()
            return
        if wrong == "slow":
            time.sleep(SLOW_SEC)
        if wrong == "stale_lists" and self.path in self.server.proxy.lists:
            self._send(*self.server.proxy.lists[self.path])
            return
        status, headers, data = self._forward(body)
        if is_list:
            self.server.proxy.lists.setdefault(self.path, (status, headers, data))
        if wrong == "drops":  # after it has done it, so that the client repeats what is done
            self._drop()
            return
        self._send(status, headers, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def _body(self) -> bytes:
        if length := self.headers.get("content-length"):
            return self.rfile.read(int(length))
        parts = []
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in {*_HOP, "expect"}}
            server.request(self.command, self.path, body=body or None, headers=headers)
            found = server.getresponse()
            kept = [(k, v) for k, v in found.getheaders() if k.lower() not in _HOP]
            return found.status, kept, found.read()
        finally:
            server.close()

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("content-length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def __init__(self, proxy: S3Proxy, upstream: int) -> None:
        self.proxy, self.upstream = proxy, upstream
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *_: object) -> None:
        """Clients that are killed leave broken connections: no news."""


@contextlib.contextmanager
def s3_proxy() -> Iterator[S3Proxy]:
    """A fresh S3 with the bucket BUCKET; `KEYS` must be in the environment of whoever talks to it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        keys = {"aws_access_key_id": KEYS["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"]}
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **keys)
        client.create_bucket(Bucket=BUCKET)
        proxy = S3Proxy(port, client)
        yield proxy
        proxy.server.shutdown()
    finally:
        server.stop()
