"""Two contents under one key would give a pin another pin's label, for ever."""

import string

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ray_app.base.content_key import content_key, content_keys, recipe_id

SCALARS = (
    st.text(max_size=5) | st.text("\ud800\udfffab", max_size=2) | st.binary(max_size=5) | st.booleans() | st.none()
    | st.integers(-300, 300) | st.integers() | st.floats()
)  # fmt: skip
PARTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple), max_leaves=6
)
ROWS = st.lists(PARTS, max_size=4)
TEXTS = st.text("ab:,\0", max_size=4)


def spelled(part):
    """A content with its types: what two contents must differ in to be two. A list and a tuple are one."""
    if isinstance(part, list | tuple):
        return ("list", *(spelled(inner) for inner in part))
    return (type(part).__name__, repr(part))


@given(ROWS, ROWS)
def test_equal_keys_mean_equal_contents(one, other):
    same = [spelled(part) for part in one] == [spelled(part) for part in other]
    assert (content_key("r", *one) == content_key("r", *other)) == same


@given(st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=4))
def test_texts_do_not_run_into_each_other(one, other):
    """Of few letters, so that concatenations do meet."""
    assert (content_key("r", *one) == content_key("r", *other)) == (one == other)


@given(ROWS, TEXTS, TEXTS)
def test_another_recipe_is_another_key(parts, one, other):
    assert (content_key(one, *parts) == content_key(other, *parts)) == (one == other)


@given(PARTS, st.integers(0, 5))
def test_one_more_level_is_another_content(part, depth):
    keys = []
    for _ in range(depth + 1):
        keys.append(content_key("r", part))
        part = [part]
    assert len(set(keys)) == len(keys)


@given(st.lists(st.tuples(st.text(max_size=3) | st.none(), st.integers(-9, 9) | st.none()), max_size=6))
def test_columns_are_keyed_row_by_row(rows):
    texts, numbers = [row[0] for row in rows], [row[1] for row in rows]
    wanted = [content_key("r", *row) for row in rows]
    assert content_keys("r", texts, numbers).to_pylist() == wanted
    assert content_keys("r", pa.array(texts, pa.string()), pa.array(numbers, pa.int64())).to_pylist() == wanted


NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=3)


@given(st.dictionaries(NAMES, SCALARS, max_size=4), st.randoms(use_true_random=False))
def test_a_recipe_is_its_names_and_values_whatever_their_order(parts, random):
    names = list(parts)
    random.shuffle(names)
    assert recipe_id(**{name: parts[name] for name in names}) == recipe_id(**parts)


@given(st.dictionaries(NAMES, TEXTS, max_size=3), st.dictionaries(NAMES, TEXTS, max_size=3))
def test_two_recipes_are_two(one, other):
    assert (recipe_id(**one) == recipe_id(**other)) == (one == other)
