"""Configs: a typo must be named, and what a user sets must be what runs."""

from pathlib import Path

import pytest
from minimal import message as refusal

from ray_app.base.config import TeacherConfig, load_config, section_hash
from ray_app.base.errors import UserError

MINIMAL = """
output: runs/x
ingest: {pins: {adapter: table, path: pins.csv}}
features: {zero_shot_model: m}
train_teacher: {base_model: m}
distill: {base_model: m}
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def minimal(write):
    return write("base.yaml", MINIMAL)


def message(path, overrides=()):
    return refusal(lambda: load_config(path, list(overrides)))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        # A typo that is accepted trains with the default and nobody notices.
        (["otput=3"], "'output'"),
        (["label.batchsize=3"], "'label.batch_size'"),
        (["train_teacher.train.epoch=3"], "'train_teacher.train.epochs'"),
        (["ingest.pins.colums=3"], "'ingest.pins.columns'"),
        (["ingest.limits.max_querychars=3"], "'ingest.limits.max_query_chars'"),
        (["ingest.search_log={adapter: ubi, path: x, locael: de-DE}"], "'ingest.search_log.locale'"),
        (["label.zzzzzz=1"], "'label.zzzzzz'"),
        (["label.batch_size=many"], "'label.batch_size'"),
        (["ingest.pins.adapter=tabel"], "'ingest.pins'"),
        # A learning rate of infinity passes `> 0` and destroys the model at the first step.
        (["train_teacher.train.learning_rate=.inf"], "'train_teacher.train.learning_rate'"),
        (["train_teacher.train.learning_rate=.nan"], "'train_teacher.train.learning_rate'"),
        # A query under evaluation was taken out of the pins' texts and stayed in their vectors.
        (["features.zero_shot_fields=[title, engaged_queries]"], "'features.zero_shot_fields'"),
        (["train_teacher.test_fraction=0.9", "train_teacher.validation_fraction=0.1"], "train_teacher.test_fraction"),
        (["label.backend=vllm", "label.tensor_parallel=4", "label.num_gpus=1"], "num_gpus must be tensor_parallel x pipeline_parallel = 4, not 1"),
        (["label.pipeline_parallel=2"], "need backend: vllm"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named_or_its_nearest(minimal, overrides, named):
    assert named in message(minimal, overrides)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "mapping"),
        ("", "mapping"),
        (MINIMAL.replace("train_teacher: {base_model: m}", "train_teacher: {}"), "'train_teacher.base_model'"),
        (MINIMAL + "label: {seed: 2}\nlabel: {seed: 3}\n", "'label'"),  # YAML's last one would win in silence
        ("extends: nowhere.yaml\n", "nowhere.yaml"),
        ("extends: b.yaml\n", "circle"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line(write, text, what):
    write("b.yaml", "extends: a.yaml\n")
    assert what in message(write("a.yaml", text))


def test_a_config_that_does_not_exist_is_one_line(tmp_path):
    assert "does not exist" in message(tmp_path / "a.yaml")


# --- overrides ---


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("seed=3", lambda c: c.seed, 3),
        ("train_teacher.train.learning_rate=2e-5", lambda c: c.train_teacher.train.learning_rate, 2e-5),
        ("pin_text.fields=[title, caption]", lambda c: c.pin_text.fields, ["title", "caption"]),
        ("train_teacher.revision=null", lambda c: c.train_teacher.revision, None),
        ("train_teacher.revision=", lambda c: c.train_teacher.revision, None),
        ("evaluate.human_labels=a=b.csv", lambda c: c.evaluate.human_labels, "a=b.csv"),
        ("features.external_embeddings.sage=8", lambda c: c.features.external_embeddings, {"sage": 8}),
        ("output=s3://b/p?region=us-east-1&scheme=http", lambda c: c.output, "s3://b/p?region=us-east-1&scheme=http"),
    ],
)
def test_override_sets_the_value(minimal, override, read, value):
    assert read(load_config(minimal, [override])) == value


def test_the_last_override_wins(minimal):
    assert load_config(minimal, ["seed=1", "seed=2"]).seed == 2


def test_an_override_reaches_into_what_another_config_set(write, minimal):
    child = write("child.yaml", "extends: base.yaml\nlabel: {batch_size: 8, num_actors: 3}\n")
    label = load_config(child, ["label.batch_size=9"]).label
    assert (label.batch_size, label.num_actors) == (9, 3)


@pytest.mark.parametrize("override", ["seed", "=3", "output.x=1", "a..b=1", "seed=[1"])
def test_a_malformed_override_is_one_line(minimal, override):
    assert override.partition("=")[0] in message(minimal, [override])


# --- extends ---


def test_extends_merges_section_by_section(write, minimal):
    child = write("child.yaml", "extends: base.yaml\nseed: 5\ntrain_teacher: {hidden_dim: 7}\n")
    cfg = load_config(child)
    assert (cfg.seed, cfg.train_teacher.hidden_dim, cfg.train_teacher.base_model) == (5, 7, "m")


def test_extends_replaces_a_source_of_another_adapter(write, minimal):
    """Merged, the parent's column map would be an unknown key of the child's Chorus source."""
    write("parent.yaml", MINIMAL.replace("path: pins.csv", "path: pins.csv, columns: {pin_id: id}"))
    child = write("child.yaml", "extends: parent.yaml\ningest: {pins: {adapter: chorus, path: data}}\n")
    assert load_config(child).ingest.pins.adapter == "chorus"


def test_extends_is_relative_to_the_file_that_says_it(write, minimal, tmp_path):
    (tmp_path / "deep").mkdir()
    child = write("deep/child.yaml", "extends: ../base.yaml\n")
    assert load_config(child).output == "runs/x"


# --- hashes ---


def test_equal_settings_have_equal_hashes_whatever_file_they_came_from_and_others_another(write, minimal):
    child = write("child.yaml", "extends: base.yaml\nlabel: {batch_size: 8}\n")
    assert section_hash(load_config(child)) == section_hash(load_config(minimal, ["label.batch_size=8"]))
    assert section_hash(load_config(child)) != section_hash(load_config(minimal))


def test_sections_do_not_run_into_each_other():
    assert section_hash("ab", "c") != section_hash("a", "bc")


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (Path(__file__).parents[3] / "configs").glob("[!b]*.yaml"))
)
def test_every_config_that_comes_with_the_project_is_valid(name):
    load_config(Path(__file__).parents[3] / "configs" / name)


def test_the_number_of_training_workers_is_no_part_of_a_models_recipe() -> None:
    """A run means the same on any number of workers, so a bigger cluster must train nothing again."""
    one = TeacherConfig(base_model="x")
    assert one.recipe == one.model_copy(update={"num_workers": 8, "min_workers": 2, "use_gpu": True}).recipe
    assert one.recipe != one.model_copy(update={"dropout": 0.5}).recipe


def test_logs_and_checkpoints_are_no_part_of_a_models_recipe() -> None:
    logs = {"logging_steps": 3, "checkpoint_interval_sec": 1, "report_to": ["tensorboard"]}
    pretrain = {"train": {"epochs": 1}}
    one = TeacherConfig.model_validate({"base_model": "x", "pretrain": pretrain})
    other = {"base_model": "x", "train": logs, "pretrain": {"train": {"epochs": 1} | logs}}
    assert one.recipe == TeacherConfig.model_validate(other).recipe
    assert one.recipe != TeacherConfig.model_validate(other | {"train": {"epochs": 9}}).recipe


def test_a_source_without_an_adapter_is_told_which_there_are(write):
    path = write("a.yaml", MINIMAL.replace("adapter: table, ", "", 1))
    with pytest.raises(UserError, match=r"'ingest.pins': 'adapter' is missing.*: chorus, table, ubi"):
        load_config(path)


def test_a_config_that_comes_with_the_package_is_found_by_its_name(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("demo.yaml").demo is not None
    assert load_config("configs/demo.yaml", ["output=x"]).output == "x"
    mine = write("mine.yaml", "extends: base.yaml\noutput: run\ningest: {pins: {adapter: table, path: p.csv}}\n")
    tree = {"extends": "base.yaml", "output": "run", "ingest": {"pins": {"adapter": "table", "path": "p.csv"}}}
    assert load_config(mine) == load_config(tree) and "extends" in tree
    write("base.yaml", "seed: 5\nextends: demo.yaml\n")
    assert load_config(mine).seed == 5, "a file beside it goes first"
    with pytest.raises(UserError, match=r"configs/absent.yaml does not exist; .*base.yaml.*demo.yaml"):
        load_config("configs/absent.yaml")


@pytest.mark.parametrize("adapter", ["ubi", "chorus"])
def test_a_locale_is_held_in_its_one_spelling(write, adapter):
    path = write(
        "l.yaml", MINIMAL.replace("}}", f"}}, search_log: {{adapter: {adapter}, path: x, locale: zh_hant_tw}}}}", 1)
    )
    assert load_config(path).ingest.search_log.locale == "zh-Hant-TW"
    assert load_config(path, ["ingest.pins.constants={locale: en_us}"]).ingest.pins.constants == {"locale": "en-US"}


def test_a_ubi_log_of_no_locale_is_not_one_of_the_united_states(write):
    path = write("u.yaml", MINIMAL.replace("}}", "}, search_log: {adapter: ubi, path: x}}", 1))
    assert load_config(path).ingest.search_log.locale == "und"


def test_what_is_no_locale_names_its_key(write):
    bad = write("b.yaml", MINIMAL.replace("}}", "}, search_log: {adapter: ubi, path: x, locale: english}}", 1))
    assert "ingest.search_log.locale" in message(bad) and "BCP 47" in message(bad)
    fine = write("m.yaml", MINIMAL)
    for value, told in (("english", "'english' is not a BCP 47"), ("no", "put it in quotes")):
        said = message(fine, [f"ingest.pins.constants={{locale: {value}}}"])
        assert "ingest.pins.constants" in said and told in said
