"""Rows of anything: each ends in the table or in quarantine, and what is valid stays what it is."""

import json

from hypothesis import given
from hypothesis import strategies as st

from ray_app.base.config import IngestLimits
from ray_app.base.text import cut_text, normalize_query, normalize_text, query_group, tokenize
from ray_app.sources import rows as codes
from ray_app.sources.adapters.table import parse_json_object
from ray_app.sources.rows import MAX_CONTENT_CHARS, RawBatch
from ray_app.sources.sheets import defuse, restore
from ray_app.sources.validate import TABLES, check_batch, settle, table_rules

CODES = {value for name, value in vars(codes).items() if name.isupper() and isinstance(value, str)}
LIMITS = IngestLimits(max_id_chars=12, max_query_chars=15, max_text_chars=20, max_image_bytes=9)
TEXT = st.text(max_size=16) | st.text("\ud800\x00\x1b\n a", max_size=4)
ODD = (
    st.none() | st.booleans() | st.integers() | st.integers(-5, 5) | st.floats() | TEXT | st.binary(max_size=12)
    | st.datetimes() | st.dates() | st.lists(st.floats() | st.integers() | st.none(), max_size=3)
    | st.dictionaries(TEXT, st.none(), max_size=2) | st.just(10**400)
)  # fmt: skip
HONEST = st.sampled_from(["p1", "p2", "mug", "en-US", "click", "impression", "r1", 3, 5, "2024-01-01", 1717527761998, [0.5, 1.0]])  # fmt: skip


@st.composite
def batches(draw):
    table = draw(st.sampled_from(TABLES))
    rules = table_rules(table, LIMITS, None, {"style": 2} if table == "pins" else None)
    height = draw(st.integers(0, 6))
    values = st.lists(HONEST | ODD, min_size=height, max_size=height)
    columns = {name: draw(values) for name in rules.schema.names if draw(st.integers(0, 9))}
    return RawBatch(source="a", rows=list(range(height)), columns=columns), rules


@given(batches())
def test_no_row_is_lost_and_every_reason_has_a_code(case):
    batch, rules = case
    valid, refused = settle([check_batch(batch, rules)], rules)
    assert valid.num_rows + refused.num_rows == len(batch.rows)
    assert valid.schema.equals(rules.schema)
    valid.validate(full=True)
    assert all(reason.partition(":")[0] in CODES for reason in refused["reason"].to_pylist())
    for content in refused["content"].to_pylist():
        assert len(content) <= MAX_CONTENT_CHARS and content.isprintable()


@given(batches())
def test_valid_rows_are_valid_again_and_the_same(case):
    batch, rules = case
    valid, _ = settle([check_batch(batch, rules)], rules)
    again = RawBatch(source="b", rows=range(valid.num_rows), columns=valid.to_pydict())
    twice, refused = settle([check_batch(again, rules)], rules)
    assert refused.num_rows == 0 and twice.equals(valid)


@given(batches(), batches(), st.booleans())
def test_the_order_in_which_files_arrive_decides_nothing(one, other, swap):
    (first, rules), (batch, _) = one, other
    columns = {name: values for name, values in batch.columns.items() if name in rules.schema.names}
    second = RawBatch(source="b", rows=batch.rows, columns=columns)
    checked = [check_batch(first, rules), check_batch(second, rules)]
    found, wanted = settle(checked[::-1] if swap else checked, rules), settle(checked, rules)
    assert found[0].equals(wanted[0]) and found[1].equals(wanted[1])


@given(st.text(max_size=8) | st.text("'=+-@ \t\r\n＝a", max_size=5))
def test_no_cell_of_a_sheet_is_a_formula_and_every_text_comes_back(text):
    cell = defuse(text)
    assert not cell.lstrip().startswith(("=", "+", "-", "@")) and not cell.startswith(("\t", "\r", "\n"))
    assert restore(cell) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
)


@given(JSON, st.sampled_from(["utf-8", "utf-16", "latin-1"]), st.binary(max_size=3))
def test_a_line_is_an_object_or_a_reason(value, encoding, tail):
    line = json.dumps(value, ensure_ascii=False).encode(encoding, "replace") + tail
    found = parse_json_object(line)
    assert isinstance(found, dict) or (isinstance(found, str) and found.partition(":")[0] in CODES)
    if isinstance(value, dict) and encoding == "utf-8" and not tail:
        assert json.dumps(found) == json.dumps(value)


# --- texts, which every key and every model reads ---


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing_and_leaves_no_control_character(text):
    once = normalize_text(text)
    assert normalize_text(once) == once
    assert all(c.isprintable() or c in "\u200c\u200d" for c in once) and once == once.strip() and "  " not in once
    query = normalize_query(text)
    assert normalize_query(query) == query


@given(st.text(max_size=60), st.integers(1, 40))
def test_a_cut_text_is_a_head_of_it(text, max_chars):
    cut = cut_text(text, max_chars)
    assert len(cut) <= max_chars and text.startswith(cut)


@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_the_fast_way_for_ascii_gives_the_same_words(text):
    assert tokenize(text) == [word for word in tokenize(f"{text} é") if word != "é"]


@given(st.text(max_size=20))
def test_a_query_is_in_the_group_of_its_normal_form(text):
    assert query_group(normalize_query(text)) == query_group(text)


def test_the_codes_are_there():
    """Else every reason would lack one, or none."""
    assert {"null_key", "wrong_type", "corrupt_row"} <= CODES
