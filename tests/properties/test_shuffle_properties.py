"""Rows cut by key: none lost, none doubled, and all of a key in one part, whichever file they came from."""

from itertools import chain

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ray_app.cluster.shuffle import shuffle
from ray_app.tables.partitions import num_partitions, partition_of, partition_rows

FILES = st.lists(st.lists(st.text(max_size=3), max_size=20), min_size=1, max_size=4)


@given(FILES, st.integers(1, 7))
def test_rows_of_a_key_meet_and_none_is_lost(files, parts):
    rows = [[f"{i}-{j}" for j in range(len(keys))] for i, keys in enumerate(files)]
    schema = pa.schema({"key": pa.string(), "row": pa.string()})
    tables = [pa.table([keys, own], schema=schema) for keys, own in zip(files, rows, strict=True)]
    cuts = [partition_rows(table, partition_of(table["key"].to_pylist(), parts), parts) for table in tables]
    joined = [pa.concat_tables([c[i] for c in cuts]) for i in range(parts)]
    assert sorted(row for part in joined for row in part["row"].to_pylist()) == sorted(chain(*rows))
    keys = [set(part["key"].to_pylist()) for part in joined]
    assert sum(map(len, keys)) == len(set().union(*keys))
    for part in joined:  # in the order of files, then of their rows
        order = [tuple(map(int, row.split("-"))) for row in part["row"].to_pylist()]
        assert order == sorted(order)


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_parts_are_enough_and_not_more(num_bytes, size):
    parts = num_partitions(num_bytes, size)
    assert parts >= 1 and parts * size >= num_bytes and (parts == 1 or (parts - 1) * size < num_bytes)


def test_one_part_needs_no_cluster_and_no_copy():
    table = pa.table({"key": ["a", "b"]})
    ((number, tables, shared),) = shuffle(
        [table],
        lambda item: partition_rows(item, partition_of(item["key"].to_pylist(), 1), 1),
        lambda *args: args,
        1,
        "s",
    )
    assert (number, shared) == (0, "s") and tables[0] is table
