"""What validation lets through trains the models; what it drops without a trace nobody can fix."""

import base64
import math

import pyarrow as pa
import pytest

from ray_app.base.config import IngestLimits
from ray_app.base.schemas import HUMAN_LABELS, QUARANTINE
from ray_app.sources.rows import RawBatch, rows_to_columns
from ray_app.sources.validate import PinIds, check_batch, settle, table_rules

LIMITS = IngestLimits(max_id_chars=10, max_query_chars=20, max_text_chars=30)
LABEL = {"query": "red shoe", "locale": "en-US", "pin_id": "p1", "rater_id": "r1", "grade": 5}
EVENT = {"event_id": "e1", "timestamp": 1717527761998, "query": "shoe", "locale": "en-US", "pin_id": "p1", "position": 1, "action": "click"}  # fmt: skip


def batch(rows, source="a.csv", start=0):
    names = list(dict.fromkeys(name for row in rows for name in row))
    return RawBatch(source=source, rows=range(start, start + len(rows)), columns=rows_to_columns(rows, names))


def validate(table, rows, pin_ids=None, **rules):
    made = table_rules(table, LIMITS, **rules)
    ids = None if pin_ids is None else PinIds.of(pa.array(pin_ids, pa.string()))
    return settle([check_batch(batch(rows), made)], made, ids)


def code(table, row, **options):
    """Reason code of a single row; None: it is valid."""
    valid, quarantine = validate(table, [row], **options)
    assert valid.num_rows + quarantine.num_rows == 1
    return quarantine["reason"][0].as_py().partition(":")[0] if quarantine.num_rows else None


@pytest.mark.parametrize(
    ("table", "row", "reason"),
    [
        ("pins", {"pin_id": "p1", "title": "shoe"}, None),
        ("pins", {"pin_id": None, "title": "shoe"}, "null_key"),
        ("pins", {"pin_id": "  ", "title": "shoe"}, "null_key"),
        ("pins", {"pin_id": math.nan}, "null_key"),
        ("pins", {"pin_id": 3920564}, None),
        ("pins", {"pin_id": 1.5}, "wrong_type"),
        ("pins", {"pin_id": True}, "wrong_type"),
        ("pins", {"pin_id": "p1", "title": {"en": "shoe"}}, "wrong_type"),
        ("pins", {"pin_id": "p1", "title": "x" * 31}, "too_long"),
        ("pins", {"pin_id": "p" * 11}, "too_long"),
        ("pins", {"pin_id": "p1", "title": "caf\udce9"}, "invalid_utf8"),
        ("pins", {"pin_id": "p\udc80"}, "invalid_utf8"),
        ("pins", {"pin_id": "p1", "created_at": "2009-12-10T00:00:00Z"}, None),
        ("pins", {"pin_id": "p1", "created_at": "yesterday"}, "bad_timestamp"),
        ("pins", {"pin_id": "p1", "created_at": 10**30}, "bad_timestamp"),
        ("pins", {"pin_id": "p1", "created_at": math.inf}, "bad_timestamp"),
        ("pins", {"pin_id": "p1", "created_at": [1]}, "bad_timestamp"),
        (
            "pins",
            {"pin_id": "p1", "locale": "english"},
            "bad_locale",
        ),
        ("pins", {"pin_id": None, "title": "x" * 99}, "null_key"),  # two faults: one row of quarantine
        ("pins", {"pin_id": "p1", "image_bytes": "not base64!"}, "wrong_type"),
        ("pins", {"pin_id": "p1", "image_bytes": 7}, "wrong_type"),
        ("pins", {"pin_id": "p1", "image_bytes": b"x" * 30_000_000}, "too_long"),
        ("pins", {"pin_id": "p1", "locale": 7}, "wrong_type"),
        ("search_log", {**EVENT, "locale": "en-USA"}, "bad_locale"),
        ("human_labels", {**LABEL, "locale": "US, en"}, "bad_locale"),
        ("human_labels", LABEL, None),
        ("human_labels", {**LABEL, "grade": 0}, "grade_off_scale"),
        ("human_labels", {**LABEL, "grade": 6}, "grade_off_scale"),
        ("human_labels", {**LABEL, "grade": "4"}, None),
        ("human_labels", {**LABEL, "grade": 4.0}, None),
        ("human_labels", {**LABEL, "grade": 4.5}, "wrong_type"),
        ("human_labels", {**LABEL, "grade": "good"}, "wrong_type"),
        ("human_labels", {**LABEL, "grade": "9" * 5000}, "wrong_type"),
        ("human_labels", {**LABEL, "grade": None}, "null_key"),
        ("human_labels", {**LABEL, "query": "q" * 10_000}, "too_long"),
        ("human_labels", {**LABEL, "query": ""}, "null_key"),
        ("search_log", EVENT, None),
        ("search_log", {**EVENT, "action": "teleport"}, "unknown_action"),
        ("search_log", {**EVENT, "action": ["click"]}, "unknown_action"),
        ("search_log", {**EVENT, "action": None}, "null_key"),
        ("search_log", {**EVENT, "timestamp": None}, "null_key"),
        ("search_log", {**EVENT, "position": 0}, "wrong_type"),
        ("search_log", {**EVENT, "position": 2**40}, "wrong_type"),
        ("search_log", {**EVENT, "pin_id": None}, "null_key"),
        ("search_log", {**EVENT, "pin_id": None, "position": None, "action": "impression"}, None),
    ],
)
def test_a_row_is_kept_or_refused_for_its_reason(table, row, reason):
    assert code(table, row) == reason


