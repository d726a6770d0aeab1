"""Releases: a reader sees the old one or the new one, whole, and never another student's."""

import pyarrow as pa
import pytest
from minimal import message

from ray_app.base.schemas import embedding_results
from ray_app.base.storage import Storage
from ray_app.tables.current import CURRENT, current_release, promote, read_current, rollback
from ray_app.tables.garbage import collect_releases, referenced_keys
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Output, hash_files
from ray_app.tables.publish import publish_release
from ray_app.tables.release import find_release, list_releases, open_release


@pytest.fixture
def ledger(store):
    """Key "kN" has the vector [N, 1]; "bad" is an error."""
    ledger = Ledger(store, "pin_embeddings", "r" * 16, embedding_results(2))
    keys = [f"k{n}" for n in range(5)]
    vectors = [[float(n), 1.0] for n in range(5)]
    errors = [None] * 5 + ["no text"]
    ledger.commit(pa.table({"content_key": [*keys, "bad"], "embedding": [*vectors, None], "error": errors}))
    return ledger


def pins(**key_by_pin):
    return pa.table({"pin_id": list(key_by_pin), "content_key": list(key_by_pin.values())})


def publish(store, ledger, student="5111111111111111", sources=None, table=None, **key_by_pin):
    table = pins(**key_by_pin) if table is None else table
    return publish_release(
        store, lambda _: table, ledger, 2, student, {"note": "x"}, sources=sources or {}, config={"seed": 1}
    )


def source(store, name, content, folder="1"):
    """An output with one file that says `content`."""
    path = f"tables/{name}/{folder}"
    file = store.write_bytes(f"{path}/part", content)
    content_hash = hash_files(path, {file.path: file.sha256})
    return Output(name=name, path=path, files=[file.path], rows=0, content_hash=content_hash)


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
    ids = {publish(store, ledger, student * 16, a="k1").id for student in "12"}
    assert len(ids) == 2


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


@pytest.mark.parametrize("damage", ["tear", "delete"])
def test_publishing_again_repairs_a_damaged_release(store, ledger, damage):
    path = next(iter(publish(store, ledger, a="k1").files))
    store.write_bytes(path, b"torn") if damage == "tear" else store.delete(path)
    assert open_release(store, publish(store, ledger, a="k1")).num_rows == 1


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
        publish(store, ledger, table=pa.table({"pin_id": ["a", "a"], "content_key": ["k1", "k2"]}))


def test_current_naming_a_release_that_is_gone_is_one_line(store, ledger):
    store.delete(publish(store, ledger, a="k1").folder)
    assert "which does not exist" in message(lambda: current_release(store))


# --- sources ---


def test_a_release_comes_back_with_its_sources_and_config(store, ledger):
    release = publish(store, ledger, sources={"pins": source(store, "pins", b"x")}, a="k1")
    read = current_release(store)
    assert read == release
    assert (read.sources["pins"].files, read.config) == (["tables/pins/1/part"], {"seed": 1})


def test_other_sources_with_the_same_vectors_are_another_release(store, ledger):
    """Else a new feature student would be served only from the next change of a pin on."""
    old = publish(
        store, ledger, sources={"feature_only_student": source(store, "feature_only_student", b"x", "1")}, a="k1"
    )
    new = publish(
        store, ledger, sources={"feature_only_student": source(store, "feature_only_student", b"y", "2")}, a="k1"
    )
    assert old.content_hash == new.content_hash
    assert current_release(store) == new
    assert find_release(store, old.id) == old


def test_sources_that_lie_elsewhere_are_the_same_release_and_named_anew_when_they_are_gone(store, ledger):
    old = publish(store, ledger, sources={"pins": source(store, "pins", b"x", "1")}, a="k1")
    elsewhere = {"pins": source(store, "pins", b"x", "2")}
    assert publish(store, ledger, sources=elsewhere, a="k1") == old
    store.delete("tables/pins/1")
    new = publish(store, ledger, sources=elsewhere, a="k1")
    assert (new.id, new.sources["pins"].path) == (old.id, "tables/pins/2")
    assert current_release(store) == new


def test_a_release_without_sources_is_of_another_version(store, ledger):
    """Such as those of before: they cannot be served, so they are made again."""
    release = publish(store, ledger, a="k1")
    raw = store.read_json(f"{release.folder}/release.json")
    del raw["sources"], raw["config"]
    store.write_json(f"{release.folder}/release.json", raw)
    assert list_releases(store) == []
    assert "another version of this code" in message(lambda: current_release(store))
    assert publish(store, ledger, a="k1").id == release.id
    assert len(list_releases(store)) == 1


def test_a_torn_release_json_is_left_out_of_the_list(store, ledger):
    old = publish(store, ledger, a="k1")
    new = publish(store, ledger, a="k2")
    store.write_bytes(f"{new.folder}/release.json", b'{"id": ')
    assert list_releases(store) == [old]
    assert "is not valid JSON" in message(lambda: current_release(store))
    assert rollback(store) == old
    assert current_release(store) == old


# --- promote and rollback ---


def test_current_names_the_release_before(store, ledger):
    first = publish(store, ledger, a="k1")
    assert read_current(store) == (first.id, None)
    second = publish(store, ledger, a="k2")
    assert read_current(store) == (second.id, first.id)


