"""The arms of an experiment must differ from the run in what they say and in nothing else, or the tables say nothing."""

import pytest
from tiny_config import tiny_config

from ray_app.analysis.experiment.spec import ExperimentSpec, load_experiment
from ray_app.analysis.experiment.variants import trainings_of
from ray_app.base.errors import UserError

CFG = tiny_config("runs/x", seed=17)
RUN = {"name": "the run"}


def make_spec(*variants, **settings):
    return ExperimentSpec.model_validate({"base": "x.yaml", "title": "t", "variants": list(variants)} | settings)


def test_an_arm_differs_from_the_run_in_its_keys_alone():
    spec = make_spec({"name": "caption", "set": {"pin_text.fields": ["caption"]}}, RUN, system="teacher")
    variant, run = trainings_of("k", spec, CFG, [])
    assert variant.cfg.pin_text.fields == ["caption"]
    assert variant.cfg.model_copy(update={"pin_text": CFG.pin_text}) == CFG
    assert (run.cfg, run.variant, run.stages) == (CFG, "", ())


@pytest.mark.parametrize(
    ("system", "key", "value", "stages"),
    [
        ("teacher", "train_teacher.num_layers", 2, ("train_teacher",)),
        ("student", "distill.train.loss", "hard", ("distill",)),
        ("student", "label.dtype", "float32", ("label", "distill")),
        ("student", "train_teacher.num_layers", 2, ("train_teacher", "sample", "label", "distill")),
        ("teacher", "enrich.top_boards", 1, ("enrich", "zero_shot", "corpus_statistics", "train_teacher")),
        ("teacher", "sample.until", "2024-02-01", ("enrich", "zero_shot", "corpus_statistics", "train_teacher")),
        (
            "teacher",
            "evaluate.human_labels",
            "other.csv",
            ("enrich", "zero_shot", "corpus_statistics", "train_teacher"),
        ),
        ("student", "sample.num_pairs", 10, ("sample", "label", "distill")),
        ("student", "pin_text.fields", ["title"], ("corpus_statistics", "train_teacher", "sample", "label", "distill")),
    ],
)
def test_stages_from_the_first_that_differs_to_the_one_that_trains(system, key, value, stages):
    """One too few gives an arm the run's tables in silence; one too many costs hours."""
    spec = make_spec({"name": "arm", "set": {key: value}}, RUN, system=system)
    assert trainings_of("k", spec, CFG, [])[0].stages == stages


def test_seeds_train_again_and_change_neither_split_nor_sample():
    spec = make_spec(RUN, {"name": "hard", "set": {"distill.train.loss": "hard"}}, seeds=[18, 17])
    trainings = trainings_of("k", spec, CFG, spec.seeds)
    assert [(t.name, t.cfg.distill.train.seed) for t in trainings] == [
        ("the run", None), ("the run", 18), ("hard", None), ("hard", 18),
    ]  # fmt: skip
    assert {t.cfg.seed for t in trainings} == {17}
    assert [t.stages for t in trainings] == [(), ("distill",), ("distill",), ("distill",)]
    assert len({t.variant for t in trainings}) == 4


def test_systems_without_training_have_one_seed():
    spec = make_spec({"name": "BM25", "system": "bm25"}, RUN)
    assert [t.name for t in trainings_of("k", spec, CFG, [18])] == ["BM25", "the run", "the run"]


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([("a", {"distill.train.los": "hard"}), ("the run", {})], "did you mean 'distill.train.loss'"),
        ([("a", {"serve.max_batch_size": 8}), ("the run", {})], "changes no student"),
        ([("a", {"seed": 3}), ("the run", {})], "cannot change 'seed'"),
        ([("hard", {"distill.train.loss": "hard"}), ("+ hard!", {"distill.train.loss": "kl"})], "more differently"),
    ],
    ids=["unknown key", "nothing of a student", "the seed", "one would overwrite the other"],
)
def test_arms_that_cannot_be_are_refused(variants, message):
    spec = make_spec(*({"name": name, "set": changed} for name, changed in variants))
    with pytest.raises(UserError, match=message):
        trainings_of("k", spec, CFG, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{base: x, title: t, variants: [{name: a}], system: teacher}", "at least two arms"),
        ("{base: x, title: t, variants: [{name: a}, {name: a}]}", "same name"),
        ("{base: x, title: t, compare_to: languages, variants: [{name: a}, {name: b}, {name: c}]}", "two arms"),
        ("{base: x, titel: t, arms: [{name: a}, {name: b}]}", "did you mean 'title'"),
        ("{base: x, title: t, variants: [{name: a}, {name: b, sets: {}}]}", "unknown key 'variants.1.sets'"),
    ],
)
def test_a_file_that_says_too_little_or_something_unknown_is_refused(tmp_path, text, message):
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_experiment(tmp_path / "e.yaml")
