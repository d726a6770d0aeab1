"""The page in a real browser, over an app that answers with made-up pins (tests/unit/online/test_page_in_use.py: clicked)."""

import re

import pytest
from PIL import Image
from serve_world import CHROMIUM, Service, browse, running

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


@pytest.fixture(scope="module")
def url():
    with running(Service()) as world:
        yield world.url


def test_results_stand_in_order_with_grades_and_reasons(url, tmp_path):
    page = browse(f"{url}/?q=red+mug&locale=de-DE", tmp_path)
    assert re.findall(r'data-pin="([^"]+)"', page) == ["mug/1", "two", "three"]
    assert 'aria-label="grades 1: 5%, 2: 5%, 3: 10%, 4: 20%, 5: 60%"' in page
    assert "<b>4.3</b>" in page
    reasons = [re.sub("<[^>]+>", "", found) for found in re.findall(r'class="why"[^>]*>(.*?)</(?:p|li)>', page)]
    assert reasons == [
        "title red, mugboard titles mugteacher 4.5engagement 50 of 100retrieved by bm25 and dense",
        *["meaning no word in commonretrieved by dense"] * 2,
    ]
    assert "3 of 77 candidates · 3.2 ms · language en" in page
    assert re.findall(r'<option value="([\w-]+)"', page) == ["en-US", "de-DE"]


def test_what_a_pin_says_is_text_and_never_runs(url, tmp_path):
    page = browse(f"{url}/?q=red+mug", tmp_path)
    assert "<title>Search relevance</title>" in page
    assert "&lt;img src=x onerror=" in page and '<img src="x"' not in page
    assert "javascript:" not in page


def test_related_pins_open_from_the_address(url, tmp_path):
    page = browse(f"{url}/?q=red+mug&related=two", tmp_path)
    assert "near two" in page and "cosine 0.88" in page
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
def test_the_page_says_what_happened(query, said, url, tmp_path):
    assert said in browse(f"{url}/?q={query}", tmp_path)


@pytest.mark.parametrize("size", ["1280,900", "390,844"])
def test_a_screenshot_can_be_taken(size, url, tmp_path):
    browse(f"{url}/?q=red+mug", tmp_path, f"--screenshot={tmp_path / 'page.png'}", f"--window-size={size}")
    picture = Image.open(tmp_path / "page.png").convert("RGB")
    assert picture.size == tuple(int(side) for side in size.split(","))
    assert len(set(picture.resize((64, 64)).getdata())) > 20  # not one empty surface
