"""Texts read where they are embedded: the same as those that were keyed, or an error, never another pin's."""

import pickle

import pyarrow as pa
import pytest

from ray_app.base.config import PinTextConfig
from ray_app.base.errors import UserError
from ray_app.base.schemas import PIN_TEXTS
from ray_app.base.storage import Storage
from ray_app.base.text import render_pin_texts
from ray_app.cluster import text_files
from ray_app.cluster.embedding import wanted_texts
from ray_app.cluster.text_files import PinTextFiles
from ray_app.tables.manifest import Output, hash_files

CFG = PinTextConfig(fields=["title", "board_titles"])
TITLES = ["cup", None, "a long title of a cup", "shoe", "mug", "cup", "a hat", "blue shoe", "red"]


@pytest.fixture
def store(tmp_path):
    return Storage(str(tmp_path))


def table_of(titles, first=0):
    rows = [
        {"pin_id": f"p{i}", "title": title, "board_titles": ["b"] if i % 2 and title else None}
        for i, title in enumerate(titles, first)
    ]
    return pa.Table.from_pylist(rows, schema=PIN_TEXTS)


def written(store, titles, rows_per_file):
    files = {}
    for start in range(0, len(titles), rows_per_file):
        file = store.write_table(f"t/part-{start:05d}", table_of(titles[start : start + rows_per_file], start))
        files[file.path] = file.sha256
    return Output(name="pin_texts", path="t", files=[*files], rows=len(titles), content_hash=hash_files("t", files))


@pytest.mark.parametrize("rows_per_file", [1, 2, 4, 100])
def test_keys_and_texts_are_those_of_the_whole_table(store, monkeypatch, rows_per_file):
    monkeypatch.setattr(text_files, "_ROWS", 3)
    files = PinTextFiles(store, written(store, TITLES, rows_per_file), CFG, "recipe")
    whole = table_of(TITLES)
    expected = wanted_texts("recipe", render_pin_texts(whole, CFG))
    wanted = files.keyed()
    keys = dict(zip(wanted["pin_id"].to_pylist(), wanted["content_key"].to_pylist(), strict=True))
    assert keys == dict(zip(whole["pin_id"].to_pylist(), expected["content_key"].to_pylist(), strict=True))
    text_of = dict(zip(*expected.to_pydict().values(), strict=True))
    elsewhere = pickle.loads(pickle.dumps(files))  # in an actor
    for start in range(0, wanted.num_rows, 4):
        block = elsewhere.with_texts(wanted.slice(start, 4))
        assert block["content_key"].to_pylist() == wanted["content_key"].slice(start, 4).to_pylist()
        assert block["text"].to_pylist() == [text_of[key] for key in block["content_key"].to_pylist()]
    assert len(elsewhere._reserved) <= 2


def test_long_texts_of_a_file_come_first(store):
    files = PinTextFiles(store, written(store, TITLES, 100), CFG, "recipe")
    lengths = [len(text) for text in files.with_texts(files.keyed())["text"].to_pylist()]
    assert lengths == sorted(lengths, reverse=True)


def test_an_empty_table_has_no_rows(store):
    file = store.write_table("t/part", PIN_TEXTS.empty_table())
    hashed = hash_files("t", {file.path: file.sha256})
    output = Output(name="pin_texts", path="t", files=[file.path], rows=0, content_hash=hashed)
    assert PinTextFiles(store, output, CFG, "recipe").keyed().num_rows == 0


def test_a_file_that_changes_between_keying_and_embedding_is_refused(store):
    output = written(store, TITLES, 4)
    files = PinTextFiles(store, output, CFG, "recipe")
    wanted = files.keyed()
    store.write_table(output.files[0], table_of([*TITLES[:3], "another"]))
    with pytest.raises(UserError, match="changed while it was read"):
        files.with_texts(wanted)
