"""Content keys: two contents with one key means that one of them gets the other's result, for good."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.base.content_key import content_key, content_keys, recipe_id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        ((None,), ("",)),
        ((["a", "b"],), ("a, b",)),
        ((["a", "b"],), ("a", "b")),
        ((["ab"],), (["a", "b"],)),
        (([],), (None,)),
        (([["a"], "b"],), ([["a", "b"]],)),
        (("1",), (1,)),
        ((1,), (1.0,)),
        (("a",), (b"a",)),
        (("a",), ("a", None)),
        (("é",), ("e\u0301",)),  # normalising is the recipe's business
        ((bytes([0, 0, 0]),), (bytes([0, 0, 1]),)),  # one changed pixel
    ],
)
def test_different_contents_have_different_keys(one, other):
    assert content_key("r", *one) != content_key("r", *other)


def test_a_changed_revision_changes_the_key():
    """Else a new model's results would be taken from the old one's."""
    recipes = [recipe_id(model="m", revision=revision) for revision in ("1", "2")]
    assert content_key(recipes[0], "text") != content_key(recipes[1], "text")


def test_keys_stay_what_they_are():
    """A changed hash function would recompute every result that anyone has paid for: bump versions knowingly."""
    key = content_key("r", "text", None, ["a", "b"], 1, 2.5, b"x")
    assert key == "e7919c45adefec919ba8395eaaf6e661"


def test_a_numpy_float_has_the_key_of_its_value():
    """NumPy 2 writes it as np.float64(0.1): the same content would be computed twice."""
    assert content_key("r", np.float64(0.1)) == content_key("r", 0.1)


@pytest.mark.parametrize("part", [{"a": 1}, {"a"}, np.zeros(3), np.int64(1), pa.scalar("a")])
def test_parts_without_one_spelling_are_refused(part):
    """A dict would be hashed by its keys alone."""
    with pytest.raises(TypeError, match=type(part).__name__):
        content_key("r", part)


def test_arrow_columns_give_the_keys_of_their_values():
    columns = [pa.array(["a", None]), pa.chunked_array([[["x"], []]])]
    assert content_keys("r", *columns).to_pylist() == [content_key("r", "a", ["x"]), content_key("r", None, [])]


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match="longer"):
        content_keys("r", ["a"], ["a", "b"])
