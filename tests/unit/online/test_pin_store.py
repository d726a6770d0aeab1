"""Pin stores: the right vector for each id, from files that were checked, made once per machine."""

import errno
import fcntl
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from minimal import message

from ray_app.base.hashing import hash_pin_ids, shards_of
from ray_app.base.schemas import embedding_results
from ray_app.base.storage import Storage
from ray_app.online.local_files import collect_local
from ray_app.online.pin_store import PinStore
from ray_app.tables import publish as publish_module
from ray_app.tables.ledger import Ledger
from ray_app.tables.publish import publish_release

DIM = 8
IDS = [f"pin-{n:03d}" for n in range(50)]
FILES = ["vectors.npy", "scales.npy", "pin_ids.arrow", "hashes.npy", "rows.npy", "meta.json"]


def unit_vectors(num, dim=DIM, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


DENSE = unit_vectors(len(IDS))


def publish(store, vectors, ids, student="5111111111111111"):
    ledger = Ledger(store, "pin_embeddings", "r1", embedding_results(vectors.shape[1]))
    keys = [f"{student} {pin_id} {vectors[i].tobytes().hex()}" for i, pin_id in enumerate(ids)]
    ledger.commit(pa.table({"content_key": keys, "embedding": vectors.tolist(), "error": pa.nulls(len(ids))}))
    pins = pa.table({"pin_id": ids, "content_key": keys})
    return publish_release(store, lambda _: pins, ledger, vectors.shape[1], student, sources={}, config={})


@pytest.fixture
def store(tmp_path):
    return Storage(str(tmp_path / "run"))


@pytest.fixture
def release(store):
    return publish(store, DENSE, IDS)


@pytest.fixture
def local(tmp_path):
    return tmp_path / "local"


def one_byte(pin_ids):
    """A hash that many ids share."""
    return hash_pin_ids(pin_ids) % np.uint64(3)


def folders(local):
    return sorted(path.name for path in local.glob("*") if path.is_dir())


# --- lookups ---


@pytest.mark.parametrize("hash_ids", [hash_pin_ids, one_byte])
def test_each_id_finds_its_own_vector(store, release, local, hash_ids):
    """Ids with equal hashes must not get each other's vectors."""
    pins = PinStore.open(store, release, local, hash_ids=hash_ids)
    asked = [*IDS[::-1], "unknown", "", IDS[3], IDS[3], "pin-0"]
    rows = pins.rows(asked)
    assert rows.dtype == np.int64
    assert rows.tolist() == [*range(49, -1, -1), -1, -1, 3, 3, -1]
    assert pins.pin_ids(rows[:50]) == IDS[::-1]
    np.testing.assert_allclose(pins.vectors(rows[:50]), DENSE[::-1], atol=1e-3)


def test_no_ids_have_no_rows(store, release, local):
    pins = PinStore.open(store, release, local)
    assert pins.rows([]).shape == (0,)
    assert pins.vectors(np.zeros(0, np.int64)).shape == (0, DIM)
    assert pins.pin_ids([]) == []


def test_an_id_that_is_no_text_is_unknown(store, release, local):
    """JSON can hold half of a surrogate pair; it must not end in a server error."""
    assert PinStore.open(store, release, local).rows(["\ud800", "ピン"]).tolist() == [-1, -1]


def test_ids_of_all_alphabets_come_back(store, local):
    ids = sorted(["ピン", "пин", "a" * 256, "é"])
    pins = PinStore.open(store, publish(store, unit_vectors(4), ids), local)
    assert pins.all_pin_ids() == ids
    assert pins.rows(ids).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("row", [-1, 50])
def test_a_row_that_is_not_there_is_refused(store, release, local, row):
    """-1 would silently be the last pin."""
    pins = PinStore.open(store, release, local)
    with pytest.raises(IndexError, match=r"0\.\.49"):
        pins.vectors([0, row])
    with pytest.raises(IndexError, match=r"0\.\.49"):
        pins.pin_ids([row])


def test_a_store_says_what_it_is(store, release, local):
    pins = PinStore.open(store, release, local, "int8")
    assert pins.num_pins == 50
    assert pins.folder == local / f"{release.id}-int8-v1"


# --- numbers ---


@pytest.mark.parametrize(("kind", "cosine"), [("float16", 1 - 1e-6), ("int8", 0.9998)])
@pytest.mark.parametrize("dim", [96, 384])
def test_vectors_keep_direction_and_length(store, local, kind, cosine, dim):
    vectors = unit_vectors(300, dim)
    vectors[0] = np.eye(dim)[5]  # all in one number: the worst for int8's scale
    vectors[1] = vectors[1] * 1e-3 + np.eye(dim)[7]
    vectors[1] /= np.linalg.norm(vectors[1])
    ids = [f"{n:04d}" for n in range(300)]
    found = PinStore.open(store, publish(store, vectors, ids), local, kind).vectors(np.arange(300))
    length = np.linalg.norm(found, axis=1)
    assert found.dtype == np.float32
    assert np.abs(length - 1).max() < 1e-3
    assert ((found * vectors).sum(1) / length).min() > cosine


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_a_vector_of_zeros_stays_one(store, local, kind):
    vectors = DENSE.copy()
    vectors[4] = 0
    assert not PinStore.open(store, publish(store, vectors, IDS), local, kind).vectors([4]).any()


def test_the_mapped_matrix_is_what_vectors_are_made_of(store, release, local):
    pins = PinStore.open(store, release, local, "int8")
    assert (pins.matrix.shape, pins.matrix.dtype, pins.matrix.flags.writeable) == ((50, DIM), np.int8, False)
    np.testing.assert_array_equal(pins.matrix * pins.scales[:, None], pins.vectors(np.arange(50)))
    assert PinStore.open(store, release, local, "float16").scales is None


def test_numbers_that_float16_cannot_hold_are_refused(store, local):
    release = publish(store, DENSE * 1e6, IDS)
    assert "too large for float16" in message(lambda: PinStore.open(store, release, local))
    assert folders(local) == []


# --- the local folder ---


def test_a_second_replica_reads_nothing_of_the_release(store, release, local):
    PinStore.open(store, release, local)
    for path in release.files:
        store.delete(path)
    assert PinStore.open(store, release, local, verify=True).num_pins == 50


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncate", "empty", "delete"])
def test_a_file_that_is_not_whole_is_made_again(store, release, local, name, damage):
    path = PinStore.open(store, release, local, "int8").folder / name
    data = path.read_bytes()
    path.unlink()
    if damage != "delete":
        path.write_bytes(data[:-1] if damage == "truncate" else b"")
    pins = PinStore.open(store, release, local, "int8")
    assert path.read_bytes() == data
    assert pins.rows(IDS).tolist() == list(range(50))
    assert folders(local) == [f"{release.id}-int8-v1"]


@pytest.mark.parametrize("name", [name for name in FILES if name != "meta.json"])
def test_flipped_bits_are_found_by_verify(store, release, local, name):
    path = PinStore.open(store, release, local, "int8").folder / name
    data = path.read_bytes()
    path.unlink()  # not in place: somebody may have mapped it
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    PinStore.open(store, release, local, "int8", verify=True)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "changed",
    [
        {"student_id": "5222222222222222"}, {"dim": 4}, {"release": "other"}, {"kind": "int8"}, {"num_pins": 49}, {"num_pins": "x"},
        {"format_version": 0}, {"files": {}}, {"files": None}, {"parts": {}}, {"hash_probe": 1}, {"shard": [0, 2]},
    ],
)  # fmt: skip
def test_a_folder_of_something_else_is_made_again(store, release, local, changed):
    """A folder that was copied or renamed must not serve another student's vectors."""
    path = PinStore.open(store, release, local).folder / "meta.json"
    right = json.loads(path.read_text())
    path.write_text(json.dumps(right | changed))
    assert PinStore.open(store, release, local).num_pins == 50
    assert json.loads(path.read_text()) == right


