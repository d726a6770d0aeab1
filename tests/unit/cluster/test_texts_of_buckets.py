"""Texts of a bucket's pins: keyed in the bucket's range, the same when they are read again, or an error."""

import pickle

import pyarrow as pa
import pytest

from ray_app.base.config import PinTextConfig
from ray_app.base.content_key import content_key
from ray_app.base.errors import UserError
from ray_app.base.hashing import bucket_of, buckets_of_hashes
from ray_app.base.schemas import PIN_TEXTS
from ray_app.base.storage import Storage
from ray_app.base.text import render_pin_texts
from ray_app.cluster.pin_texts import PinTexts
from ray_app.tables.buckets import bucketed_output, split_rows, write_bucket
from ray_app.tables.keys import key_numbers

CFG = PinTextConfig(fields=["title", "board_titles"])
TITLE = PinTextConfig(fields=["title"])
TITLES = ["cup", None, "a long title of a cup", "shoe", "mug", "cup", "a hat", "blue shoe", "red"]


@pytest.fixture
def store(tmp_path):
    return Storage(str(tmp_path))


def table_of(titles):
    rows = [
        {"pin_id": f"p{i}", "title": title, "board_titles": ["b"] if i % 2 and title else None}
        for i, title in enumerate(titles)
    ]
    return pa.Table.from_pylist(rows, schema=PIN_TEXTS)


def written(store, table, num_buckets):
    parts = split_rows(table, bucket_of(table["pin_id"].to_pylist(), num_buckets), num_buckets)
    return bucketed_output("pin_texts", "t", [write_bucket(store, "t", i, part, 2) for i, part in enumerate(parts)])


@pytest.mark.parametrize("num_buckets", [1, 2, 8])
def test_keys_and_texts_are_those_of_the_whole_table(store, num_buckets):
    whole = table_of(TITLES)
    texts = PinTexts(store, written(store, whole, num_buckets), (CFG, TITLE), "recipe")
    expected = {
        (pin_id, number): text
        for number, config in enumerate((CFG, TITLE))
        for pin_id, text in zip(whole["pin_id"].to_pylist(), render_pin_texts(whole, config), strict=True)
    }
    found = {}
    for bucket in range(num_buckets):
        keyed = texts.wanted.keyed(bucket)
        elsewhere = pickle.loads(pickle.dumps(texts))  # in a task
        for start in range(0, keyed.num_rows, 4):
            rows = keyed.slice(start, 4)
            read = elsewhere.wanted.columns(bucket, rows)
            assert read["content_key"].equals(rows["content_key"])
            pairs = zip(rows["pin_id"].to_pylist(), rows["config"].to_pylist(), strict=True)
            found |= dict(zip(pairs, read["text"].to_pylist(), strict=True))
        numbers = key_numbers(keyed["content_key"])[:, 0]
        assert (buckets_of_hashes(numbers, num_buckets) == bucket).all(), "in the ledger's bucket of that number"
    assert found == expected


def test_keys_say_what_the_text_is_and_whose(store):
    texts = PinTexts(store, written(store, table_of(["cup", "cup"]), 1), (TITLE,), "recipe")
    one, two = texts.keyed(0)["content_key"].to_pylist()
    assert one != two and one[5:] == two[5:] == content_key("recipe", "cup")[5:]


def test_long_texts_come_first(store):
    wanted = PinTexts(store, written(store, table_of(TITLES), 1), (CFG,), "recipe").wanted
    lengths = [len(text) for text in wanted.columns(0, wanted.keyed(0))["text"].to_pylist()]
    assert lengths == sorted(lengths, reverse=True)


def test_an_empty_bucket_has_no_rows(store):
    texts = PinTexts(store, written(store, PIN_TEXTS.empty_table(), 2), (CFG,), "recipe")
    assert texts.keyed(1).num_rows == 0


def test_a_file_that_changes_between_keying_and_embedding_is_refused(store):
    output = written(store, table_of(TITLES), 1)
    texts = PinTexts(store, output, (CFG,), "recipe")
    keyed = texts.keyed(0)
    other = written(store, table_of([*TITLES[:3], "another", *TITLES[4:]]), 1)
    with pytest.raises(UserError, match="was changed after it was written"):
        texts.with_texts(0, keyed)
    with pytest.raises(UserError, match="changed while it was read"):
        PinTexts(store, other, (CFG,), "recipe").with_texts(0, keyed)
