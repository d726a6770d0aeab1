"""Rows cut by key: none lost, none doubled, and all of a key in one part, whichever file they came from."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.base.hashing import bucket_of, buckets_of_hashes, hash_pin_ids
from ray_app.cluster.buckets import map_buckets, shuffle
from ray_app.tables.buckets import choose_num_buckets

IDS = st.lists(st.text(max_size=5), max_size=50)
POWERS = st.integers(0, 20).map(lambda bits: 2**bits)


@given(IDS, POWERS)
def test_a_bucket_is_cut_in_two_without_looking_at_another(ids, num_buckets):
    coarse, fine = bucket_of(ids, num_buckets), bucket_of(ids, 2 * num_buckets)
    assert (fine // 2 == coarse).all()
    assert ((0 <= coarse) & (coarse < num_buckets)).all()


@pytest.mark.parametrize("number", [0, 3, 6, -2])
def test_another_number_of_buckets_is_refused(number):
    with pytest.raises(ValueError, match="power of two"):
        buckets_of_hashes(hash_pin_ids(["a"]), number)


@given(st.integers(0, 10**13), st.integers(1, 10**9), st.none() | POWERS)
def test_buckets_are_small_enough_and_not_many_more_than_needed(num_bytes, size, before):
    number = choose_num_buckets(num_bytes, size, before)
    assert number & (number - 1) == 0 and number >= 1
    assert num_bytes / number <= 2 * size
    assert number == 1 or num_bytes / number > size / 4 - 1


def test_the_number_stays_while_a_catalogue_grows_a_little():
    assert choose_num_buckets(1000, 100) == 16
    assert choose_num_buckets(3100, 100, before=16) == 16
    assert choose_num_buckets(3300, 100, before=16) == 64
    assert choose_num_buckets(300, 100, before=16) == 4


def test_one_part_needs_no_cluster():
    schema = pa.schema([("row", pa.int64())])

    def split(item):
        return pa.table({"row": item}, schema), np.zeros(len(item), np.int64)

    assert shuffle([[1, 2], [3]], split, lambda number, rows: (number, rows["row"].to_pylist()), 1, schema) == [
        (0, [1, 2, 3])
    ]
    assert map_buckets(lambda number: number + 1, [4]) == [5] and map_buckets(lambda number: number, []) == []
