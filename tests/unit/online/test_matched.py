"""The page shows which of a user's words a pin says."""

from ray_app.base.text import tokenize
from ray_app.online.matched import matched_terms

PIN = {
    "title": "Red Mugs, ceramic",
    "description": None,
    "board_titles": ["Kitchen ideas", None, "red things"],
    "caption": "カップ",
    "locale": "en-US",
}
FIELDS = ["title", "description", "board_titles", "caption", "engaged_queries"]


def test_words_are_found_in_each_field_as_the_user_wrote_them():
    """Solved by hand; plural and singular are one word, and the user sees the own one."""
    found = matched_terms(tokenize("Kitchen mug RED reds"), PIN, FIELDS)
    assert found == {"title": ["mug", "red", "reds"], "board_titles": ["kitchen", "red", "reds"]}


def test_a_part_of_a_word_is_no_match():
    """`art` is not in `smart`."""
    assert matched_terms(["ram", "ceram", "ed"], PIN, FIELDS) == {}


def test_a_word_is_named_once():
    """Repeating a word does not make it match more."""
    assert matched_terms(["red", "red"], PIN, ["title"]) == {"title": ["red"]}


def test_words_without_a_stem_match_nothing():
    """The s of `kid's` would else be in every field."""
    assert matched_terms(tokenize("kid's"), PIN, FIELDS) == {}


def test_other_scripts_match_too():
    """Japanese users see matches as well."""
    assert matched_terms(tokenize("カップ"), PIN, FIELDS) == {"caption": ["カップ"]}


def test_no_words_and_unlisted_fields_match_nothing():
    """An emoji query, and a field that is not shown."""
    assert matched_terms(tokenize("😀"), PIN, FIELDS) == {}
    assert matched_terms(["red"], PIN, ["description"]) == {}
