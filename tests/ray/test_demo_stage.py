"""The demo stage writes a world that ingest reads whole, and leaves alone what people changed in it."""

import pyarrow as pa
import pytest
from tiny_config import tiny_config

from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.demo import world
from ray_app.stages.demo import stage
from ray_app.stages.ingest.stage import run as ingest
from ray_app.tables.manifest import read_manifest, read_output

TABLES = ("pins", "boards", "search_log", "human_labels")


def config(output, **demo):
    small = {"num_pins": 600, "image_size": 32, "ground_truth_queries": 40, "labelled_queries": 5}
    sources = {name: {"adapter": "table", "path": f"{output}/world/{name}"} for name in TABLES}
    return tiny_config(output, demo=small | demo, ingest=sources)


def run(cfg):
    return stage.run(cfg, Storage(cfg.output))


@pytest.fixture(scope="module")
def finished(ray_cluster, tmp_path_factory):
    """A config whose world is written, and its manifest. Tests leave it as it is."""
    cfg = config(tmp_path_factory.mktemp("demo"))
    return cfg, run(cfg)


def test_ingest_takes_every_row(finished):
    cfg, made = finished
    counts = ingest(cfg, Storage(cfg.output)).counts
    assert counts["rows_quarantined"] == 0
    assert {name: counts[f"{name}_out"] for name in TABLES} == {name: made.counts[name] for name in TABLES}


def test_the_rows_are_those_of_one_process(finished):
    """Tasks run in any order on any worker."""
    cfg, made = finished
    expected = world.pin_rows(cfg.demo, 0, 600, f"{cfg.output}/world/images")
    assert read_output(Storage(cfg.output), made.output("pins")).equals(expected)


def test_every_picture_that_a_pin_names_is_there(finished):
    cfg, made = finished
    images = read_output(Storage(cfg.output), made.output("pins"))["image"].drop_null().to_pylist()
    files = Storage(cfg.output).list_files("world/images", ".png")
    assert set(images) == {f"{cfg.output}/{path}" for path in files}
    assert made.counts["pictures"] == len(files)


def test_the_truth_lies_apart(finished):
    _, made = finished
    truth = {name: out.path for name, out in made.outputs.items() if name not in TABLES}
    assert truth == {
        "ground_truth_concepts": "world/ground_truth/concepts",
        "ground_truth_requests": "world/ground_truth/requests",
        "ground_truth_judgments": "world/ground_truth/judgments",
    }
    assert made.counts["ground_truth_judgments"] == 40 * 20


def test_a_changed_picture_survives_the_next_run(ray_cluster, tmp_path):
    """Whoever edits one to see what is computed again would else find it undone."""
    cfg = config(tmp_path)
    before = run(cfg)
    picture = next((tmp_path / "world" / "images").rglob("*.png"))
    picture.write_bytes(b"edited")
    assert run(cfg) == before
    assert picture.read_bytes() == b"edited"
    assert read_output(Storage(cfg.output), before.output("pins")).num_rows == 600


def test_other_settings_leave_nothing_of_the_old_world(ray_cluster, tmp_path):
    """Ingest reads whole folders: a left-over file would mix two worlds."""
    run(config(tmp_path, pins_per_file=100, pictures="bytes"))
    made = run(config(tmp_path, num_pins=300, pictures="bytes"))
    on_disk = Storage(str(tmp_path)).list_files("world")
    assert on_disk == sorted(path for out in made.outputs.values() for path in out.files)
    assert made.counts["pins"] == 300


def test_files_of_another_size_hold_the_same_rows(finished, tmp_path):
    cfg, made = finished
    other = config(tmp_path, pins_per_file=97)
    manifest = run(other)
    for name in set(made.outputs) - {"pins"}:  # pins name the folder of their pictures
        one, two = (read_output(Storage(c.output), m.output(name)) for c, m in ((cfg, made), (other, manifest)))
        assert one.equals(two), name


def test_a_world_that_failed_on_the_way_is_not_finished(ray_cluster, tmp_path, monkeypatch):
    """A kill between two settings must not leave a manifest that vouches for a mixture."""
    run(config(tmp_path, num_pins=200, pictures="bytes"))

    def fail(*args):
        raise UserError("cannot write x: the disk is full; free some space and run again")

    monkeypatch.setattr(stage, "whole_tables", fail)
    with pytest.raises(UserError, match="disk is full"):
        run(config(tmp_path, num_pins=250, pictures="bytes"))
    assert read_manifest(Storage(str(tmp_path)), "demo") is None


def test_a_failure_in_a_task_is_one_line(ray_cluster, tmp_path, monkeypatch):
    cfg = config(tmp_path, num_pins=200)

    def part_with_a_file_in_the_way(demo, store, image_root, part, parts):
        store.write_bytes("world", b"")
        return original(demo, store, image_root, part, parts)

    original = stage.write_part
    monkeypatch.setattr(stage, "write_part", part_with_a_file_in_the_way)
    with pytest.raises(UserError, match="cannot write") as caught:
        run(cfg)
    assert "\n" not in str(caught.value)


def test_a_config_without_a_demo_says_so(tmp_path):
    cfg = config(tmp_path).model_copy(update={"demo": None})
    with pytest.raises(UserError, match="no section `demo`"):
        run(cfg)


def test_rows_in_the_manifest_are_rows_in_the_files(finished):
    cfg, made = finished
    store = Storage(cfg.output)
    rows = {name: sum(store.read_table(path).num_rows for path in out.files) for name, out in made.outputs.items()}
    assert rows == {name: out.rows for name, out in made.outputs.items()}
    assert isinstance(read_output(store, made.output("boards")), pa.Table)