@pytest.mark.parametrize("said", ["en-US", "en_us", "EN-US", " en_US "])
def test_a_locale_has_one_spelling_in_every_table(said):
    """Else the pin of `en_US` is of another language than the query of `en-US`."""
    for table, row in (("pins", {"pin_id": "p1"}), ("search_log", EVENT), ("human_labels", LABEL)):
        assert validate(table, [{**row, "locale": said}])[0]["locale"].to_pylist() == ["en-US"]


@pytest.mark.parametrize("said", [None, "", " ", math.nan, "und"])
def test_an_unknown_locale_is_a_value_of_its_own(said):
    """Not en-US, and no reason to lose the row: null of a pin, `und` of a query."""
    assert validate("pins", [{"pin_id": "p1", "locale": said}])[0]["locale"].to_pylist() == [None]
    for table, row in (("search_log", EVENT), ("human_labels", LABEL)):
        assert validate(table, [{**row, "locale": said}])[0]["locale"].to_pylist() == ["und"]


def test_the_reason_of_a_bad_locale_names_the_field_and_what_it_said():
    reason = validate("pins", [{"pin_id": "p1", "locale": "english"}])[1]["reason"][0].as_py()
    assert reason.startswith("bad_locale: locale 'english' is not a BCP 47 language tag such as en-US")


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        ([1.0, 2.0], None),
        (None, None),
        ([1.0], "bad_vector"),
        ([1.0, math.nan], "bad_vector"),
        ([1.0, 1e300], "bad_vector"),
        (["a", "b"], "bad_vector"),
        ("ab", "bad_vector"),
    ],
)
def test_a_vector_has_its_dimension_and_finite_numbers(vector, reason):
    row = {"pin_id": "p1", "visual": vector}
    assert code("pins", row, external_embeddings={"visual": 2}) == reason


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e300])
def test_arrow_vectors_are_checked_like_lists(bad):
    rules = table_rules("pins", LIMITS, external_embeddings={"visual": 2})
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, bad], pa.float64()), 2)
    raw = RawBatch(source="a", rows=range(2), columns={"pin_id": ["p1", "p2"], "visual": vectors})
    valid, _ = settle([check_batch(raw, rules)], rules)
    assert valid["pin_id"].to_pylist() == ["p1"]


def test_absent_vectors_are_null_and_not_zero():
    valid, _ = validate("pins", [{"pin_id": "p1"}], external_embeddings={"visual": 2})
    assert valid["visual"].to_pylist() == [None]


def test_blank_texts_become_null_and_others_are_kept_as_they_are():
    valid, _ = validate(
        "pins", [{"pin_id": "p1", "title": " \t", "description": "", "link_title": " Für\u00a0 dich\n"}]
    )
    found = valid.select(["title", "description", "link_title"]).to_pylist()
    assert found == [{"title": None, "description": None, "link_title": " Für\u00a0 dich\n"}]


