import pyarrow as pa
import pytest

from ray_app.base.config import PinTextConfig
from ray_app.base.text import (
    cut_text,
    normalize_query,
    normalize_text,
    query_group,
    render_pin_text,
    render_pin_texts,
    stem_tokens,
    tokenize,
)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a \t b\n", "a b"),
        ("ﬁne ＡＢＣ", "fine ABC"),
        ("a\x00b\u200bc\ufeff", "a bc"),
        ("\ud800x", "x"),
        (None, ""),
    ],
)
def test_texts_that_look_alike_become_equal(raw, clean):
    assert normalize_text(raw) == clean


def test_normalising_twice_changes_nothing():
    """Else a key computed from stored text would differ from one computed from raw text."""
    for text in ("İstanbul ﬁ", "ǅ ß", "a\u0301  b", "ΰ"):
        assert normalize_query(normalize_query(text)) == normalize_query(text)


def test_models_read_letters_as_people_write_them_and_matching_does_not_mind():
    """Casefolded, "weiße" is a word that no language model knows: German queries for white lost a third of their nDCG."""
    assert normalize_query("Weiße  Vase") == "weiße vase"
    assert tokenize("Weiße Vase") == tokenize("weisse vase") == ["weisse", "vase"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("HP 15.6-inch, HP_Laptop!", ["hp", "15", "6", "inch", "hp", "laptop"]),
        ("हिन्दी தமிழ் ราคา", ["हिन्दी", "தமிழ்", "ราคา"]),  # combining marks
    ],
)
def test_tokens_are_whole_casefolded_words_in_order_with_repeats(text, tokens):
    assert tokenize(text) == tokens


def test_plural_and_singular_are_one_stem_and_words_that_only_look_plural_stay():
    assert stem_tokens("laptops watches batteries") == stem_tokens("laptop watch battery")
    assert stem_tokens("glass virus bus tv") == ["glass", "virus", "bus", "tv"]


@pytest.mark.parametrize(
    ("a", "b"),
    [("laptop", "Laptops"), ("smart watch", "smartwatches"), ("kid's toys", "kids toy"), ("i-phone", "iPhone")],
)
def test_near_duplicate_queries_share_a_group(a, b):
    """Else a test query's twin is trained on, and the report is too good."""
    assert query_group(a) == query_group(b)


def test_other_queries_have_other_groups():
    assert len({query_group(q) for q in ("laptop", "laptop bag", "!!", "??", "desk")}) == 5


ROW = {"title": "HP Laptop", "description": "HP laptop with a fast disk", "board_titles": ["office", None, "work"]}


@pytest.mark.parametrize(
    ("row", "cfg", "text"),
    [
        (ROW, {"fields": ["board_titles", "title"]}, "office, work. HP Laptop"),
        (ROW, {"fields": ["title", "description"]}, "HP Laptop. HP laptop with a fast disk"),
        ({"title": "HP Laptop 15 silver", "description": "hp laptop 15"}, {}, "HP Laptop 15 silver"),
        ({"title": "wireless headphones"}, {"fields": ["title"], "max_field_chars": {"title": 12}}, "wireless"),
        ({"title": None, "board_titles": [], "description": " "}, {}, ""),
    ],
    ids=["the config's order", "longer than the title", "an earlier field starts with it", "cut between words", "none"],
)
def test_fields_are_joined(row, cfg, text):
    assert render_pin_text(row, PinTextConfig(**cfg)) == text


def test_text_without_spaces_is_cut_where_it_is():
    assert cut_text("ノート" * 10, 7) == "ノートノートノ"


def test_rendering_a_table_is_rendering_its_rows_whichever_columns_it_has():
    table = pa.table({"title": ["a", None], "engaged_queries": [["q", "r"], None]})
    assert render_pin_texts(table, PinTextConfig()) == ["a. q, r", ""]
    assert render_pin_texts(pa.table({"pin_id": ["a", "b"]}), PinTextConfig()) == ["", ""]
