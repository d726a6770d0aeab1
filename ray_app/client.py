"""A small client of the online app (docs/serving.md).

with RelevanceClient("http://127.0.0.1:8000") as client:
    best = client.search("red mug", locale="en-US", top_k=5)["results"]
"""

import hashlib
import re
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote

try:
    import httpx
except ImportError as error:
    raise ImportError("ray_app.client needs httpx: pip install httpx, or 'ray-app-relevance[serve]'") from error
import numpy as np

from ray_app.base.locales import UNKNOWN
from ray_app.base.text import normalize_query

_MAX_WAIT_SEC = 5.0  # however long a server asks for
# The connection broke; not: the server is slow.
_BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


class RelevanceError(Exception):
    """The server's answer was an error.

    Args:
        status: HTTP status; 0: no answer came.
        code: Such as `too_long`.
        message: What is wrong and what to do.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message = status, code, message


class RelevanceClient:
    """Talks to the app; answers are dicts as `serve.models` describes them. Keeps connections open; not for several threads.

    Args:
        url: Of the app.
        token: Bearer token, if the app asks for one. Never shown.
        timeout_sec: Of one try.
        retries: Further tries after 429, 503 or a broken connection; all requests only read, so a second one is harmless.
            A late answer is not asked for again: the server would do the same work twice while it is behind.

    Raises:
        ValueError: The token cannot stand in a header.
    """

    def __init__(self, url: str, token: str | None = None, timeout_sec: float = 5.0, retries: int = 2) -> None:
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise ValueError("token: printable ASCII without spaces; perhaps it was read with the end of its line")
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url.rstrip("/"), timeout=timeout_sec, headers=headers)
        self._url, self._retries = url, retries

    def __repr__(self) -> str:
        return f"RelevanceClient({self._url!r})"

    def __enter__(self) -> "RelevanceClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def encode(self, queries: Sequence[str]) -> np.ndarray:
        """Vectors of queries, (num_queries, dim) float32, unit length."""
        texts = _listed(queries, "queries")
        answer = self._ask("POST", "/v1/encode", {"queries": texts}, texts[0] if len(texts) == 1 else None)
        return np.array(answer["embeddings"], np.float32)

    def rerank(
        self, query: str, pin_ids: Sequence[str], locale: str = UNKNOWN, top_k: int | None = None
    ) -> dict[str, Any]:
        """Relevance of candidates, best first; see serve.models.RerankResponse."""
        body = {"query": query, "pin_ids": _listed(pin_ids, "pin_ids"), "locale": locale, "top_k": top_k}
        return self._ask("POST", "/v1/rerank", body, query)

    def search(self, query: str, locale: str = UNKNOWN, top_k: int = 20) -> dict[str, Any]:
        """Results, best first; see serve.models.SearchResponse."""
        return self._ask("POST", "/v1/search", {"query": query, "locale": locale, "top_k": top_k}, query)

    def related(self, pin_id: str, k: int = 12) -> list[dict[str, Any]]:
        """Nearest pins, nearest first."""
        results: list[dict[str, Any]] = self._ask("GET", f"/v1/related/{quote(pin_id, safe='')}?k={k}")["results"]
        return results

    def encode_board(self, title: str = "", pin_ids: Sequence[str] = ()) -> np.ndarray:
        """A board's vector, (dim,) float32."""
        answer = self._ask("POST", "/v1/boards/encode", {"title": title, "pin_ids": _listed(pin_ids, "pin_ids")})
        return np.array(answer["embedding"], np.float32)

    def about(self) -> dict[str, Any]:
        """Description of the served release."""
        return self._ask("GET", "/v1/about")

    def ready(self) -> bool:
        """Return True if the app is ready to answer."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _ask(self, method: str, path: str, body: Any = None, query: str | None = None) -> dict[str, Any]:
        key = {} if query is None else {"x-query-key": query_key(query)}
        for left in range(self._retries, -1, -1):
            try:
                answer = self._http.request(method, path, json=body, headers=key)
            except httpx.TransportError as error:
                if not left or not isinstance(error, _BROKEN):
                    late = isinstance(error, httpx.TimeoutException)
                    said = f"{self._url} does not answer: {type(error).__name__}"
                    raise RelevanceError(0, "timeout" if late else "no_answer", said) from None
                time.sleep(0.1 * 2 ** (self._retries - left))
                continue
            if answer.status_code == 200:
                return _found(answer)
            problem = _problem(answer)
            if problem.status not in (429, 503) or not left:
                raise problem
            time.sleep(_wait_sec(answer))
        raise AssertionError("unreachable")


def query_key(query: str) -> str:
    """One of 256 numbers, in hex, by which a proxy sends equal queries to the replica that has them cached.

    Headers end up in logs. Of a full hash anyone could test whether it is that of a name; of all queries that were ever asked
    every 256th has the same number.
    """
    return hashlib.sha256(normalize_query(query).encode()).hexdigest()[:2]


def _listed(texts: Sequence[str], name: str) -> list[str]:
    if isinstance(texts, str):  # would be sent letter by letter, and answered
        raise ValueError(f"{name}: a list of texts, not one text")
    return list(texts)


def _found(answer: httpx.Response) -> dict[str, Any]:
    try:
        found: dict[str, Any] = answer.json()
    except ValueError:
        raise RelevanceError(answer.status_code, "http", "the answer is not JSON; is this the app's address?") from None
    return found


def _problem(answer: httpx.Response) -> RelevanceError:
    try:
        said = answer.json()
        return RelevanceError(answer.status_code, said["error"], said["message"])
    except (ValueError, KeyError, TypeError):  # a proxy's own page
        return RelevanceError(answer.status_code, "http", answer.reason_phrase)


def _wait_sec(answer: httpx.Response) -> float:
    asked = answer.headers.get("retry-after", "")
    return min(float(asked), _MAX_WAIT_SEC) if asked.isdigit() else 0.5