@pytest.mark.parametrize("value", [1717527761, 1717527761000, "1717527761", "2024-06-04T19:02:41", "2024-06-04T21:02:41+02:00"])  # fmt: skip
def test_all_spellings_of_a_time_are_the_same_time(value):
    valid, _ = validate("search_log", [{**EVENT, "timestamp": value}])
    assert valid["timestamp"].cast(pa.int64()).to_pylist() == [1717527761000]


def test_grades_are_mapped():
    labels = [{**LABEL, "rater_id": str(grade), "grade": grade} for grade in (0, 1, 2, 3)]
    valid, _ = validate("human_labels", labels, grade_map={0: 1, 1: 3, 2: 4, 3: 5})
    assert valid["grade"].to_pylist() == [1, 3, 4, 5]


def test_a_grade_outside_the_map_is_refused_even_if_on_our_scale():
    assert code("human_labels", {**LABEL, "grade": 4}, grade_map={0: 1, 3: 5}) == "grade_off_scale"


@pytest.mark.parametrize("table", ["human_labels", "search_log", "boards"])
def test_a_row_about_an_unknown_pin_is_refused(table):
    row = {"human_labels": LABEL, "search_log": EVENT, "boards": {"board_id": "b", "pin_id": "p1"}}[table]
    assert code(table, row, pin_ids=["p2"]) == "unknown_pin"


def test_of_repeated_keys_the_first_stays():
    valid, quarantine = validate("pins", [{"pin_id": "p1", "title": "a"}, {"pin_id": "p1", "title": "b"}])
    assert (valid["title"].to_pylist(), quarantine["row"].to_pylist()) == (["a"], [1])


def test_a_rater_counts_once_however_the_locale_is_spelled():
    valid, quarantine = validate("human_labels", [LABEL, {**LABEL, "locale": "en_US", "grade": 1}])
    assert (valid["grade"].to_pylist(), quarantine["reason"][0].as_py()[:13]) == ([5], "duplicate_key")


def test_a_refused_row_does_not_take_the_key():
    """The good row must not be lost because a broken one with its id came first."""
    valid, _ = validate("pins", [{"pin_id": "p1", "title": 5.5}, {"pin_id": "p1", "title": "good"}])
    assert valid["title"].to_pylist() == ["good"]


def test_duplicates_are_found_across_files_in_any_order_of_arrival():
    rules = table_rules("pins", LIMITS)
    first = check_batch(batch([{"pin_id": "p1", "title": "from a"}, {"pin_id": "p0"}], "a"), rules)
    second = check_batch(batch([{"pin_id": "p1", "title": "from b"}], "b"), rules)
    results = [settle(order, rules) for order in ([first, second], [second, first])]
    assert [valid["title"].to_pylist() for valid, _ in results] == [[None, "from a"]] * 2


def test_valid_rows_come_in_the_order_of_their_key():
    valid, _ = validate("pins", [{"pin_id": "b"}, {"pin_id": "a"}, {"pin_id": "c"}])
    assert valid["pin_id"].to_pylist() == ["a", "b", "c"]


def test_empty_tables_keep_their_schema():
    valid, quarantine = validate("human_labels", [])
    assert (valid.schema, quarantine.schema) == (HUMAN_LABELS, QUARANTINE)


def test_quarantine_shows_the_row_whatever_is_in_it():
    row = {"pin_id": "p\udc80", "title": "x" * 10_000, "image": b"\xff\xfe", "visual": [0.1] * 1000}
    _, quarantine = validate("pins", [row])
    content = quarantine["content"][0].as_py()
    assert len(content) <= 2000 and "p\\udc80" in content


PICTURE = b"\x89PNG picture"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (PICTURE, PICTURE),
        (base64.b64encode(PICTURE).decode(), PICTURE),  # what JSONL and CSV can hold
        ("data:image/png;base64," + base64.b64encode(PICTURE).decode(), PICTURE),
        (b"", None),
        ("", None),
        (None, None),
    ],
)
def test_a_picture_is_bytes_or_base64(raw, clean):
    valid, quarantine = validate("pins", [{"pin_id": "a", "image_bytes": raw}])
    assert (valid["image_bytes"].to_pylist(), quarantine.num_rows) == ([clean], 0)
