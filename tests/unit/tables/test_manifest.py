"""Manifests: "up to date" must mean that the very output which would be made is there, whole."""

import pickle

import pyarrow as pa
import pytest
from minimal import make_config

from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.storage import CorruptFileError, Storage
from ray_app.cluster.retrain import RetrainPolicy
from ray_app.tables.manifest import Output, read_manifest, read_output, require_output
from ray_app.tables.stage_run import StageRun

TABLE = pa.table({"pin_id": ["a", "b"]})


@pytest.fixture
def ingest(store):
    """A finished stage to build on."""
    run = StageRun("ingest", make_config(), store, 1, settings=[], inputs=[])
    run.write_table("pins", TABLE)
    return run.finish({}).output("pins")


def enrich(store, inputs, version=1, cfg=None):
    cfg = cfg or make_config()
    return StageRun("enrich", cfg, store, version, settings=[cfg.enrich], inputs=inputs)


def finish(run):
    run.write_table("pin_texts", TABLE)
    return run.finish({"rows_in": 2, "rows_out": 2})


def test_a_stage_killed_before_its_manifest_is_not_up_to_date(store, ingest):
    enrich(store, [ingest]).write_table("pin_texts", TABLE)
    assert enrich(store, [ingest]).finished is None


def test_a_stage_killed_on_its_second_run_keeps_its_first_output(store, ingest):
    """A live table is never dropped before its replacement is whole."""
    finish(enrich(store, [ingest]))
    enrich(store, [ingest], version=2).write_table("pin_texts", TABLE.slice(0, 1))
    assert read_output(store, require_output(store, "enrich", "pin_texts")).num_rows == 2


def test_a_deleted_output_is_made_again(store, ingest):
    manifest = finish(enrich(store, [ingest]))
    store.delete(manifest.outputs["pin_texts"].files[0])
    assert enrich(store, [ingest]).finished is None


@pytest.mark.parametrize(
    ("changed", "up_to_date"),
    [
        ({}, True),
        ({"version": 2}, False),
        ({"cfg": make_config(enrich={"top_boards": 9})}, False),
        (
            {"cfg": make_config(label={"batch_size": 9})},
            True,
        ),  # else labelling by other batches would enrich everything again
    ],
)
def test_a_finished_stage_is_up_to_date_unless_its_own_code_or_settings_changed(store, ingest, changed, up_to_date):
    made = finish(enrich(store, [ingest]))
    assert (enrich(store, [ingest], **changed).finished == made) is up_to_date


def test_changed_input_content_is_not_up_to_date(store, ingest):
    finish(enrich(store, [ingest]))
    other = StageRun("ingest", make_config(), store, 2, settings=[], inputs=[]).write_table("pins", TABLE.slice(0, 1))
    assert enrich(store, [other]).finished is None


def test_an_input_rebuilt_with_equal_content_is_up_to_date(store, ingest):
    """Else a harmless rerun of ingest would train and label everything again."""
    finish(enrich(store, [ingest]))
    same = StageRun("ingest", make_config(seed=2), store, 2, settings=[2], inputs=[]).write_table("pins", TABLE)
    assert same.path != ingest.path
    assert enrich(store, [same]).finished is not None


def test_parts_are_read_in_the_order_written(store):
    run = StageRun("ingest", make_config(), store, 1, settings=[], inputs=[])
    output = run.write_table("pins", [pa.table({"x": [i]}) for i in range(12)])
    assert read_output(store, output)["x"].to_pylist() == list(range(12))


def test_an_output_changed_behind_our_back_is_refused(store, ingest):
    """A valid file with other rows would train on them in silence."""
    store.write_table(ingest.files[0], TABLE.slice(0, 1))
    with pytest.raises(CorruptFileError, match=r"changed after it was written"):
        read_output(store, ingest)


def test_a_torn_output_is_one_line_naming_the_file(store, ingest):
    store.write_bytes(ingest.files[0], b"PAR1")
    with pytest.raises(CorruptFileError, match=ingest.files[0]):
        read_output(store, ingest)


def test_a_stage_that_never_ran_is_named_with_its_command(store):
    with pytest.raises(UserError, match=r"pin_texts has not been computed yet: run `python pipelines/enrich\.py"):
        require_output(store, "enrich", "pin_texts")


@pytest.mark.parametrize("raw", [[], {}, {"schema_version": 0}, {"schema_version": 1, "stage": "enrich"}])
def test_a_manifest_of_other_code_means_not_finished(store, raw):
    store.write_json("manifests/enrich.json", raw)
    assert read_manifest(store, "enrich") is None


def test_the_manifest_stores_the_resolved_config(store, ingest):
    cfg = make_config(seed=99)
    assert Config.model_validate(finish(enrich(store, [ingest], cfg=cfg)).config) == cfg


# --- drift: a few changed pins are no reason to train again ---


def texts_output(store, name, rows):
    """A published pin_texts table with those titles."""
    run = StageRun(name, make_config(), store, 1, settings=[rows], inputs=[])
    run.write_table("pin_texts", pa.table({"pin_id": list(rows), "title": list(rows.values())}))
    return run.finish({}).output("pin_texts")


