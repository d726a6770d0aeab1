"""The arms must differ from the run's own models in one thing each, or the tables say nothing."""

import pytest
from pydantic import ValidationError

from ray_app.config import Config
from ray_app.lessons.arms import LABEL_SCALING, TEXT_FEATURES, arms_of, longer


def make_config(lessons, **teach):
    return Config.model_validate(
        {
            "output": "runs/x",
            "ingest": {"pins": {"adapter": "table", "path": "pins.csv"}},
            "features": {"zero_shot_model": "m"},
            "teach": {"base_model": "m", "use_features": False, **teach},
            "distill": {"base_model": "m"},
            "lessons": lessons,
        }
    )


def test_a_text_arm_reads_its_fields_only_in_the_order_of_the_run():
    cfg = make_config({"text_features": [["caption", "title"]]})
    (arm,) = arms_of(cfg)
    assert arm.lesson == TEXT_FEATURES
    assert arm.cfg.pin_text.fields == ["title", "caption"]
    assert arm.cfg.model_copy(update={"pin_text": cfg.pin_text}) == cfg


def test_a_row_is_named_by_what_it_adds():
    cfg = make_config({"text_features": [["caption"], ["caption", "title", "link_text"], ["title"]]})
    assert [arm.name for arm in arms_of(cfg)] == ["caption", "+ title, link text", "title"]


def test_label_arms_start_with_humans_alone_and_grow():
    arms = arms_of(make_config({"label_multiples": [20, 5]}))
    assert [(arm.lesson, arm.multiple) for arm in arms] == [(LABEL_SCALING, 0), (LABEL_SCALING, 5), (LABEL_SCALING, 20)]


def test_no_two_arms_share_a_folder():
    arms = arms_of(make_config({"text_features": [["caption"], ["caption", "title"]], "label_multiples": [5, 50]}))
    assert len({arm.slug for arm in arms}) == len(arms) == 5


def test_features_that_see_every_field_are_refused():
    """BM25 over titles beside a teacher that "reads captions only" would make the table a lie."""
    with pytest.raises(ValidationError, match=r"teach\.use_features"):
        make_config({"text_features": [["caption"]]}, use_features=True)


@pytest.mark.parametrize(("pairs", "times"), [(1000, 1), (500, 2), (10, 8)])
def test_a_student_with_fewer_pairs_may_look_at_them_more_often(pairs, times):
    cfg = make_config({})
    assert longer(cfg, pairs, 1000).distill.train.epochs == times * cfg.distill.train.epochs