def test_rollback_serves_the_release_before_and_twice_is_where_it_started(store, ledger):
    first = publish(store, ledger, a="k1")
    second = publish(store, ledger, a="k2")
    assert rollback(store) == first
    assert read_current(store) == (first.id, second.id)
    rollback(store)
    assert read_current(store) == (second.id, first.id)


def test_any_release_can_be_promoted_by_the_beginning_of_its_id(store, ledger):
    first = publish(store, ledger, a="k1")
    publish(store, ledger, a="k2")
    third = publish(store, ledger, a="k3")
    assert promote(store, first.id[:10]) == first
    assert read_current(store) == (first.id, third.id)


@pytest.mark.parametrize("again", ["publish", "promote"])
def test_what_is_current_does_not_become_the_release_before(store, ledger, again):
    """Else a rollback would go from a release to itself."""
    first = publish(store, ledger, a="k1")
    second = publish(store, ledger, a="k2")
    publish(store, ledger, a="k2") if again == "publish" else promote(store, second.id)
    assert read_current(store) == (second.id, first.id)


@pytest.mark.parametrize("release_id", ["nope", ""])
def test_an_unknown_release_is_refused_with_those_that_are_there(store, ledger, release_id):
    release = publish(store, ledger, a="k1")
    assert f"there are: {release.id}" in message(lambda: promote(store, release_id))


def test_an_ambiguous_beginning_is_refused(store, ledger):
    releases = [publish(store, ledger, a=f"k{n % 5}", b=f"k{n // 5}") for n in range(17)]  # 17 ids, 16 first digits
    first = [release.id[0] for release in releases]
    twice = next(digit for digit in first if first.count(digit) > 1)
    assert "write more of it" in message(lambda: find_release(store, twice))


def test_a_damaged_release_is_not_promoted(store, ledger):
    first = publish(store, ledger, a="k1")
    second = publish(store, ledger, a="k2")
    store.write_bytes(next(iter(first.files)), b"torn")
    assert "is damaged" in message(lambda: promote(store, first.id))
    assert "is damaged" in message(lambda: rollback(store))
    assert current_release(store) == second


def test_a_release_whose_sources_are_gone_is_not_promoted(store, ledger):
    """It would be refused by each replica, one after the other."""
    first = publish(store, ledger, sources={"pins": source(store, "pins", b"x")}, a="k1")
    second = publish(store, ledger, a="k2")
    store.delete("tables/pins")
    assert "tables/pins/1/part" in message(lambda: promote(store, first.id))
    assert current_release(store) == second


def test_there_is_nothing_to_go_back_to_after_the_first_release(store, ledger):
    assert "there are no releases; run embed" in message(lambda: rollback(store))
    release = publish(store, ledger, a="k1")
    assert f"there are: {release.id}" in message(lambda: rollback(store))


def test_a_release_before_that_was_collected_is_named_with_those_that_are_there(store, ledger):
    first = publish(store, ledger, a="k1")
    second = publish(store, ledger, a="k2")
    store.delete(first.folder)
    text = message(lambda: rollback(store))
    assert f"release {first.id}, which was served before, was collected" in text
    assert f"there are: {second.id}" in text
    assert current_release(store) == second


def test_a_pointer_of_the_version_before_has_nothing_before_it(store, ledger):
    release = publish(store, ledger, a="k1")
    store.write_json(CURRENT, {"id": release.id})
    assert read_current(store) == (release.id, None)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"id": 1}'])
def test_a_torn_pointer_is_one_line(store, ledger, content):
    publish(store, ledger, a="k1")
    store.write_bytes(CURRENT, content)
    assert CURRENT in message(lambda: current_release(store))


# --- garbage ---


def test_garbage_collection_keeps_the_newest(store, ledger):
    ids = [publish(store, ledger, a=f"k{n}").id for n in range(4)]
    assert sorted(collect_releases(store, keep=2)) == sorted(ids[:2])
    assert [release.id for release in list_releases(store)] == ids[2:]


def test_garbage_collection_never_drops_the_one_before(store, ledger):
    """Else the way back is gone when it is needed."""
    ids = [publish(store, ledger, a=f"k{n}").id for n in range(4)]
    promote(store, ids[0])
    assert collect_releases(store, keep=0) == sorted(ids[1:3])
    assert current_release(store).id == ids[0]
    assert rollback(store).id == ids[3]


def test_a_release_before_that_cannot_be_read_is_garbage(store, ledger):
    first = publish(store, ledger, a="k1")
    second = publish(store, ledger, a="k2")
    store.write_json(f"{first.folder}/release.json", {"id": first.id})
    assert collect_releases(store, keep=1) == [first.id]
    assert list_releases(store) == [second]


def test_a_half_written_release_is_not_listed_and_is_dropped(store, ledger):
    publish(store, ledger, a="k1")
    store.write_bytes("releases/half/part-00000.parquet", b"x")
    assert len(list_releases(store)) == 1
    assert collect_releases(store, keep=5) == ["half"]
    assert not store.exists("releases/half")


def test_collecting_a_ledger_after_its_releases_keeps_what_they_serve(store, ledger):
    publish(store, ledger, a="k1", b="k2")
    publish(store, ledger, a="k2", b="k3")
    publish(store, ledger, a="k3", b="k4")
    collect_releases(store, keep=1)
    ledger.collect_garbage(referenced_keys(store))
    assert sorted(ledger.present_keys().to_pylist()) == ["k2", "k3", "k4"]
