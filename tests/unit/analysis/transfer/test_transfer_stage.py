"""The stage around the measurement: what is embedded names no held-out board, and a second run does nothing."""

import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import side_world
from tiny_config import finished_stage

from ray_app.analysis.transfer import stage
from ray_app.base.config import GraphConfig
from ray_app.base.errors import UserError
from ray_app.base.schemas import SEARCH_LOG
from ray_app.base.storage import Storage
from ray_app.stages.enrich.board_titles import titled_saves
from ray_app.stages.enrich.pin_texts import PIN_COLUMNS, build_pin_texts
from ray_app.tables.manifest import read_output, require_output

PINS = {f"p{i}": f"{'abcdefgh'[i % 8]} thing {i}" for i in range(12)}
BOARDS = [(f"b{b:02d}", f"p{(b + i) % 12}", f"Board{b:02d}word") for b in range(20) for i in range(3)]
SETTINGS = {"transfer": {"min_saves": 2, "holdout_fraction": 0.4}, "evaluate": {"num_resamples": 20}}


@pytest.fixture
def embedded(monkeypatch):
    """Texts by tower; a text's vector is its first letter's."""
    seen = {}

    def tower(name):
        def encode(texts, pin_ids=None):
            seen.setdefault(name, []).extend(texts)
            return np.stack([np.zeros(8, np.float32), *(side_world.vector(text or "a") for text in texts)])[1:]

        return SimpleNamespace(recipe=name, encode=encode)

    monkeypatch.setattr(stage, "student_tower", lambda cfg, store, student, name: tower(name))
    monkeypatch.setattr(stage, "zero_shot_tower", lambda cfg, store, role: tower(cfg.features.zero_shot_model))
    return seen


def build(folder, boards=BOARDS):
    """(config, store) of a run with a student."""
    cfg, store = side_world.build(folder, pins=PINS, boards=boards, **SETTINGS)
    cfg = cfg.model_copy(update={"distill": cfg.distill.model_copy(update={"base_model": "base"})})
    finished_stage(cfg, store, "distill", student=pa.table({"a": [1]}))
    return cfg, store


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))[0]


@pytest.fixture
def world(built, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(built.output, tmp_path / "out")
    return built.model_copy(update={"output": str(tmp_path / "out")}), Storage(str(tmp_path / "out"))


def test_no_text_that_is_embedded_names_a_held_out_board_and_student_and_base_read_the_same(world, embedded):
    manifest = stage.run(*world)
    assert embedded["pin"] == embedded["base"][: len(PINS)]
    assert embedded["query"] == embedded["base"][len(PINS) :]
    assert 4 <= manifest.counts["held_out_boards"] <= 12
    held_out = set(embedded["query"])
    assert len(held_out) == manifest.counts["held_out_boards"]
    for tower in ("pin", "base", "m"):
        texts = [text for text in embedded[tower] if text not in held_out]  # the titles are queries too
        assert len(texts) == len(PINS)
        assert not [text for text in texts if any(title in text.lower() for title in held_out)]
    readable = " ".join(embedded["pin"]).lower()
    assert all((f"board{b:02d}word" in readable) != (f"board{b:02d}word" in held_out) for b in range(20))


def test_the_table_has_a_row_for_each_system_and_the_figures_are_kept_and_not_made_again(world, embedded):
    cfg, store = world
    manifest = stage.run(cfg, store)
    names = [row["name"] for row in manifest.info["table"]["rows"]]
    assert names == [
        "random vectors", "saves on other boards", "BM25", "zero-shot encoder on title, description", "base encoder",
        "student",
    ]  # fmt: skip
    rows = read_output(store, manifest.output("transfer_metrics"))
    assert rows.num_rows == len(names) * 9
    assert manifest.counts["next_save_queries"] == 0  # these saves have no time
    assert manifest.info["table"]["num_gains"] == 2
    embedded.clear()
    assert stage.run(cfg, store).created_at == manifest.created_at
    assert not embedded


def test_the_graph_is_trained_on_the_other_boards_only(world, embedded, monkeypatch):
    trained_on = []

    def train(board, pin, boards, pins, cfg, seed):
        trained_on.append((len(np.unique(board)), len(boards), pins.shape))
        tower = SimpleNamespace(encode=lambda titles: titles)
        return SimpleNamespace(pin_vectors=pins, tower=tower)

    monkeypatch.setattr(stage, "train", train)
    monkeypatch.setattr(stage, "start_task", lambda function, *args, torch_threads: function(*args))
    monkeypatch.setattr(stage, "results_of", list)
    manifest = stage.run(world[0].model_copy(update={"graph": GraphConfig(dim=4)}), world[1])
    left = 20 - manifest.counts["held_out_boards"]
    assert trained_on == [(left, left, (12, 8))]
    assert manifest.info["table"]["rows"][-1]["name"] == "graph (trained here on the other boards' saves)"


@pytest.mark.parametrize("boards", [[], [("b1", "p1", "Fruit")]])
def test_without_boards_it_says_so_in_one_line(tmp_path, embedded, boards):
    with pytest.raises(UserError, match=r"transfer: \d boards have known pins.*ingest\.boards") as caught:
        stage.run(*build(tmp_path, boards=boards))
    assert "\n" not in str(caught.value)


def test_texts_are_those_that_enrich_makes_of_the_other_boards(world):
    cfg, store = world
    made = read_output(store, require_output(store, "enrich", "pin_texts"))
    boards = read_output(store, require_output(store, "ingest", "boards"))
    kept = boards.slice(0, 21)
    pins = read_output(store, require_output(store, "ingest", "pins"), PIN_COLUMNS.names)
    expected = build_pin_texts(pins, titled_saves(kept), SEARCH_LOG.empty_table(), set(), cfg.enrich)
    found = stage.without_boards(made, kept, cfg.enrich.top_boards)
    assert found["board_titles"].equals(expected["board_titles"])
    assert found.drop_columns(["board_titles"]).equals(made.drop_columns(["board_titles"]))
    assert not found["board_titles"].equals(made["board_titles"])