def sample_run(store, texts, other, max_changed_fraction=0.25, settings=()):
    retrain_policy = RetrainPolicy(pin_texts=texts, inputs=("pin_texts",), max_changed_fraction=max_changed_fraction)
    return StageRun(
        "sample", make_config(), store, 1, settings=list(settings), inputs=[texts, other], retrain_policy=retrain_policy
    )


FOUR = {"a": "cup", "b": "mug", "c": "shoe", "d": "hat"}


@pytest.mark.parametrize(
    ("now", "kept"),
    [
        (FOUR | {"a": "red cup"}, True),
        (FOUR | {"e": "new"}, True),
        (FOUR | {"a": "red cup", "b": "blue mug"}, False),  # half of them
        ({"a": "cup", "b": "mug", "c": "shoe"}, False),  # what was made may name the pin that is gone
    ],
)
def test_few_changed_pins_keep_what_was_learned(store, ingest, now, kept):
    """Else one new picture would cost a new teacher, all labels, and all embeddings."""
    made = finish(sample_run(store, texts_output(store, "enrich", FOUR), ingest))
    found = sample_run(store, texts_output(store, "enrich2", now), ingest).finished
    assert (found == made) is kept


def test_small_changes_add_up(store, ingest):
    """Measured from what the model saw, not from yesterday: else it would never be made again."""
    finish(sample_run(store, texts_output(store, "enrich", FOUR), ingest))
    one, two = FOUR | {"a": "red cup"}, FOUR | {"a": "red cup", "b": "blue mug"}
    assert sample_run(store, texts_output(store, "enrich2", one), ingest).finished is not None
    assert sample_run(store, texts_output(store, "enrich3", two), ingest).finished is None


def test_drift_excuses_neither_settings_nor_other_inputs(store, ingest):
    texts = texts_output(store, "enrich", FOUR)
    finish(sample_run(store, texts, ingest))
    changed = texts_output(store, "enrich2", FOUR | {"a": "red cup"})
    other = Output(name="pins", path="", files=[], rows=0, content_hash="other")
    assert sample_run(store, changed, ingest, settings=["new"]).finished is None
    assert sample_run(store, changed, other).finished is None


def test_a_view_has_what_the_run_has_until_it_makes_its_own(store, ingest):
    made = finish(enrich(store, [ingest]))
    variant = Storage(store.uri, "text_features/caption")
    assert require_output(variant, "enrich", "pin_texts") == made.output("pin_texts")
    other = make_config(enrich={"top_boards": 1})
    own = finish(enrich(variant, [ingest], cfg=other))
    assert read_manifest(variant, "enrich") == own
    assert read_manifest(store, "enrich") == made, "an arm of an experiment must not change the run"


def test_a_view_takes_over_what_the_run_or_another_view_has_made(store, ingest):
    """Nothing is trained twice: two experiments may share an arm, and an arm may be the run."""
    other = make_config(enrich={"top_boards": 1})
    of_run, of_variant = finish(enrich(store, [ingest])), finish(enrich(Storage(store.uri, "a/x"), [ingest], cfg=other))
    for cfg, made in ((make_config(), of_run), (other, of_variant)):
        variant = Storage(store.uri, "b/y")
        assert enrich(variant, [ingest], cfg=cfg).finished == made
        assert read_manifest(variant, "enrich") == made


def test_a_view_takes_over_nothing_by_drift(store, ingest):
    """A variant that changes few pins would take over the run's own model, and be compared with itself."""
    made = finish(sample_run(store, texts_output(store, "enrich", FOUR), ingest))
    variant = Storage(store.uri, "text_features/boards")
    changed = sample_run(variant, texts_output(variant, "enrich2", FOUR | {"a": "red cup"}), ingest)
    assert changed.finished is None
    own = finish(changed)
    assert changed.finished == own
    other = Storage(store.uri, "text_features/other")
    assert sample_run(other, texts_output(other, "enrich4", FOUR | {"b": "old mug"}), ingest).finished is None
    assert sample_run(other, texts_output(other, "enrich5", FOUR), ingest).finished == made


def test_what_a_view_made_itself_may_drift_with_the_catalogue_but_not_by_its_settings(store, ingest):
    """One new picture is no reason to train a variant again; another variant of the same name is."""
    variant = Storage(store.uri, "text_features/boards")
    own = finish(sample_run(variant, texts_output(variant, "enrich", FOUR), ingest))
    now = texts_output(variant, "enrich2", FOUR | {"a": "red cup"})
    assert sample_run(variant, now, ingest).finished == own
    other = sample_run(variant, now, ingest)
    other.cfg = make_config(enrich={"top_boards": 1})
    assert other.finished is None


def test_the_run_takes_over_nothing_from_views(store, ingest):
    """What a run publishes hangs on its own manifests alone; nor by drift."""
    variant = Storage(store.uri, "a/x")
    finish(enrich(variant, [ingest]))
    finish(sample_run(variant, texts_output(variant, "enrich2", FOUR), ingest))
    assert enrich(store, [ingest]).finished is None
    assert sample_run(store, texts_output(store, "enrich3", FOUR | {"a": "red cup"}), ingest).finished is None


def test_a_view_travels_to_other_processes(store):
    assert pickle.loads(pickle.dumps(Storage(store.uri, "a/x"))).variant == "a/x"
