"""Cosines made comparable."""

import numpy as np
import pytest

from ray_app.features.cosine import CosineBackground
from ray_app.features.neighbors import top_neighbors


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


RNG = np.random.default_rng(0)
PINS = unit(RNG.normal(size=(300, 6)) + 0.5)
QUERIES = unit(RNG.normal(size=(4, 6)))


def test_the_z_score_equals_that_of_all_cosines() -> None:
    """Mean vector and covariance are a short cut, not an approximation."""
    all_cosines = QUERIES @ PINS.T
    chosen = all_cosines[:, 7]
    expected = (chosen - all_cosines.mean(1)) / all_cosines.std(1)
    np.testing.assert_allclose(CosineBackground.of(PINS).z_score(QUERIES, chosen), expected, rtol=1e-3)


def test_an_empty_catalogue_gives_zeros() -> None:
    background = CosineBackground.of(np.zeros((0, 6), np.float32))
    assert background.z_score(QUERIES, np.ones(4)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("chunk", "block"), [(1, 1000), (3, 300), (100, 7), (100, 3)])
def test_neighbours_do_not_depend_on_chunk_and_block(chunk: int, block: int) -> None:
    indices, cosines = top_neighbors(QUERIES, PINS, 5, chunk, block)
    exact = np.argsort(-(QUERIES @ PINS.T), axis=1)[:, :5]
    np.testing.assert_array_equal(indices, exact)
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_ties_go_to_the_lower_row_and_more_neighbours_than_pins_are_all_pins() -> None:
    assert top_neighbors(QUERIES[:1], np.repeat(QUERIES[:1], 5, axis=0), 3)[0].tolist() == [[0, 1, 2]]
    assert top_neighbors(QUERIES, PINS[:2], 9)[0].shape == (4, 2)
