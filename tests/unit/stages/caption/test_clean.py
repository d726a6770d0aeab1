"""clean_caption: what models say besides the caption."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.stages.caption.clean import STEPS, clean_caption

PROMPT = "Describe the picture."


def clean(text, max_chars=300):
    return clean_caption(text, PROMPT, max_chars)


@pytest.mark.parametrize(
    "text",
    ["a red sofa in a living room", "Ein rotes Sofa.", "赤いソファのあるリビング", "एक लाल सोफ़ा", "New York New York at night",
     "very very small cups", "no picture frames on a wall", "We see a red cup.", "a man who cannot see"],
)  # fmt: skip
def test_a_good_caption_is_left_alone(text):
    assert (clean(text).caption, clean(text).steps) == (text, ())


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("  a red\n\tsofa  ", "a red sofa"),
        ("a red\u200bsofa\x00", "a red sofa"),
        ("ａ ｒｅｄ sofa", "a red sofa"),
    ],
)
def test_spaces_and_compatibility_forms(text, caption):
    assert (clean(text).caption, clean(text).steps) == (caption, ())


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>assistant\na red sofa<|im_end|>", "Assistant: a red sofa", "a red sofa</s><pad><pad>",
     "a red sofa<end_of_utterance>\nUser: and now?", "<row_1_col_2>a red sofa", "Caption: a red sofa"],
)  # fmt: skip
def test_leftovers_of_the_chat_template(text):
    assert clean(text).caption in ("a red sofa", "assistant a red sofa")
    assert clean(text).steps == ("template",)


def test_an_echo_of_the_prompt():
    assert clean("Describe the picture. a red sofa").caption == "a red sofa"
    assert clean("describe the picture. Describe the picture. a red sofa").steps == ("prompt_echo",)


@pytest.mark.parametrize(
    "text",
    ["I'm sorry, but I can't help with that.", "I\u2019m sorry, I cannot see the image.", "As an AI, I cannot see.",
     "I am unable to view images.", "Sorry, I can't describe people.", "I cannot identify the person in the picture.",
     "No image was provided.", "I don't have access to the picture."],
)  # fmt: skip
def test_a_refusal_is_an_error(text):
    """Else every refused pin would be found by `sorry`."""
    found = clean(text)
    assert found.caption is None
    assert (found.error or "").startswith("refusal: ")
    assert found.steps == ("refusal",)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("a red sofa a red sofa a red sofa", "a red sofa"),
        ("a red sofa and a red sofa and a red sofa and a", "a red sofa"),
        ("a cup, a cup, a cup, a cup", "a cup"),
        ("red red red red", "red"),
        ("A red sofa. A red sofa. a red sofa.", "A red sofa."),
        ("A red sofa. It is big. A red sofa.", "A red sofa. It is big."),
        ("a room with a lamp with a lamp with a lamp and a rug", "a room with a lamp and a rug"),
        ("赤いソファ赤いソファ赤いソファ", "赤いソファ"),
        ("赤いソファ。赤いソファ。", "赤いソファ。"),
    ],
)
def test_repetition_is_said_once(text, caption):
    assert clean(text).caption.rstrip(",") == caption
    assert clean(text).steps == ("repetition",)


def test_a_long_caption_ends_with_a_sentence():
    found = clean("A red sofa in a room. There is a lamp. The lamp is green and very tall.", 45)
    assert (found.caption, found.steps) == ("A red sofa in a room. There is a lamp.", ("cut",))


def test_a_long_sentence_ends_with_a_word_that_can_stand_last():
    found = clean("a red sofa beside a green lamp in the corner of a room", 33)
    assert (found.caption, found.steps) == ("a red sofa beside a green lamp", ("cut",))


def test_text_without_spaces_is_cut_too():
    assert clean("赤青黄緑黒白紫橙茶桃金銀", 5).caption == "赤青黄緑黒"


@pytest.mark.parametrize("text", ["", "   ", "<pad><pad>", "...", PROMPT, "!?"])
def test_nothing_said_is_an_error(text):
    found = clean(text)
    assert (found.caption, found.error) == (None, "empty: the model said nothing")
    assert found.steps[-1] == "empty"


@given(st.text(max_size=400), st.integers(5, 100))
def test_any_text_gives_a_short_line_or_an_error(text, max_chars):
    found = clean_caption(text, PROMPT, max_chars)
    assert (found.caption is None) != (found.error is None)
    assert set(found.steps) <= set(STEPS)
    if found.caption is not None:
        assert 0 < len(found.caption) <= max_chars
        assert found.caption.splitlines() == [found.caption] == [found.caption.strip()]


@given(st.lists(st.sampled_from("a red sofa and lamp with".split()), max_size=30))
def test_cleaning_twice_changes_nothing_that_ends_up_empty(words):
    once = clean(" ".join(words)).caption
    if once is not None:
        assert clean(once).caption is not None


def test_a_huge_answer_takes_no_time():
    import time

    began = time.monotonic()
    clean("ab" * 50_000)
    clean("a b c d " * 20_000)
    clean("".join(chr(97 + i % 23) for i in range(100_000)))
    assert time.monotonic() - began < 5
