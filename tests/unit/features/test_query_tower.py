"""Training features, evaluation and serving must get the same vector of a query, whatever else is asked."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.base.columns import aligned, matrix_column
from ray_app.base.storage import Storage
from ray_app.features.query_tower import NAMES, QueryTower
from ray_app.tables.manifest import Output, hash_files

SHAPES = ((4, 6), (5, 6), (5,), (4, 5), (4,))


def tower():
    rng = np.random.default_rng(0)
    return QueryTower(weights={n: rng.normal(size=s).astype(np.float32) for n, s in zip(NAMES, SHAPES, strict=True)})


QUERIES = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)


def test_a_vector_does_not_depend_on_the_batch():
    alone = np.concatenate([tower().encode(row[None]) for row in QUERIES])
    assert np.abs(alone - tower().encode(QUERIES)).max() < 1e-6


def test_vectors_have_unit_length_and_an_empty_query_has_none():
    found = tower().encode(np.concatenate([QUERIES, np.zeros((1, 6), np.float32)]))
    assert (found.dtype, found.shape) == (np.float32, (301, 4))
    assert np.linalg.norm(found, axis=1) == pytest.approx([1.0] * 300 + [0.0], abs=1e-6)


def test_no_queries_are_no_vectors_and_those_of_another_encoder_are_refused():
    assert tower().encode(np.zeros((0, 6), np.float32)).shape == (0, 4)
    with pytest.raises(ValueError, match="6 numbers"):
        tower().encode(np.zeros((2, 7), np.float32))


def test_weights_of_something_else_are_refused():
    with pytest.raises(ValueError, match=r"skip\.weight"):
        QueryTower(weights={"a": np.zeros(1)})


def test_a_saved_tower_is_the_same(tmp_path):
    store = Storage(str(tmp_path))
    files = tower().save(store, "models/m/1")
    content = hash_files("models/m/1", {file.path: file.sha256 for file in files})
    output = Output(name="m", path="models/m/1", files=[file.path for file in files], rows=0, content_hash=content)
    assert np.array_equal(QueryTower.load(store, output).encode(QUERIES), tower().encode(QUERIES))


def test_new_pins_have_nulls_and_gone_pins_vanish():
    vectors = matrix_column(np.arange(6).reshape(3, 2), np.array([True, False, True]))
    table = pa.table({"pin_id": ["a", "b", "c"], "v": vectors})
    found = aligned(table, pa.chunked_array([["c", "new"], ["b"]]))
    assert found["v"].to_pylist() == [[4.0, 5.0], None, None]
    assert found["v"].type == pa.list_(pa.float32(), 2)
