"""The page as people use it: clicked, typed into, gone back from, refused and retried (tests/unit/serve/test_page.py: as it looks)."""

import json
import re

import pytest
from serve_world import CHROMIUM, Service, browse, drive, running

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


@pytest.fixture
def world():
    with running(Service()) as found:
        yield found


def told(world, tmp_path, script, start="/"):
    return [json.loads(line) for line in drive(world, tmp_path, script, start)]


def test_a_late_answer_of_an_older_search_is_dropped(world, tmp_path):
    notes = told(
        world,
        tmp_path,
        "delay('slow', 600); type('slow one'); await wait(50); type('quick'); await wait(1500); note(all('#results .title')[0])",
    )
    assert notes == ["A red mug for quick"]


def test_older_results_stay_dimmed_while_the_next_are_sought(world, tmp_path):
    notes = told(
        world,
        tmp_path,
        "delay('slow', 600); type('slow one'); await wait(100); note([$('#results').className, all('#results .title')[0]])",
        "/?q=first",
    )
    assert notes == [["waiting", "A red mug for first"]]


@pytest.mark.parametrize("query", ["mug", "mug&related=two", "nothing", "down"])
def test_nothing_stays_dimmed(query, world, tmp_path):
    assert 'class="waiting"' not in browse(f"{world.url}/?q={query}", tmp_path)


def test_going_back_shows_what_was_there(world, tmp_path):
    script = "type('one'); await wait(300); type('two'); await wait(300); for (const _ of [1, 2]) { frame().history.back(); await wait(400); note([$('#query').value, all('#results .title')[0] ?? null, all('#status')[0].slice(0, 4)]) }"
    assert told(world, tmp_path, script) == [["one", "A red mug for one", "3 of"], ["", None, ""]]


def test_a_search_can_be_shared(world, tmp_path):
    script = "$('#locale').value = 'de-DE'; type('rote tasse'); await wait(300); note(frame().location.search)"
    assert told(world, tmp_path, script) == ["?q=rote+tasse&locale=de-DE"]


def test_another_locale_searches_again(world, tmp_path):
    script = "$('#locale').value = 'de-DE'; $('#locale').dispatchEvent(new Event('change')); await wait(300); note(frame().location.search)"
    assert told(world, tmp_path, script, "/?q=mug") == ["?q=mug&locale=de-DE"]
    assert world.service.asked == ["mug", "mug"]


def test_the_locale_of_the_address_is_the_one_shown(world, tmp_path):
    """Otherwise the page would search one locale and name another."""
    assert told(world, tmp_path, "note($('#locale').value)", "/?q=mug&locale=fr-CH") == ["fr-CH"]


def test_an_example_is_a_search(world, tmp_path):
    script = "frame().document.querySelectorAll('#examples button')[1].click(); await wait(300); note(all('#results .title')[0])"
    assert told(world, tmp_path, script) == ["A red mug for blue mug"]


def test_a_failure_offers_another_try_which_works(world, tmp_path):
    script = "note(all('#status')[0]); note($('#retry').hidden); $('#retry').click(); await wait(300); note([all('#results .title')[0], $('#retry').hidden])"
    said = "a release is being loaded. Try again in 1 s."
    assert told(world, tmp_path, script, "/?q=flaky") == [said, False, ["A red mug for flaky", True]]


def test_escape_closes_related_pins_and_gives_the_focus_back(world, tmp_path):
    script = (
        "const more = frame().document.querySelectorAll('.more')[1]; more.focus(); more.click(); await wait(300);"
        "note([$('#related').hidden, frame().document.activeElement.id, $('#related h2').textContent.slice(0, 15)]);"
        "frame().document.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' })); await wait(200);"
        "note([$('#related').hidden, frame().document.activeElement === more, frame().location.search])"
    )
    assert told(world, tmp_path, script, "/?q=mug") == [[False, "close", "Related to <img"], [True, True, "?q=mug"]]


def test_a_panel_closed_before_its_answer_stays_closed(world, tmp_path):
    script = "delay('related', 600); $('.more').click(); await wait(50); frame().history.back(); await wait(1500); note($('#related').hidden)"
    assert told(world, tmp_path, script, "/?q=mug") == [True]


def test_later_related_pins_are_not_replaced_by_earlier_ones(world, tmp_path):
    script = "delay('mug%2F1', 600); const more = frame().document.querySelectorAll('.more'); more[0].click(); await wait(50); more[1].click(); await wait(1500); note(all('#related .title'))"
    assert told(world, tmp_path, script, "/?q=mug") == [["near two"]]


def test_a_failure_of_related_pins_leaves_the_results_line(world, tmp_path):
    page = browse(f"{world.url}/?q=mug&related=gone", tmp_path)
    assert "3 of 77 candidates" in page
    assert "a release is being loaded. Try again in 1 s." in page


def test_a_503_says_when_to_try_again(world, tmp_path):
    assert "a release is being loaded. Try again in 1 s." in browse(f"{world.url}/?q=down", tmp_path)


def test_a_card_shows_all_that_is_known(world, tmp_path):
    page = browse(f"{world.url}/?q=mug", tmp_path)
    assert re.findall(r'data-pin="([^"]+)"', page) == ["mug/1", "two", "three"]
    assert re.findall(r'class="likeliest">([^<]+)<', page) == ["grade 5", "grade 5", "grade 1"]
    assert "board titles" in page
    assert "release r1234567" in page
    assert re.search(r'<h3 class="title">three</h3>', page)  # a pin without a title is called by its id
    assert 'src="/v1/pins/mug%2F1/image"' in page


def test_no_request_carries_the_query_in_a_header(world, tmp_path):
    """Headers end up in the logs of proxies; bodies do not."""
    script = "const send = frame().fetch; frame().fetch = (path, options) => { note(options.headers['x-query-key'] ?? ''); return send(path, options) }; type('Red  Mug'); await wait(400)"
    (key,) = told(world, tmp_path, script)
    from hashlib import sha256

    assert key == sha256(b"red mug").hexdigest()[:2]  # as the Python client's: the same replica


def test_a_token_is_asked_for_once_and_kept_for_the_session_only(tmp_path):
    script = (
        "let asked = 0; frame().prompt = () => { asked++; return 'sesame' };"
        "type('mug'); await wait(500); note([asked, all('#results .title')[0], all('#locale option').length]);"
        "type('other'); await wait(300); note([asked, all('#results .title')[0]]);"
        "note([frame().sessionStorage.getItem('token'), frame().localStorage.length, frame().location.search])"
    )
    with running(Service(), token="sesame") as world:
        notes = told(world, tmp_path, script)
    assert notes[:2] == [[1, "A red mug for mug", 2], [1, "A red mug for other"]]
    assert notes[2] == ["sesame", 0, "?q=other&locale=en-US"]


def test_a_wrong_token_is_forgotten_and_asked_for_again(tmp_path):
    script = (
        "const given = ['wrong', 'sesame']; frame().prompt = () => given.shift();"
        "type('mug'); await wait(500); note([given.length, all('#results .title').length, frame().sessionStorage.getItem('token')]);"
        "$('#retry').click(); await wait(500); note(all('#results .title').length)"
    )
    with running(Service(), token="sesame") as world:
        assert told(world, tmp_path, script) == [[1, 0, None], 3]