@pytest.mark.parametrize("other", [DENSE.astype(np.int16), np.zeros((100, 4), np.float16)])
def test_an_array_of_another_type_or_shape_is_made_again(store, release, local, other):
    """Of the same size, so that only the header tells."""
    path = PinStore.open(store, release, local).folder / "vectors.npy"
    size = path.stat().st_size
    path.unlink()
    np.save(path, other)
    assert path.stat().st_size == size
    np.testing.assert_allclose(PinStore.open(store, release, local).vectors(np.arange(50)), DENSE, atol=1e-3)


def test_a_store_that_is_open_outlives_its_folder(store, release, local):
    pins = PinStore.open(store, release, local, "int8")
    before = pins.vectors(np.arange(50))
    collect_local(local, keep=set())
    np.testing.assert_array_equal(pins.vectors(pins.rows(IDS)), before)


def test_a_folder_that_cannot_be_written_is_one_line(store, release, local):
    local.write_text("a file")
    assert "serve.local_cache_dir" in message(lambda: PinStore.open(store, release, local))


def test_a_large_release_is_read_part_by_part(store, local, monkeypatch):
    monkeypatch.setattr(publish_module, "PART_BYTES", 7 * DENSE.shape[1] * 4)
    release = publish(store, DENSE, IDS)
    assert len(release.files) == 8
    pins = PinStore.open(store, release, local)
    assert pins.all_pin_ids() == IDS
    np.testing.assert_allclose(pins.vectors(np.arange(50)), DENSE, atol=1e-3)


