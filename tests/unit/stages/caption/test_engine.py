"""The recipe, and the captioner on a tiny model."""

import io

import pytest
from caption_world import make_config, picture
from PIL import Image
from tiny_models import save_tiny_vlm

from ray_app.base.errors import UserError
from ray_app.stages.caption.engine import Answer, TransformersCaptioner, caption_recipe


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return str(save_tiny_vlm(tmp_path_factory.mktemp("vlm")))


@pytest.fixture(scope="module")
def captioner(vlm):
    return TransformersCaptioner(make_config("x", model=vlm).caption, 1)


def pictures(*numbers):
    return [Image.open(io.BytesIO(picture(number, size=32 + 4 * number))).convert("RGB") for number in numbers]


def test_a_batch_says_what_single_pictures_say(captioner):
    """Padding, order or neighbours must not reach the caption."""
    wanted = pictures(1, 2, 3, 4, 5)
    together = captioner.caption(wanted)
    assert together == [captioner.caption([image])[0] for image in wanted]
    assert len(set(together)) >= 4


def test_a_refused_picture_costs_its_own_row(captioner, monkeypatch):
    good = captioner.caption(pictures(1, 2))
    plain = captioner.caption

    def caption(batch):
        if any(image.width == 1 for image in batch):
            raise ValueError("mean must have 1\nelements")
        return plain(batch)

    monkeypatch.setattr(captioner, "caption", caption)
    first, second = pictures(1, 2)
    answers = captioner.answer([first, Image.new("RGB", (1, 1)), second])
    assert [answer.text for answer in answers] == [good[0], None, good[1]]
    assert answers[1] == Answer(text=None, error="engine: ValueError: mean must have 1 elements")
    assert captioner.answer([]) == []


def test_what_decides_a_caption_is_in_the_recipe_and_what_does_not_is_not(vlm):
    def recipe(**values):
        return caption_recipe(make_config("x", model=vlm, **({"dtype": "float32"} | values)).caption)

    same = [recipe(backend="vllm"), recipe(batch_size=9, num_actors=3), recipe(limits={"timeout_sec": 1})]
    other = [recipe(prompt="What?"), recipe(max_new_tokens=9), recipe(dtype="bfloat16"), recipe(max_chars=9),
             recipe(limits={"max_side": 9})]  # fmt: skip
    assert set(same) == {recipe()}
    assert len({recipe(), *other}) == 6


def test_other_weights_are_another_recipe(tmp_path, vlm):
    import shutil

    copy = tmp_path / "vlm"
    shutil.copytree(vlm, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    configs = [make_config("x", model=model).caption for model in (vlm, str(copy))]
    assert caption_recipe(configs[0]) != caption_recipe(configs[1])


def test_a_text_model_is_refused(tiny_decoder):
    with pytest.raises(UserError, match=r"caption\.model"):
        TransformersCaptioner(make_config("x", model=tiny_decoder).caption, 1)
