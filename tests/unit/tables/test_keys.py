"""Keys as numbers: a mix-up here would skip work that was never done, or do it twice."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.base.content_key import content_keys
from ray_app.tables.keys import KeySet, first_rows, key_numbers

KEYS = st.lists(
    st.one_of(st.sampled_from(["0" * 32, "f" * 32, "F" * 32, "é" * 16, "", "a"]), st.text(max_size=40)), max_size=30
)


def test_hex_digits_are_the_number_that_they_say():
    assert key_numbers(pa.array(["0" * 15 + "1" + "0" * 15 + "a", "f" * 32])).tolist() == [[1, 10], [2**64 - 1] * 2]


def test_a_key_has_one_number_whatever_stands_beside_it():
    keys = content_keys("r", list(range(50)))
    alone = np.concatenate([key_numbers(keys.slice(i, 1)) for i in range(50)])
    mixed = key_numbers(pa.concat_arrays([keys, pa.array(["odd", "e" * 31, "G" * 32])]))
    assert (key_numbers(keys) == alone).all() and (mixed[:50] == alone).all()


@given(KEYS, KEYS)
def test_a_set_holds_what_python_says_and_the_first_of_equal_keys_counts(present, wanted):
    held = KeySet(key_numbers(pa.chunked_array([pa.array(present, pa.string())])))
    assert len(held) == len(set(present))
    assert held.contains(key_numbers(pa.array(wanted, pa.string()))).tolist() == [key in present for key in wanted]
    assert first_rows(key_numbers(pa.array(wanted, pa.string()))).tolist() == sorted(
        wanted.index(k) for k in set(wanted)
    )


@pytest.mark.parametrize("low", [[1, 2, 3], [3, 2, 1]])
def test_keys_that_share_their_first_half_are_told_apart(low):
    held = KeySet(np.array([[7, n] for n in low], np.uint64))
    assert held.contains(np.array([[7, 1], [7, 3], [7, 4], [8, 1]], np.uint64)).tolist() == [True, True, False, False]