# --- releases that cannot be served ---


def damaged(store, release):
    path = next(iter(release.files))
    data = bytearray(store.read_bytes(path))
    data[len(data) // 2] ^= 1
    store.write_bytes(path, bytes(data))
    return release


def truncated(store, release):
    path = next(iter(release.files))
    store.write_bytes(path, store.read_bytes(path)[:-10])
    return release


def with_nan(store, release):
    """As a writer without checks would have published it."""
    path = next(iter(release.files))
    table = store.read_table(path)
    values = DENSE.copy()
    values[7, 1] = np.nan
    file = store.write_table(
        path, table.set_column(2, "embedding", pa.array(values.tolist(), pa.list_(pa.float32(), DIM)))
    )
    return replace(release, files={path: file.sha256})


def lost(store, release):
    store.delete(next(iter(release.files)))
    return release


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (damaged, "is damaged"),
        (truncated, "is damaged"),
        (lost, "no such file"),
        (with_nan, "NaN or infinity"),
        (lambda _, release: replace(release, dim=DIM + 1), f"not {DIM + 1} float32"),
        (lambda _, release: replace(release, num_pins=51), "release.json says 51"),
    ],
)
def test_a_release_that_is_not_whole_is_refused_and_leaves_nothing(store, release, local, spoil, why):
    """Half a folder would be taken for a whole one, or fill the disk."""
    spoilt = spoil(store, release)
    assert why in message(lambda: PinStore.open(store, spoilt, local))
    assert folders(local) == []


def test_the_old_release_goes_on_when_the_new_one_is_refused(store, release, local):
    pins = PinStore.open(store, release, local)
    new = damaged(store, publish(store, unit_vectors(50, seed=1), IDS))
    message(lambda: PinStore.open(store, new, local))
    np.testing.assert_allclose(pins.vectors(pins.rows(IDS)), DENSE, atol=1e-3)


# --- many at once ---


@dataclass(frozen=True)
class CountingStorage(Storage):
    """Remembers which files were read."""

    read: list[str] = field(default_factory=list)

    def read_bytes(self, path):
        self.read.append(path)
        return super().read_bytes(path)


