"""Vectors gathered from a ledger into a file: each key's own, in the order asked for, whatever the blocks."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.base.errors import UserError
from ray_app.base.schemas import embedding_results
from ray_app.base.storage import Storage
from ray_app.tables.ledger import Ledger
from ray_app.tables.release_embeddings import GatheredVectors

DIM = 3


@pytest.fixture
def ledger(tmp_path):
    return Ledger(Storage(str(tmp_path)), "pin_embeddings", "r", embedding_results(DIM))


def commit(ledger, vector_by_key):
    vectors = list(vector_by_key.values())
    errors = [None if vector is not None else "no_text" for vector in vectors]
    ledger.commit(pa.table({"content_key": list(vector_by_key), "embedding": vectors, "error": errors}))


def test_many_blocks_in_any_order_give_each_row_its_key_s_vector(ledger):
    rng = np.random.default_rng(3)
    vectors = {f"{number:032x}": rng.normal(size=DIM).astype(np.float32) for number in range(500)}
    failed = set(rng.choice(list(vectors), 40, replace=False))
    names = rng.permutation(list(vectors))
    for start in range(0, 500, 37):
        commit(ledger, {key: None if key in failed else vectors[key].tolist() for key in names[start : start + 37]})
    keys = rng.choice(list(vectors), 900)  # some repeated, some not asked for
    with GatheredVectors(ledger, pa.chunked_array([keys[:400].tolist(), keys[400:].tolist()]), DIM) as gathered:
        np.testing.assert_array_equal(gathered.good, [key not in failed for key in keys])
        batches = list(gathered.batches(128))
    assert {len(rows) for rows, _ in batches[:-1]} == {128}
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in batches]), np.flatnonzero(gathered.good))
    for rows, found in batches:
        np.testing.assert_array_equal(found, [vectors[keys[row]] for row in rows])


def test_a_key_that_two_blocks_hold_gets_the_result_that_lookup_gives(ledger):
    commit(ledger, {"a": [1.0, 1.0, 1.0], "b": [2.0, 2.0, 2.0]})
    commit(ledger, {"a": None, "c": [3.0, 3.0, 3.0]})
    keys = pa.chunked_array([["a", "c"]])
    wanted = ledger.lookup(keys)
    with GatheredVectors(ledger, keys, DIM) as gathered:
        np.testing.assert_array_equal(gathered.good, wanted["error"].is_null().to_numpy())
        ((rows, found),) = gathered.batches(10)
    assert found.tolist() == [wanted["embedding"].to_pylist()[row] for row in rows]


def test_a_missing_key_and_a_vector_that_is_not_finite_are_refused(ledger):
    commit(ledger, {"a": [1.0, 1.0, 1.0], "bad": [float("nan"), 0.0, 0.0]})
    with pytest.raises(KeyError, match="1 of 2 keys"):
        GatheredVectors(ledger, pa.chunked_array([["a", "z"]]), DIM)
    with pytest.raises(UserError, match="NaN or infinity"):
        GatheredVectors(ledger, pa.chunked_array([["a", "bad"]]), DIM)
    with GatheredVectors(ledger, pa.chunked_array([["a"]]), DIM) as gathered:  # not asked for: no matter
        assert gathered.good.all()


def test_a_full_disk_names_the_folder_and_the_remedy(ledger, monkeypatch):
    commit(ledger, {"a": [1.0, 1.0, 1.0]})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"No space left.*TMPDIR"):
        GatheredVectors(ledger, pa.chunked_array([["a"]]), DIM)
