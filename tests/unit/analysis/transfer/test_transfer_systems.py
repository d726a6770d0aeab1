"""Scores that are not what they are called would compare something else."""

import numpy as np
import pytest
from transfer_world import boards_table, tasks_of

from ray_app.analysis.transfer.systems import bm25, popularity, random_vectors, vectors
from ray_app.features.bm25 import Bm25Index

TEXTS = ["red sofa", "red sofa bed", "blue chair", "", "green lamp lamp", "red red lamp"]
AXES = np.eye(6, dtype=np.float32)


@pytest.fixture
def tasks():
    return tasks_of(boards_table({"b1": "abe"}), [0])


def test_bm25_of_titles_and_of_pins_is_that_of_the_index(tasks):
    index, system = Bm25Index.build(TEXTS), bm25("BM25", TEXTS, ["red lamp lamp unknown"])
    title = system.scores(tasks[1], 0, 1)[0]
    ranked = np.isfinite(title)
    np.testing.assert_allclose(title[ranked], index.score_all("red lamp lamp unknown")[ranked], rtol=1e-6)
    assert ranked.tolist() == [True, True, True, False, True, True]  # a pin without text is found by nothing
    related = system.scores(tasks[0], 0, 1)[0]
    np.testing.assert_allclose(related[[1, 2, 4, 5]], index.score_all(TEXTS[0])[[1, 2, 4, 5]], rtol=1e-6)


def test_asking_by_several_pins_is_the_mean_of_asking_by_each(tasks):
    index, system = Bm25Index.build(TEXTS), bm25("BM25", TEXTS, [""])
    both = system.scores(tasks[2], 1, 2)[0]
    mean = (index.score_all(TEXTS[0]) + index.score_all(TEXTS[1])) / 2
    np.testing.assert_allclose(both[[2, 4, 5]], mean[[2, 4, 5]], rtol=1e-6)
    assert np.isneginf(both[[0, 1]]).all()  # they are on the board


def test_what_has_no_vector_is_neither_found_nor_finds(tasks):
    pins = AXES.copy()
    pins[0], pins[2] = 0.0, 0.0
    scores = vectors("v", pins, np.zeros((1, 6), np.float32)).scores(tasks[0], 0, 3)
    assert np.isneginf(scores[0]).all()  # pin a asks, and has none
    assert np.isneginf(scores[1, [0, 1, 2]]).all()
    assert np.isfinite(scores[1, [3, 4, 5]]).all()


def test_vectors_that_are_not_of_unit_length_are_refused():
    with pytest.raises(ValueError, match=r"length 2\.000"):
        vectors("v", 2 * AXES, AXES[:1])
    with pytest.raises(ValueError, match="titles of 3"):
        vectors("v", AXES, AXES[:1, :3])


def test_popularity_gives_one_order_and_finds_pins_without_saves(tasks):
    system = popularity("p", np.array([0, 3, 0, 9, 1, 0]), num_titles=1)
    assert system.scores(tasks[1], 0, 1)[0].tolist() == [1.0, 4.0, 1.0, 10.0, 2.0, 1.0]
    assert system.scores(tasks[2], 1, 2)[0].tolist() == [-np.inf, -np.inf, 1.0, 10.0, 2.0, 1.0]


def test_random_vectors_are_the_same_each_time():
    a, b = (random_vectors("r", 6, 1, seed=3) for _ in range(2))
    assert np.array_equal(a.pins, b.pins)
    assert np.array_equal(a.titles, b.titles)