def test_replicas_that_start_at_once_make_the_folder_once(store, release, local):
    counting = CountingStorage(store.uri)
    barrier = threading.Barrier(6)

    def start(_):
        barrier.wait()
        return PinStore.open(counting, release, local).rows(IDS).tolist()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(start, range(6))) == [list(range(50))] * 6
    assert counting.read == list(release.files)
    assert folders(local) == [f"{release.id}-float16-v1"]


def test_without_locks_who_comes_second_uses_what_is_there(store, release, local, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    made = []

    def hash_and_be_overtaken(pin_ids):
        """In the middle of the first one's work, another one does all of it."""
        if len(pin_ids) == 50 and not made:
            made.append(PinStore.open(store, release, local).folder)
            made.append(made[0].stat().st_ino)
        return hash_pin_ids(pin_ids)

    pins = PinStore.open(store, release, local, hash_ids=hash_and_be_overtaken)
    assert made == [pins.folder, pins.folder.stat().st_ino]
    assert pins.rows(IDS).tolist() == list(range(50))
    assert folders(local) == [pins.folder.name]


def test_what_a_killed_builder_left_is_removed(store, release, local):
    """A replica that is killed for its memory again and again would fill the disk."""
    (local / f".tmp-{release.id}-float16-v1-{'0123' * 8}").mkdir(parents=True)
    PinStore.open(store, release, local)
    assert folders(local) == [f"{release.id}-float16-v1"]


# --- shards ---


@pytest.mark.parametrize("num_shards", [1, 3, 64])
def test_shards_hold_each_pin_once(store, release, local, num_shards):
    """64 shards of 50 pins: some are empty."""
    found = np.zeros(50, int)
    for i in range(num_shards):
        pins = PinStore.open(store, release, local, "int8", shard=(i, num_shards))
        rows = pins.rows(IDS)
        held = rows >= 0
        assert pins.num_pins == held.sum()
        assert (shards_of(IDS, num_shards) == i).tolist() == held.tolist()
        np.testing.assert_allclose(pins.vectors(rows[held]), DENSE[held], atol=1e-2)
        found += held
    assert found.tolist() == [1] * 50
    assert len(folders(local)) == num_shards


def test_an_empty_shard_opens_again(store, release, local):
    empty = min(set(range(64)) - set(shards_of(IDS, 64).tolist()))
    for verify in (False, True):
        pins = PinStore.open(store, release, local, shard=(empty, 64), verify=verify)
        assert (pins.num_pins, pins.rows(IDS[:2]).tolist(), pins.all_pin_ids()) == (0, [-1, -1], [])


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_cannot_be_is_refused(store, release, local, shard):
    with pytest.raises(ValueError, match="numbered from 0"):
        PinStore.open(store, release, local, shard=shard)


def test_pins_are_spread_evenly(store):
    counts = np.bincount(shards_of([f"pin-{n}" for n in range(10_000)], 4))
    assert counts.min() > 2_300


def test_no_shards_hold_nothing():
    with pytest.raises(ValueError, match="at least one shard"):
        shards_of(["a"], 0)


# --- garbage ---


def test_folders_of_other_releases_are_deleted_and_nothing_else(store, release, local):
    new = publish(store, unit_vectors(50, seed=1), IDS)
    for one in (release, new):
        PinStore.open(store, one, local)
        PinStore.open(store, one, local, "int8", shard=(0, 2))
    (local / f"{release.id}-retrieval").mkdir()
    (local / "student-1").mkdir()
    dropped = collect_local(local, keep={new.id})
    assert dropped == [f"{release.id}-{what}" for what in ("float16-v1", "int8-v1-shard0of2", "retrieval")]
    assert folders(local) == sorted([f"{new.id}-float16-v1", f"{new.id}-int8-v1-shard0of2", "student-1"])
    assert not list(local.glob(f".lock-{release.id}*"))


def test_collecting_a_folder_that_is_not_there_does_nothing(tmp_path: Path):
    assert collect_local(tmp_path / "none", keep=set()) == []
