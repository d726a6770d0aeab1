"""Pairs that the catalogue grades itself."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.base.config import PinTextConfig, PretrainConfig, TrainConfig
from ray_app.base.schemas import PIN_TEXTS
from ray_app.features.product_types import find_product_types, product_type_phrase
from ray_app.stages.train_teacher.pretrain import pseudo_labels


@pytest.mark.parametrize(
    ("title", "phrase"),
    [
        ("Intel 540 processor 1.86 GHz", "processor"),
        ("Beko HISW63 hob Stainless steel", "hob"),
        ("C2G 12ft Stereo M/M PC-99 audio cable 3.6 m", "audio cable"),
        ("LG 42LB LED TV cable for monitors", "LED TV cable"),
        ("Acer 19 W 1080 pixels monitor", "monitor"),
    ],
)
def test_the_phrase_names_the_kind(title: str, phrase: str) -> None:
    assert product_type_phrase(title) == (phrase, title.replace(f" {phrase}", "", 1).replace(" pixels", " pixels"))


@pytest.mark.parametrize("title", ["", "XEROX TONER BLACK", "Nokia 3310", "ノートパソコン 15 インチ", "for the to"])
def test_a_title_without_plain_words_has_no_phrase(title: str) -> None:
    assert product_type_phrase(title) is None


def catalogue() -> pa.Table:
    titles = [f"Brand X{i} {kind} Black" for kind in ("red cup", "usb cable", "usb cable kit") for i in range(4)]
    rows = [{"pin_id": str(i), "title": title, "description": f"item {i}"} for i, title in enumerate(titles)]
    return pa.Table.from_pylist(rows, schema=PIN_TEXTS)


def examples(masked_fraction: float = 0.5) -> list[tuple[str, str, int]]:
    pins = catalogue()
    typed = find_product_types(pins["title"].to_pylist(), min_pins=3)
    cfg = PretrainConfig(train=TrainConfig(), masked_fraction=masked_fraction)
    vectors = np.eye(3, 8, dtype=np.float32)  # the three kinds are unlike
    pin_vectors = np.repeat(vectors, 4, axis=0)
    made = pseudo_labels(pins, typed, vectors, pin_vectors, 2, PinTextConfig(), cfg, seed=1)
    grades = made.targets.argmax(1) + 1
    return list(zip(made.queries, made.pin_texts, grades.tolist(), strict=True))


def test_rare_phrases_are_noise() -> None:
    assert (
        find_product_types(["Brand X1 odd thing", "Brand X2 red cup", "Brand X3 red cup"], min_pins=2)[0].phrase
        == "red cup"
    )


def test_positives_are_of_the_kind_and_negatives_of_another() -> None:
    for phrase, text, grade in examples(masked_fraction=0.0):
        assert (f" {phrase} Black" in text) == (grade == 5)


def test_a_pin_of_a_broader_kind_is_no_wrong_answer() -> None:
    """ "usb cable" and "networking usb cable" share their head: one must not be taught as irrelevant to the other."""
    pins = catalogue()
    titles = [t.replace("usb cable kit", "long usb cable") for t in pins["title"].to_pylist()]
    pins = pins.set_column(1, "title", pa.array(titles))
    typed = find_product_types(titles, 3)
    vectors = np.eye(3, 8, dtype=np.float32)
    made = pseudo_labels(
        pins, typed, vectors, np.repeat(vectors, 4, axis=0), 0, PinTextConfig(), PretrainConfig(train=TrainConfig()), 1
    )
    wrong = {
        q
        for q, t, grade in zip(made.queries, made.pin_texts, made.targets.argmax(1), strict=True)
        if grade == 0 and "usb" in t and "usb" in q
    }
    assert wrong == set()


def test_masked_positives_do_not_say_the_phrase() -> None:
    positives = [(phrase, text) for phrase, text, grade in examples(masked_fraction=1.0) if grade == 5]
    assert positives
    assert not [text for phrase, text in positives if phrase in text]


def test_equal_seeds_give_equal_pairs() -> None:
    assert examples() == examples()
