"""Texts that are cut must be counted: a field that no model has read adds nothing, and nothing else shows it."""

import logging

import numpy as np
import pyarrow as pa
import pytest
from minimal import make_config

from ray_app.base.config import Config
from ray_app.base.text import render_pin_text
from ray_app.models import truncation
from ray_app.models.cross_encoder import CrossEncoder
from ray_app.models.head import FeatureScaler
from ray_app.models.model_sources import load_tokenizer
from ray_app.models.tokens import token_rows
from ray_app.models.truncation import describe, measure, student_truncation, teacher_truncation, zero_shot_truncation

# A word is a token: `red cup.` is two, since the tokenizer splits at blanks only.
PINS = pa.table(
    {
        "title": ["red cup", "blue mug", "green shoe", "usb hub", None],
        "description": ["the red cup", "a blue mug for the small cup", None, "black usb cable for the laptop", "a large cup"],
        "board_titles": [["red", "blue mug"], None, ["shoe", "mug", "cup", "red"], ["hub"], None],
    }
)  # fmt: skip


@pytest.fixture
def models(tiny_encoder, tiny_decoder):
    return {"encoder": tiny_encoder, "decoder": tiny_decoder}


def config(model, max_tokens, **more):
    base = {"base_model": model}
    plain = {
        "pin_text": {"fields": ["title", "description", "board_titles"]},
        "features": {"zero_shot_model": model, "zero_shot_max_tokens": max_tokens},
        "train_teacher": base | {"max_tokens": max_tokens}, "distill": base | {"max_pin_tokens": max_tokens},
    }  # fmt: skip
    return make_config(**plain | more)


def rendered(cfg: Config) -> list[str]:
    return [render_pin_text(row, cfg.pin_text) for row in PINS.to_pylist()]


@pytest.mark.parametrize("max_tokens", [3, 6, 7, 10, 12, 40])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_what_is_said_to_be_cut_is_what_the_models_cut(models, kind, max_tokens):
    cfg = config(models[kind], max_tokens)
    tokenizer, _ = load_tokenizer(models[kind])
    texts = rendered(cfg)
    whole, cut = (token_rows(tokenizer, texts, limit) for limit in (64, max_tokens))
    share = np.mean([len(a) != len(b) for a, b in zip(whole, cut, strict=True)])
    assert student_truncation(cfg, PINS, np.arange(5))["cut_share"] == pytest.approx(share)

    teacher = CrossEncoder.from_base(cfg.train_teacher, FeatureScaler(np.zeros(0), np.ones(0)))
    whole_teacher = CrossEncoder.from_base(
        config(models[kind], 64).train_teacher, FeatureScaler(np.zeros(0), np.ones(0))
    )
    queries, index = ["cup", "red mug", "usb hub"], np.array([0, 1, 3])
    pairs = [model.preparer.pair_ids(queries, [texts[i] for i in index]) for model in (whole_teacher, teacher)]
    share = np.mean([a.pin[1] - a.pin[0] != b.pin[1] - b.pin[0] for a, b in zip(*pairs, strict=True)])
    assert teacher_truncation(cfg, PINS, index, queries)["cut_share"] == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize("max_tokens", [6, 9, 12])
def test_a_prompt_takes_its_tokens_from_the_pins_text(models, max_tokens):
    cfg, prompt = config(models["encoder"], max_tokens), "the large "
    tokenizer, _ = load_tokenizer(models["encoder"])
    long, cut = (token_rows(tokenizer, [prompt + text for text in rendered(cfg)], limit) for limit in (64, max_tokens))
    share = np.mean([len(a) != len(b) for a, b in zip(long, cut, strict=True)])
    distill = cfg.distill.model_copy(update={"pin_prompt": prompt})
    features = cfg.features.model_copy(
        update={"zero_shot_pin_prompt": prompt, "zero_shot_fields": ["title", "description", "board_titles"]}
    )
    prompted = cfg.model_copy(update={"distill": distill, "features": features})
    plain = student_truncation(config(models["encoder"], max_tokens - 2), PINS, np.arange(5))
    for found in (student_truncation(prompted, PINS, np.arange(5)), zero_shot_truncation(prompted, PINS)):
        assert found["cut_share"] == pytest.approx(share)
        assert found["fields"] == plain["fields"]
        assert found["tokens"]["p99"] == plain["tokens"]["p99"] + 2


def test_each_field_is_read_in_part_or_not_at_all(models):
    """Seven tokens, two of them special: `red cup. the red | cup. red, ...`: the boards of the first pin are never read."""
    found = student_truncation(config(models["encoder"], 7), PINS, np.arange(5))
    assert found["fields"] == {
        "title": {"has_share": 0.8, "cut_share": 0.0, "unread_share": 0.0},  # 4 of 5 have one
        "description": {"has_share": 0.8, "cut_share": 0.5, "unread_share": 0.0},  # `usb ...`, `blue ...`
        "board_titles": {"has_share": 0.6, "cut_share": 0.3333, "unread_share": 0.6667},
    }
    assert (found["cut_share"], found["inputs"], found["num_inputs"]) == (0.8, "pins", 5)


def test_the_suggested_length_is_the_95th_percentile_rounded_up(models):
    tokenizer, _ = load_tokenizer(models["encoder"])
    pins = [[("title", "", " ".join(["cup"] * n))] for n in range(1, 101)]
    found = measure(tokenizer, pins, np.arange(100), np.full(100, 2), 20, "k", "pins", 512)
    assert found["cut_share"] == 0.82  # 18 words fit
    assert found["tokens"] == {"median": 52, "p95": 97, "p99": 101}
    assert (found["suggested"], found["suggested_cut_share"]) == (104, 0.0)
    few = measure(tokenizer, pins, np.arange(100), np.full(100, 2), 20, "k", "pins", 50)
    assert few["suggested"] == 48  # it has no more


def test_a_query_takes_its_part_of_a_pair(models):
    cfg = config(models["encoder"], 11)  # of which three are special, and six the pin's
    short, long = (teacher_truncation(cfg, PINS, np.array([2]), [query]) for query in ("cup", "the red cup and a mug"))
    assert (short["cut_share"], long["cut_share"]) == (0.0, 1.0)
    assert long["tokens"]["median"] == short["tokens"]["median"] + 5


def test_much_is_warned_of_with_the_key_and_the_value_that_helps(models, caplog):
    caplog.set_level(logging.WARNING)
    assert student_truncation(config(models["encoder"], 16), PINS, np.arange(5))["cut_share"] == 0
    assert not caplog.records
    zero_shot_truncation(config(models["encoder"], 7, pin_text={"fields": ["title", "description"]}), PINS)
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("features.zero_shot_max_tokens: 40% of the pins are cut at 7 tokens, description cut in 50%")
    assert said.endswith("features.zero_shot_max_tokens: 16 would cut 0%")


def test_a_large_catalogue_is_sampled_and_says_so_and_an_empty_one_is_no_error(models, monkeypatch):
    monkeypatch.setattr(truncation, "MAX_INPUTS", 3)
    cfg = config(models["encoder"], 7)
    found = student_truncation(cfg, PINS, np.arange(5))
    assert (found["num_measured"], found["num_inputs"]) == (3, 5)
    assert found == student_truncation(cfg, PINS, np.arange(5))  # the same sample each time
    assert describe(teacher_truncation(cfg, PINS, np.zeros(0, np.int64), [])) == "no text was measured"
