"""When embed publishes: whenever something that serving needs has changed, and never over an operator's choice."""

import pyarrow as pa
import pytest

from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.schemas import PIN_TEXTS
from ray_app.base.storage import Storage
from ray_app.cluster.encoders import student_tower
from ray_app.stages.embed.stage import run as embed
from ray_app.tables.current import current_release, rollback
from ray_app.tables.manifest import require_output
from ray_app.tables.release import open_release
from ray_app.tables.stage_run import StageRun


@pytest.fixture
def store(tmp_path):
    return Storage(str(tmp_path / "out"))


@pytest.fixture
def cfg(store):
    pins = {"adapter": "table", "path": "p.csv"}
    models = {
        "train_teacher": {"base_model": "m"},
        "distill": {"base_model": "m", "dim": 2},
        "features": {"zero_shot_model": "m"},
    }
    return Config.model_validate({"output": store.uri, "ingest": {"pins": pins}, **models})


def finish(cfg, store, stage, **outputs):
    """A stage that ended with these outputs, each one file that says what its keyword says."""
    run = StageRun(stage, cfg, store, 1, [dict(outputs)], [])
    for name, content in outputs.items():
        folder = f"tables/{name}/{run.fingerprint}"
        run.add_output(name, folder, [store.write_bytes(f"{folder}/part", content.encode())])
    run.finish({})


def write_texts(cfg, store, title):
    run = StageRun("enrich", cfg, store, 1, [title], [])
    run.write_table("pin_texts", pa.Table.from_pylist([{"pin_id": "p1", "title": title}], schema=PIN_TEXTS))
    run.finish({})
    finish(cfg, store, "zero_shot", zero_shot_pins="vectors")
    made_of = [require_output(store, "enrich", "pin_texts"), require_output(store, "zero_shot", "zero_shot_pins")]
    run = StageRun("corpus_statistics", cfg, store, 1, [], made_of)
    folder = f"models/corpus_statistics/{run.fingerprint}"
    run.add_output("corpus_statistics", folder, [store.write_bytes(f"{folder}/part", title.encode())])
    run.finish({})


def fill_ledger(cfg, store):
    """So that embed has no model work to do, and needs no Ray."""
    tower = student_tower(cfg, store, require_output(store, "distill", "student"), "pin")
    keys = tower.pin_texts(require_output(store, "enrich", "pin_texts")).keyed(0)["content_key"]
    tower.ledger.commit(pa.table({"content_key": keys, "embedding": [[0.6, 0.8]], "error": pa.nulls(1)}))


@pytest.fixture
def finished(cfg, store):
    """The first release."""
    finish(cfg, store, "ingest", pins="pins")
    write_texts(cfg, store, "shoe")
    finish(cfg, store, "distill", student="student", feature_only_student="feature student")
    fill_ledger(cfg, store)
    embed(cfg, store)
    return current_release(store)


def test_a_release_names_all_that_serving_needs(cfg, store, finished):
    assert set(finished.sources) == {"student", "feature_only_student", "pin_texts", "pins", "corpus_statistics"}
    assert finished.sources["student"] == require_output(store, "distill", "student")
    assert Config.model_validate(finished.config) == cfg
    assert open_release(store, finished).num_rows == 1


def test_sides_that_are_switched_on_and_soft_labels_are_named(cfg, store, finished):
    finish(cfg, store, "label", soft_labels="labels")
    finish(cfg, store, "sample", pairs="pairs", public_queries="queries")
    finish(cfg, store, "graph", graph_pins="pins", graph_model="model")
    embed(Config.model_validate(cfg.model_dump() | {"graph": {}}), store)
    more = set(current_release(store).sources) - set(finished.sources)
    assert more == {"soft_labels", "public_queries", "graph_pins", "graph_model"}


def test_a_run_with_nothing_new_is_up_to_date(cfg, store, finished):
    assert embed(cfg, store).created_at == embed(cfg, store).created_at
    assert current_release(store) == finished


def test_a_new_feature_student_is_published_without_model_work(cfg, store, finished):
    """The vectors are the same, so it would otherwise be served only when a pin changes."""
    finish(cfg, store, "distill", student="student", feature_only_student="another")
    manifest = embed(cfg, store)
    release = current_release(store)
    assert manifest.counts["computed"] == 0
    assert (release.content_hash, release.id != finished.id) == (finished.content_hash, True)
    assert release.sources["feature_only_student"] == require_output(store, "distill", "feature_only_student")


def test_a_run_with_nothing_new_does_not_undo_a_rollback(cfg, store, finished):
    """Somebody rolled back because the newest release is bad."""
    finish(cfg, store, "ingest", pins="other pins")
    embed(cfg, store)
    rollback(store)
    embed(cfg, store)
    assert current_release(store) == finished


def test_what_is_new_after_a_rollback_is_served(cfg, store, finished):
    finish(cfg, store, "ingest", pins="other pins")
    embed(cfg, store)
    rollback(store)
    write_texts(cfg, store, "boot")
    fill_ledger(cfg, store)
    embed(cfg, store)
    assert current_release(store).id != finished.id


@pytest.mark.parametrize("damage", ["delete", "tear"])
def test_a_release_that_is_gone_is_published_again(cfg, store, finished, damage):
    """Its manifest alone says that embed is up to date, and nothing could be served ever after."""
    store.delete(finished.folder) if damage == "delete" else store.write_bytes(f"{finished.folder}/release.json", b"{")
    embed(cfg, store)
    assert current_release(store).id == finished.id


def test_without_a_feature_student_it_says_what_to_run(cfg, store):
    write_texts(cfg, store, "shoe")
    finish(cfg, store, "distill", student="student")
    with pytest.raises(UserError, match=r"pipelines/distill.py"):
        embed(cfg, store)
