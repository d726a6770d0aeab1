"""Releases: a reader sees the old one or the new one, whole, and never another student's."""

import pyarrow as pa
import pytest

from ray_app.errors import UserError
from ray_app.ledger.ledger import Ledger
from ray_app.ledger.release import (
    CURRENT,
    collect_garbage,
    current_release,
    list_releases,
    open_release,
    publish_release,
    referenced_keys,
)
from ray_app.schemas import embedding_results
from ray_app.storage import Storage


@pytest.fixture
def store(tmp_path):
    return Storage(str(tmp_path))


@pytest.fixture
def ledger(store):
    """Key "kN" has the vector [N, 1]; "bad" is an error."""
    ledger = Ledger(store, "pin_embeddings", "r" * 16, embedding_results(2))
    keys = [f"k{n}" for n in range(5)]
    vectors = [[float(n), 1.0] for n in range(5)]
    ledger.commit(
        pa.table({"content_key": [*keys, "bad"], "embedding": [*vectors, None], "error": [None] * 5 + ["no text"]})
    )
    return ledger


def pins(**key_by_pin):
    return pa.table({"pin_id": list(key_by_pin), "content_key": list(key_by_pin.values())})


def publish(store, ledger, student="s1", **key_by_pin):
    return publish_release(store, pins(**key_by_pin), ledger, 2, student, {"note": "x"})


def message(act):
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_pin_gets_its_own_vector(store, ledger):
    table = open_release(store, publish(store, ledger, c="k3", a="k1", b="k1"))
    assert table.to_pylist() == [
        {"pin_id": "a", "content_key": "k1", "embedding": [1.0, 1.0]},
        {"pin_id": "b", "content_key": "k1", "embedding": [1.0, 1.0]},
        {"pin_id": "c", "content_key": "k3", "embedding": [3.0, 1.0]},
    ]


def test_failed_pins_are_left_out_and_counted(store, ledger):
    release = publish(store, ledger, a="k1", b="bad")
    assert (release.num_pins, release.num_missing) == (1, 1)


def test_nothing_is_current_before_the_first_release(store):
    assert current_release(store) is None


def test_publishing_moves_current(store, ledger):
    publish(store, ledger, a="k1")
    second = publish(store, ledger, a="k2")
    assert current_release(store) == second


def test_publishing_the_same_again_writes_nothing(store, ledger, monkeypatch):
    first = publish(store, ledger, a="k1", b="k2")
    monkeypatch.setattr(Storage, "write_bytes", lambda self, path, data: pytest.fail(f"wrote {path}"))
    assert publish(store, ledger, b="k2", a="k1") == first


def test_publishing_an_older_content_moves_current_back(store, ledger):
    first = publish(store, ledger, a="k1")
    publish(store, ledger, a="k2")
    publish(store, ledger, a="k1")
    assert current_release(store) == first


def test_another_student_is_another_release(store, ledger):
    assert publish(store, ledger, "s1", a="k1").id != publish(store, ledger, "s2", a="k1").id


@pytest.mark.parametrize("fails_at", ["part-00000.parquet", "release.json", CURRENT])
def test_an_interrupted_publish_leaves_the_old_release(store, ledger, monkeypatch, fails_at):
    old = publish(store, ledger, a="k1")
    write = Storage.write_bytes

    def failing(self, path, data):
        if path.endswith(fails_at):
            raise KeyboardInterrupt
        return write(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_bytes", failing)
        with pytest.raises(KeyboardInterrupt):
            publish(store, ledger, a="k2", b="k3")
    assert current_release(store) == old
    assert open_release(store, old)["pin_id"].to_pylist() == ["a"]
    assert publish(store, ledger, a="k2", b="k3") == current_release(store)


def test_a_damaged_release_is_refused(store, ledger):
    release = publish(store, ledger, a="k1")
    path = next(iter(release.files))
    data = bytearray(store.read_bytes(path))
    data[len(data) // 2] ^= 1
    store.write_bytes(path, bytes(data))
    assert "is damaged" in message(lambda: open_release(store, release))


@pytest.mark.parametrize("damage", ["tear", "delete"])
def test_publishing_again_mends_a_damaged_release(store, ledger, damage):
    path = next(iter(publish(store, ledger, a="k1").files))
    store.write_bytes(path, b"torn") if damage == "tear" else store.delete(path)
    assert open_release(store, publish(store, ledger, a="k1")).num_rows == 1


def test_another_students_release_is_refused(store, ledger):
    """Query and pin vectors of two students give plausible nonsense."""
    release = publish(store, ledger, "s1", a="k1")
    assert "made by student s1, not s2" in message(lambda: open_release(store, release, student_id="s2"))


@pytest.mark.parametrize(("field", "value", "what"), [("dim", 3, "not 3 float32"), ("num_pins", 7, "says 7")])
def test_a_release_that_is_not_what_it_says_is_refused(store, ledger, field, value, what):
    release = publish(store, ledger, a="k1")
    raw = store.read_json(f"{release.folder}/release.json")
    store.write_json(f"{release.folder}/release.json", raw | {field: value})
    assert what in message(lambda: open_release(store, current_release(store)))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_not_published(store, ledger, number):
    """One NaN sorts a pin anywhere, in every result list."""
    ledger.commit(pa.table({"content_key": ["odd"], "embedding": [[number, 1.0]], "error": [None]}))
    assert "NaN or infinity" in message(lambda: publish(store, ledger, a="odd", b="k1"))


def test_a_release_without_pins_is_not_published(store, ledger):
    assert "nothing to publish" in message(lambda: publish(store, ledger, a="bad"))
    assert current_release(store) is None


def test_a_pin_that_was_never_embedded_is_an_error(store, ledger):
    """Left out, it would vanish from search without a word."""
    assert "run embed before publishing" in message(lambda: publish(store, ledger, a="k1", b="unknown"))


def test_repeated_pins_are_refused(store, ledger):
    with pytest.raises(ValueError, match="unique"):
        publish_release(store, pa.table({"pin_id": ["a", "a"], "content_key": ["k1", "k2"]}), ledger, 2, "s1")


def test_current_naming_a_release_that_is_gone_is_one_line(store, ledger):
    store.delete(publish(store, ledger, a="k1").folder)
    assert "which is not there" in message(lambda: current_release(store))


# --- garbage ---


def test_garbage_collection_keeps_the_newest(store, ledger):
    ids = [publish(store, ledger, a=f"k{n}").id for n in range(4)]
    assert sorted(collect_garbage(store, keep=2)) == sorted(ids[:2])
    assert [release.id for release in list_releases(store)] == ids[2:]


def test_garbage_collection_never_drops_the_current_one(store, ledger):
    first = publish(store, ledger, a="k0")
    for n in (1, 2, 3):
        publish(store, ledger, a=f"k{n}")
    publish(store, ledger, a="k0")
    collect_garbage(store, keep=0)
    assert list_releases(store) == [first]
    assert current_release(store) == first


def test_a_half_written_release_is_not_listed_and_is_dropped(store, ledger):
    publish(store, ledger, a="k1")
    store.write_bytes("releases/half/part-00000.parquet", b"x")
    assert len(list_releases(store)) == 1
    assert collect_garbage(store, keep=5) == ["half"]
    assert not store.exists("releases/half")


def test_collecting_a_ledger_after_its_releases_keeps_what_they_serve(store, ledger):
    publish(store, ledger, a="k1", b="k2")
    publish(store, ledger, a="k2", b="k3")
    collect_garbage(store, keep=1)
    ledger.collect_garbage(referenced_keys(store))
    assert sorted(ledger.present_keys().to_pylist()) == ["k2", "k3"]
