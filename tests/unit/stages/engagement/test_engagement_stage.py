"""The stage around the two-tower model: rows in line with the catalogue, resume, and what a new pin does."""

import numpy as np
import pytest
import side_world
import torch

from ray_app.base.errors import UserError
from ray_app.features.query_tower import QueryTower
from ray_app.stages.engagement import stage
from ray_app.tables.manifest import read_output

ON = {"engagement": {"epochs": 2, "dim": 4, "hidden_dim": 8}}


@pytest.fixture(autouse=True)
def local(monkeypatch):
    torch.set_num_threads(1)
    side_world.without_ray(monkeypatch, stage)


def run(folder, **changes):
    cfg, store = side_world.build(folder, **{**ON, **changes})
    manifest = stage.run(cfg, store)
    return manifest, read_output(store, manifest.output("engagement_pins")).to_pylist(), store


def test_rows_are_the_catalogues_and_pins_without_events_have_nulls(tmp_path):
    _, rows, _ = run(tmp_path)
    assert [row["pin_id"] for row in rows] == ["p1", "p2", "p3", "p4"]
    assert [row["engagement_embedding"] is None for row in rows] == [False, False, True, True]
    assert [row["rates"] is None for row in rows] == [False, False, True, True]
    assert np.linalg.norm(rows[0]["engagement_embedding"]) == pytest.approx(1.0, abs=1e-6)


def test_the_model_opens(tmp_path):
    manifest, _, store = run(tmp_path)
    tower = QueryTower.load(store, manifest.output("engagement_model"))
    assert tower.encode(side_world.vector("apple")[None]).shape == (1, 4)


def test_labelled_queries_change_no_vector(tmp_path):
    """The whole stage, with the label in another case and the log in the plural."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    labelled, leak = ("Cherry",), [("cherries", "p4", "hide"), ("cherrys", "p3", "click"), ("cherry", "p3", "save")]
    clean = run(tmp_path / "a", labelled=labelled, log=[*side_world.LOG, leak[0]])[1]
    assert run(tmp_path / "b", labelled=labelled, log=[*side_world.LOG, *leak])[1] == clean


def test_an_empty_log_gives_nulls(tmp_path, caplog):
    _, rows, _ = run(tmp_path, log=[])
    assert {(row["engagement_embedding"], row["rates"]) for row in rows} == {(None, None)}
    assert "no engaged pair" in caplog.text


def test_a_run_of_an_older_version_says_what_to_run_again(tmp_path):
    cfg, store = side_world.build(tmp_path, **ON)
    side_world.ingested_by_an_older_version(cfg, store, "client_id")
    with pytest.raises(UserError, match=r"search_log/.* no column 'client_id'.*`python pipelines/ingest\.py --config"):
        stage.run(cfg, store)


def test_a_second_run_does_nothing(tmp_path):
    assert run(tmp_path)[0].created_at == run(tmp_path)[0].created_at


def test_few_new_pins_keep_the_model_and_have_nulls(tmp_path):
    few = {"retrain": {"max_changed_fraction": 0.5}}
    first, before, _ = run(tmp_path, **few)
    second, after, _ = run(tmp_path, pins={"p0": "egg", **side_world.PINS}, **few)
    assert second.output("engagement_model").content_hash == first.output("engagement_model").content_hash
    found = {row["pin_id"]: row for row in after}
    assert (found["p0"]["engagement_embedding"], found["p0"]["rates"]) == (None, None)
    assert [found[row["pin_id"]] for row in before] == before
    assert second.pin_texts == first.pin_texts  # the next change is measured from what was trained on
    assert run(tmp_path, pins={"p0": "egg", **side_world.PINS}, **few)[0].created_at == second.created_at


def test_many_new_pins_train_again(tmp_path):
    few = {"retrain": {"max_changed_fraction": 0.1}}
    first, _, _ = run(tmp_path, **few)
    second, _, _ = run(tmp_path, pins={"p0": "egg", **side_world.PINS}, **few)
    assert "kept" not in second.info
    assert second.output("engagement_model").path != first.output("engagement_model").path


def test_without_its_section_it_says_so(tmp_path):
    cfg, store = side_world.build(tmp_path)
    with pytest.raises(UserError, match="engagement is off"):
        stage.run(cfg, store)


def test_an_older_zero_shot_is_named(tmp_path):
    cfg, store = side_world.build(tmp_path, **ON)
    side_world.zero_shot(cfg, store, ["zebra"])
    with pytest.raises(UserError, match=r"pipelines/zero_shot\.py"):
        stage.run(cfg, store)


def test_judged_queries_and_later_events_change_no_vector(tmp_path):
    """What the run is measured on, and its future, must not reach the rates and vectors that the student reads."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "judged.csv").write_text("query,locale,pin_id,rater_id,grade\nDates,en-US,p4,r1,5\n")
    held = {"evaluate": {"human_labels": str(tmp_path / "judged.csv")}}
    leak = [*side_world.LOG, ("date", "p4", "click"), ("dates", "p4", "save"), ("date", "p4", "hide")]
    clean = run(tmp_path / "a")[1]
    manifest, found, store = run(tmp_path / "b", log=leak, **held)
    assert found == clean
    learned = read_output(store, manifest.output("engagement_queries"))["query"].to_pylist()
    assert learned == ["apple", "banana"]
    assert {row["rates"] for row in run(tmp_path / "c", sample={"until": "2024-01-01"})[1]} == {None}


def test_a_kept_model_keeps_the_queries_it_was_learned_from(tmp_path):
    few = {"retrain": {"max_changed_fraction": 0.5}}
    run(tmp_path, **few)
    second, _, store = run(tmp_path, pins={"p0": "egg", **side_world.PINS}, **few)
    assert read_output(store, second.output("engagement_queries"))["query"].to_pylist() == ["apple", "banana"]
