"""The online app with made-up pins, in process or on a free port, and a browser that looks at it and uses it."""

import asyncio
import html
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from caption_world import picture

from ray_app.base.config import ServeLimits
from ray_app.online.problems import Overloaded, Unavailable
from serve import models
from serve.http import build_http

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"

# Runs in a page that has the real one in a frame: `frame()` is its window, `note()` leaves a line for the test. The frame may
# not open dialogs, which would hang a headless browser: `prompt` answers null. `delay` works in the page, because the browser's
# virtual time stands still while a request is under way: a slow server would make nothing late.
_DRIVER = """<!doctype html><meta charset="utf-8"><title>driver</title>
<iframe id="frame" src="%s" width="1200" height="800" sandbox="allow-scripts allow-same-origin allow-forms"></iframe><ol id="notes"></ol><script>
const frame = () => document.getElementById("frame").contentWindow;
const $ = (css) => frame().document.querySelector(css);
const all = (css) => [...frame().document.querySelectorAll(css)].map((found) => found.textContent);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const type = (text) => { $("#query").value = text; $("#search").requestSubmit(); };
const delay = (text, ms) => {
  const send = frame().fetch;
  frame().fetch = async (path, options) => {
    const answer = await send(path, { ...options, signal: undefined });
    if ((path + (options.body ?? "")).includes(text)) await wait(ms);
    return answer;
  };
};
const note = (what) => { const line = document.createElement("li"); line.textContent = JSON.stringify(what); document.getElementById("notes").append(line); };
addEventListener("load", async () => { try { await wait(500); %s } catch (error) { note(String(error)); } });
</script>"""


def talk_to(app: Any, talk: Callable[[httpx.AsyncClient], Awaitable[Any]], root_path: str = "") -> Any:
    """What `talk` comes to over an app in this process."""

    async def run() -> Any:
        transport = httpx.ASGITransport(app=app, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await talk(client)

    return asyncio.run(run())


class Service:
    """Three pins for any query but: `nothing`, `busy` (429), `down` (503), `flaky` (503, once); `slow` is degraded."""

    limits, log_queries = ServeLimits(), False

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def search(self, query: str, locale: str, top_k: int) -> dict[str, Any]:
        self.asked.append(query)
        if query == "busy":
            raise Overloaded("overloaded", "more than 64 requests at once")
        if query == "down" or (query == "flaky" and self.asked.count("flaky") == 1):
            raise Unavailable("loading", "a release is being loaded")
        red = models.SearchResult(
            pin_id="mug/1", score=4.26, probs=[0.05, 0.05, 0.1, 0.2, 0.6], grade=5, rank=1, blended_score=4.3, engagement=0.5,
            title=f"A red mug for {query}", text="A red mug. Ceramic", image_url="/v1/pins/mug%2F1/image", locale=locale,
            matched_terms={"title": ["red", "mug"], "board_titles": ["mug"]}, sources=["bm25", "dense"], teacher_score=4.5,
        )  # fmt: skip
        hostile = red.model_copy(
            update={
                "pin_id": "two", "rank": 2, "title": HOSTILE, "image_url": "javascript:document.title='owned'",
                "matched_terms": {}, "engagement": None, "teacher_score": None, "sources": ["dense"],
            }
        )  # fmt: skip
        untitled = hostile.model_copy(update={"pin_id": "three", "rank": 3, "title": "", "image_url": None, "grade": 1})
        found = models.SearchResponse(
            release="r1234567890abcde", student="s" * 16, num_candidates=77, degraded=query == "slow", took_ms=3.2,
            results=[] if query == "nothing" else [red, hostile, untitled],
            query=models.Understanding(text=query, language="en", corrections={"mgu": "mug"} if "mgu" in query else {}),
        )  # fmt: skip
        return found.model_dump()

    async def related(self, pin_id: str, k: int) -> dict[str, Any]:
        if pin_id == "gone":
            raise Unavailable("loading", "a release is being loaded")
        near = models.RelatedPin(pin_id="near", cosine=0.875, title=f"near {pin_id}", image_url=None, locale=None)
        return models.RelatedResponse(release="r", pin_id=pin_id, results=[near]).model_dump()

    async def image(self, pin_id: str) -> bytes:
        return picture(1, kind="JPEG")

    async def encode(self, queries: list[str]) -> dict[str, Any]:
        vectors = [[0.6, 0.8]] * len(queries)
        return models.EncodeResponse(student="s", dim=2, embeddings=vectors).model_dump()

    async def rerank(self, query: str, locale: str, pin_ids: list[str], top_k: int | None) -> dict[str, Any]:
        scored = [
            models.PairRelevance(pin_id=pin, score=3.0, probs=[0, 0, 1, 0, 0], grade=3) for pin in pin_ids[:top_k]
        ]
        return models.RerankResponse(
            release="r", student="s", results=scored, unknown_pin_ids=[], degraded=False, took_ms=1.0
        ).model_dump()

    async def encode_board(self, title: str, pin_ids: list[str]) -> dict[str, Any]:
        return models.BoardResponse(
            student="s", dim=2, embedding=[0.6, 0.8], num_pins=len(pin_ids), unknown_pin_ids=[]
        ).model_dump()

    def readiness(self) -> dict[str, Any]:
        return {"ready": True, "refused": None}

    def about(self) -> dict[str, Any]:
        return models.About(
            release="r" * 16, student="s" * 16, num_pins=2000, dim=2, backend="onnx", locales=["en-US", "de-DE"],
            examples=["red mug", "blue mug"],
        ).model_dump()  # fmt: skip


class World:
    """A running app: its `url`, its `service`, and `script`, what /drive does with the page at `start`."""

    def __init__(self, service: Any, token: str | None) -> None:
        self.service, self.url = service, ""
        self.start, self.script = "/", ""
        self._app = build_http(service, token=token)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != "/drive":
            await self._app(scope, receive, send)
            return
        body = (_DRIVER % (html.escape(self.start), self.script)).encode()
        headers = [(b"content-type", b"text/html; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """URL of an app on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@contextmanager
def running(service: Any, token: str | None = None) -> Iterator[World]:
    """The app over `service`, on a free port."""
    world = World(service, token)
    with listening(world) as world.url:
        yield world


def browse(url: str, folder: Path, *more: str) -> str:
    """The DOM of the page at `url` after its scripts have run; `more`: options such as --screenshot."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=8000", *more, "--dump-dom", url,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


def drive(world: World, folder: Path, script: str, start: str = "/") -> list[str]:
    """What `script` noted (as JSON) while it used the page that begins at `start`."""
    world.start, world.script = start, script
    page = browse(f"{world.url}/drive", folder)
    return [html.unescape(line) for line in re.findall(r"<li>(.*?)</li>", page)]
