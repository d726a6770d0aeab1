"""The stage around GraphSAGE: rows in line with the catalogue, boards as they come, and what a new pin does."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import side_world
import torch

from ray_app.base.errors import UserError
from ray_app.base.schemas import BOARDS
from ray_app.features.query_tower import QueryTower
from ray_app.stages.graph import stage
from ray_app.tables.manifest import read_output

ON = {"graph": {"epochs": 2, "dim": 4, "hidden_dim": 8}}


def encode(titles):
    return np.stack([np.zeros(8, np.float32), *(side_world.vector(title) for title in titles)])[1:]


@pytest.fixture(autouse=True)
def local(monkeypatch):
    torch.set_num_threads(1)
    side_world.without_ray(monkeypatch, stage)
    monkeypatch.setattr(stage, "zero_shot_tower", lambda cfg, store, role: SimpleNamespace(recipe="r", encode=encode))


def run(folder, **changes):
    cfg, store = side_world.build(folder, **{**ON, **changes})
    manifest = stage.run(cfg, store)
    return manifest, read_output(store, manifest.output("graph_pins")).to_pylist(), store


def test_pins_on_no_board_have_a_null(tmp_path):
    manifest, rows, store = run(tmp_path)
    assert [(row["pin_id"], row["graph_embedding"] is None) for row in rows] == [
        ("p1", False),
        ("p2", False),
        ("p3", True),
        ("p4", True),
    ]
    boards = read_output(store, manifest.output("graph_boards"))
    assert (boards["board_id"].to_pylist(), boards["graph_embedding"].null_count) == (["b1", "b2"], 0)
    assert QueryTower.load(store, manifest.output("graph_model")).dim == 4


def test_no_boards_give_nulls(tmp_path, caplog):
    _, rows, _ = run(tmp_path, boards=[])
    assert {row["graph_embedding"] for row in rows} == {None}
    assert "no pin is on a board" in caplog.text


def test_a_second_run_does_nothing(tmp_path):
    assert run(tmp_path)[0].created_at == run(tmp_path)[0].created_at


def test_few_new_pins_keep_the_model_and_have_nulls(tmp_path):
    few = {"retrain": {"max_changed_fraction": 0.5}}
    first, before, _ = run(tmp_path, **few)
    second, after, _ = run(tmp_path, pins={"p0": "egg", **side_world.PINS}, **few)
    assert second.output("graph_model").content_hash == first.output("graph_model").content_hash
    assert after == [{"pin_id": "p0", "graph_embedding": None}, *before]


def test_without_its_section_it_says_so(tmp_path):
    cfg, store = side_world.build(tmp_path)
    with pytest.raises(UserError, match="graph is off"):
        stage.run(cfg, store)


def test_edges_are_distinct_saves_of_known_pins():
    rows = [("b2", "p2", None), ("b1", "p1", "Zoo"), ("b1", "p1", "  Attic "), ("b1", "gone", "x"), ("b3", "gone", "y")]
    saves = pa.Table.from_pylist([dict(zip(BOARDS.names, row, strict=False)) for row in rows], schema=BOARDS)
    boards, titles, board, pin = stage.board_edges(saves, ["p1", "p2"])
    assert (boards, titles, board.tolist(), pin.tolist()) == (["b1", "b2"], ["attic", ""], [0, 1], [0, 1])
