"""pin_texts are what every model reads: noise in them costs GPU hours, a leak in them fakes the evaluation."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from ray_app.base.config import EnrichConfig
from ray_app.base.errors import UserError
from ray_app.base.schemas import BOARDS, PIN_TEXTS, PINS, SEARCH_LOG
from ray_app.stages.enrich.board_titles import titled_saves
from ray_app.stages.enrich.engaged_queries import drop_engaged_queries, top_engaged_queries
from ray_app.stages.enrich.pin_texts import build_pin_texts, num_without_text

DAY_0 = datetime(2024, 1, 1, tzinfo=UTC)


def pins(*rows):
    return pa.Table.from_pylist([{"pin_id": "p1", "locale": "en-US", **row} for row in rows], schema=PINS)


def boards(*titles, pin_id="p1"):
    """One save of the pin per title."""
    rows = [{"board_id": f"b{i}", "pin_id": pin_id, "board_title": title} for i, title in enumerate(titles)]
    return titled_saves(pa.Table.from_pylist(rows, schema=BOARDS))


def log(*events):
    """Events (query, action, day) of pin p1, each of a client of its own."""
    rows = [
        {"event_id": f"e{i}", "client_id": f"c{i}", "timestamp": DAY_0 + timedelta(days=day), "query": query, "locale": "en-US", "pin_id": "p1", "action": action}
        for i, (query, action, day) in enumerate(events)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SEARCH_LOG)


def texts(pin=None, saves=None, events=None, excluded=(), **cfg):
    """The pin_texts row of p1."""
    found = build_pin_texts(pins(pin or {}), saves or boards(), events or log(), set(excluded), EnrichConfig(**cfg))
    return found.to_pylist()[0]


def engaged(*events, excluded=(), **cfg):
    return texts(events=log(*events), excluded=excluded, **{"min_clients": 1, **cfg})["engaged_queries"]


# --- own texts ---


def test_texts_are_normalised_and_blank_ones_null():
    row = texts({"title": "  red\u00a0 shoe ", "description": " \u200b "})
    assert (row["title"], row["description"]) == ("red shoe", None)


@pytest.mark.parametrize(
    ("title", "description", "expected"),
    [
        ("Shop", "Red shoes", "Shop. Red shoes"),
        ("Red shoes", "red shoes for sale", "red shoes for sale"),
        ("Red shoes", None, "Red shoes"),
        (None, None, None),
    ],
)
def test_link_texts_are_joined_without_repeats(title, description, expected):
    assert texts({"link_title": title, "link_description": description})["link_text"] == expected


def test_a_pin_without_any_text_stays():
    """A pin that vanishes here could never be found again, not even by its picture."""
    row = texts({})
    assert {name for name, value in row.items() if value is not None} == {"pin_id", "locale"}


def test_pins_without_text_are_counted():
    table = build_pin_texts(pins({}, {"pin_id": "p2", "title": "x"}), boards(), log(), set(), EnrichConfig())
    assert num_without_text(table) == 1


def test_no_pins_give_an_empty_table_of_the_schema():
    table = build_pin_texts(pins(), boards(), log(), set(), EnrichConfig())
    assert (table.num_rows, table.schema) == (0, PIN_TEXTS)


def test_a_missing_column_is_named():
    with pytest.raises(UserError, match=r"enrich: .*title"):
        build_pin_texts(pins({}).drop_columns(["title"]), boards(), log(), set(), EnrichConfig())


# --- boards ---


def test_board_titles_come_by_saves_then_by_title():
    assert texts(saves=boards("b", "a", "c", "c"), top_boards=2)["board_titles"] == ["c", "a"]


def test_spellings_of_a_board_title_are_one():
    assert texts(saves=boards("Shoes", " shoes", "Shoes", "Bags", "Bags"))["board_titles"] == ["Shoes", "Bags"]


def test_boards_without_a_title_say_nothing():
    assert texts(saves=boards(None, " "))["board_titles"] is None


def test_a_new_save_on_a_popular_board_changes_nothing():
    """Else every save of the day would send its pin to be embedded again."""
    popular = ("shoes",) * 5 + ("bags",) * 3
    assert texts(saves=boards(*popular)) == texts(saves=boards(*popular, "Shoes"))


def test_a_first_save_on_a_rare_board_changes_nothing():
    saves = ("shoes",) * 5 + ("bags",) * 3
    assert texts(saves=boards(*saves), top_boards=2) == texts(saves=boards(*saves, "attic"), top_boards=2)


def test_saves_of_other_pins_do_not_count():
    saves = pa.concat_tables([boards("a"), boards("b", "b", "b", pin_id="p2")])
    assert texts(saves=saves)["board_titles"] == ["a"]


# --- engaged queries ---


def test_engaged_queries_come_by_weight():
    assert engaged(("clicked", "click", 0), ("saved", "save", 0), ("held", "long_click", 0)) == [
        "saved",
        "held",
        "clicked",
    ]


def test_impressions_and_hides_are_no_engagement():
    assert engaged(("seen", "impression", 0), ("hidden", "hide", 0)) is None


def test_a_query_below_the_minimum_support_is_left_out():
    assert engaged(("once", "save", 0), ("twice", "click", 0), ("twice", "click", 0), min_clients=2) == ["twice"]


def test_old_engagement_weighs_less():
    """Two clicks two half-lives ago weigh half a click."""
    events = [("old", "click", 0), ("old", "click", 0), ("new", "click", 20)]
    assert engaged(*events, half_life_days=10) == ["new", "old"]


def test_decay_counts_from_the_log_and_not_from_today():
    early, late = [("a", "click", 0), ("b", "save", 1)], [("a", "click", 4000), ("b", "save", 4001)]
    assert engaged(*early) == engaged(*late)


def test_engagement_older_than_numbers_can_hold_still_counts():
    assert engaged(("old", "click", -30000), ("new", "click", 0), half_life_days=0.5) == ["new", "old"]


def test_spellings_of_a_query_are_one():
    assert engaged(("Red  Shoe", "click", 0), ("red shoe", "click", 0), min_clients=2) == ["red shoe"]


def test_equal_weights_are_ordered_by_query():
    assert engaged(("b", "click", 0), ("a", "click", 0)) == ["a", "b"]


def test_only_the_strongest_queries_are_kept():
    assert engaged(("a", "click", 0), ("b", "save", 0), ("c", "long_click", 0), top_queries=2) == ["b", "c"]


def test_a_click_on_a_top_query_changes_nothing():
    events = [("top", "save", 0), ("top", "save", 3), ("low", "click", 1)]
    assert engaged(*events) == engaged(*events, ("top", "click", 50))


def test_the_order_of_the_log_changes_nothing():
    table = log(*[(f"q{i % 7}", "click", i * 0.37) for i in range(50)])
    shuffled = table.take([(i * 17) % 50 for i in range(50)])
    cfg = EnrichConfig(half_life_days=3)
    assert top_engaged_queries(table, set(), cfg) == top_engaged_queries(shuffled, set(), cfg)


@pytest.mark.parametrize("spelling", ["smart watch", "Smart  Watch", "smartwatch", "smart watches"])
def test_a_query_under_evaluation_never_leaks_in(spelling):
    """With it in the pin's text, the models would be scored on what they were told."""
    assert engaged((spelling, "save", 0), ("watch", "click", 0), excluded=["smart watch"]) == ["watch"]


def test_queries_of_a_later_evaluation_can_be_dropped():
    table = build_pin_texts(pins({}), boards(), log(("shoe", "save", 0), ("boot", "click", 0)), set(), EnrichConfig(min_clients=1))  # fmt: skip
    assert drop_engaged_queries(table, ["Shoes"])["engaged_queries"].to_pylist() == [["boot"]]


def test_dropping_all_queries_leaves_null():
    table = build_pin_texts(pins({}), boards(), log(("shoe", "save", 0)), set(), EnrichConfig(min_clients=1))
    assert drop_engaged_queries(table, ["shoe"])["engaged_queries"].to_pylist() == [None]
