"""GraphSAGE over pins and boards: queries are boards without pins, and nothing sees the save that it must predict."""

import numpy as np
import pytest
import torch
from torch_geometric.nn import SAGEConv

from ray_app.base.config import GraphConfig
from ray_app.stages.graph.sage import NeighborGraph, _build_model, _sampled, _tower_of, _whole, train

# Boards 0..5 hold pins 0..5 and 6..11: texts say nothing of it.
BOARD = np.repeat(np.arange(6), 6)
PIN = np.concatenate([np.arange(6) + 6 * (b % 2) for b in range(6)])
CFG = GraphConfig(dim=8, hidden_dim=16, epochs=3, batch_size=16)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vectors(count, seed):
    found = np.random.default_rng(seed).normal(size=(count, 10)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def learn(seed=3, **cfg):
    return train(BOARD, PIN, vectors(6, 0), vectors(12, 1), CFG.model_copy(update=cfg), seed)


def test_a_run_is_the_same_twice():
    first, second = learn(), learn()
    assert np.array_equal(first.pin_vectors, second.pin_vectors)
    assert np.array_equal(first.board_vectors, second.board_vectors)


def test_another_seed_is_another_model():
    assert not np.array_equal(learn(1).pin_vectors, learn(2).pin_vectors)


def test_vectors_have_unit_length():
    found = learn()
    for made in (found.pin_vectors, found.board_vectors, found.tower.encode(vectors(5, 9))):
        assert np.linalg.norm(made, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_shared_boards_beat_texts_that_say_nothing():
    found = learn(epochs=60, holdout_fraction=0.2)
    assert found.info["measured_saves"] > 3
    cosines = found.pin_vectors @ found.pin_vectors.T
    together = (np.arange(12)[:, None] < 6) == (np.arange(12)[None, :] < 6)
    assert cosines[together].mean() > cosines[~together].mean() + 0.5


def trained_model():
    """A model whose last layers are not zero."""
    model = _build_model(vectors(12, 1)[:8], 16, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


NODES = {"pin": torch.from_numpy(vectors(12, 1)), "board": torch.from_numpy(vectors(6, 0))}
NONE = np.zeros(0, np.int64)


def test_a_query_is_a_board_without_pins():
    """numpy in serving, SAGEConv in training: the same numbers."""
    model = trained_model()
    alone = {"pin": NeighborGraph.of(NONE, NONE, 12), "board": NeighborGraph.of(NONE, NONE, 6)}
    with torch.no_grad():
        whole = _whole(model, NODES, alone)["board"]
        batch = _sampled(
            model, NODES, {"pin": NeighborGraph.of(PIN, BOARD, 12), "board": NeighborGraph.of(BOARD, PIN, 6)},
            {"board": BOARD, "pin": PIN}, CFG.model_copy(update={"neighbor_dropout": 1.0}), np.random.default_rng(0),
        )  # fmt: skip
    tower = _tower_of(model).encode(NODES["board"].numpy())
    assert whole == pytest.approx(tower, abs=1e-5)
    assert batch["board"].numpy() == pytest.approx(tower[BOARD], abs=1e-5)


def test_a_batch_never_sees_the_save_it_predicts():
    """A board with one pin has no neighbours when that save is asked for; else the answer would be in the question."""
    model, one = trained_model(), np.array([0])
    graph = {"pin": NeighborGraph.of(one, one, 12), "board": NeighborGraph.of(one, one, 6)}
    cfg = CFG.model_copy(update={"neighbor_dropout": 0.0})
    with torch.no_grad():
        found = _sampled(model, NODES, graph, {"board": one, "pin": one}, cfg, np.random.default_rng(0))
    assert found["board"].numpy() == pytest.approx(_tower_of(model).encode(NODES["board"].numpy())[one], abs=1e-5)


def test_sampling_draws_only_neighbours_and_skips_the_excluded():
    around = NeighborGraph.of(BOARD, PIN, 7)
    rng = np.random.default_rng(0)
    found, places = around.sample(np.array([0, 1, 6]), 50, rng, np.array([2, -1, -1]))
    assert set(found[places == 0]) == {0, 1, 3, 4, 5}
    assert set(found[places == 1]) == {6, 7, 8, 9, 10, 11}
    assert 2 not in places


def test_means_over_the_matrix_are_those_over_edges():
    layer = SAGEConv((10, 10), 4)
    matrix = NeighborGraph.of(BOARD, PIN, 6).matrix(12)
    edges = torch.from_numpy(np.stack([PIN, BOARD]))
    with torch.no_grad():
        expected = layer((NODES["pin"], NODES["board"]), edges, size=(12, 6))
        assert torch.allclose(layer((NODES["pin"], NODES["board"]), matrix), expected, atol=1e-6)


def test_no_saves_give_no_vectors_and_a_tower_that_works():
    nothing = np.zeros((0, 10), np.float32)
    found = train(NONE, NONE, nothing, nothing, GraphConfig(dim=10), 0)
    assert (found.pin_vectors.shape, found.info["recall_at_10"]) == ((0, 10), None)
    assert np.linalg.norm(found.tower.encode(vectors(3, 0)), axis=1) == pytest.approx(1.0, abs=1e-5)
