"""The page in a real browser, over an app that answers with made-up pins."""

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from ray_app.base.config import ServeLimits
from ray_app.online.problems import Overloaded
from serve.http import build_http

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


class Service:
    """Two pins for any query but these: `nothing`, `busy`."""

    limits, log_queries = ServeLimits(), False

    async def search(self, query: str, locale: str, top_k: int) -> dict[str, Any]:
        if query == "busy":
            raise Overloaded("overloaded", "more than 64 requests at once")
        hit = {
            "pin_id": "one", "score": 4.26, "probs": [0.05, 0.05, 0.1, 0.2, 0.6], "grade": 5, "rank": 1, "blended": 4.3,
            "engagement": 0.5, "title": "A red mug", "text": "A red mug. Ceramic", "image_url": None, "locale": "en-US",
            "matched": {"title": ["red", "mug"]}, "sources": ["bm25", "vectors"], "teacher_score": 4.5,
        }  # fmt: skip
        other = hit | {
            "pin_id": "two", "rank": 2, "title": HOSTILE, "image_url": "javascript:document.title='owned'", "matched": {},
            "engagement": None, "teacher_score": None,
        }  # fmt: skip
        return {
            "release": "r" * 16, "student": "s" * 16, "results": [] if query == "nothing" else [hit, other],
            "num_candidates": 77, "degraded": query == "slow", "took_ms": 3.2,
            "query": {"text": query, "language": "en", "corrections": {"mgu": "mug"} if "mgu" in query else {}},
        }  # fmt: skip

    async def related(self, pin_id: str, k: int) -> dict[str, Any]:
        pin = {"pin_id": "near", "cosine": 0.875, "title": f"near {pin_id}", "image_url": None, "locale": None}
        return {"release": "r", "pin_id": pin_id, "results": [pin]}

    def about(self) -> dict[str, Any]:
        return {
            "release": "r" * 16, "student": "s" * 16, "num_pins": 2000, "dim": 8, "engine": "onnx",
            "locales": ["en-US", "de-DE"], "examples": ["red mug"],
        }  # fmt: skip


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(build_http(Service()), port=0, log_level="error"))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def browse(url: str, tmp_path: Path, *more: str) -> str:
    """The page as it is after its scripts have run."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000", *more, "--dump-dom", url,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


def texts(page: str, name: str) -> list[str]:
    return [re.sub("<[^>]+>", "", found) for found in re.findall(rf'class="{name}"[^>]*>(.*?)</(?:h3|p|li)>', page)]


def test_results_stand_in_order_with_grades_and_reasons(url: str, tmp_path: Path) -> None:
    page = browse(f"{url}/?q=red+mug&locale=de-DE", tmp_path)
    assert re.findall(r'data-pin="(\w+)"', page) == ["one", "two"]
    assert 'aria-label="grades 1: 5%, 2: 5%, 3: 10%, 4: 20%, 5: 60%"' in page
    assert "<b>4.3</b>" in page
    assert texts(page, "why") == [
        "title red, mugteacher 4.5engagement 50 of 100found by bm25 and vectors",
        "meaning no word in commonfound by bm25 and vectors",
    ]
    assert "2 of 77 candidates · 3.2 ms · language en" in page
    assert re.findall(r'<option value="([\w-]+)"', page) == ["en-US", "de-DE"]


def test_what_a_pin_says_is_text_and_never_runs(url: str, tmp_path: Path) -> None:
    page = browse(f"{url}/?q=red+mug", tmp_path)
    assert "<title>Search relevance</title>" in page
    assert "&lt;img src=x onerror=" in page and '<img src="x"' not in page
    assert "javascript:" not in page


def test_related_pins_open_from_the_address(url: str, tmp_path: Path) -> None:
    page = browse(f"{url}/?q=red+mug&related=one", tmp_path)
    assert "near one" in page and "cosine 0.88" in page
    assert '<aside id="related" aria-label="Related pins">' in page  # not hidden


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("nothing", "Nothing found"),
        ("busy", "more than 64 requests at once. Try again in 1 s."),
        ("slow", "ranked without the language model"),
        ("red+mgu", "also searched: mug"),
    ],
)
def test_the_page_says_what_happened(query: str, said: str, url: str, tmp_path: Path) -> None:
    assert said in browse(f"{url}/?q={query}", tmp_path)


@pytest.mark.parametrize("size", ["1280,900", "390,844"])
def test_a_screenshot_can_be_taken(size: str, url: str, tmp_path: Path) -> None:
    browse(f"{url}/?q=red+mug", tmp_path, f"--screenshot={tmp_path / 'page.png'}", f"--window-size={size}")
    from PIL import Image

    picture = Image.open(tmp_path / "page.png").convert("RGB")
    assert picture.size == tuple(int(side) for side in size.split(","))
    assert len(set(picture.resize((64, 64)).getdata())) > 20  # not one empty surface
