"""The checked-in model must read the pictures: all captions of the demo are its own words."""

from pathlib import Path

import pytest

from ray_app.demo import vlm
from ray_app.demo.concepts import Concept

FOLDER = Path(vlm.__file__).parent / "models" / "vlm"
UNSEEN = 77_000_000  # a seed that no training run with a small --seed reaches


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(FOLDER).eval(), AutoProcessor.from_pretrained(FOLDER)


def test_it_names_object_and_colour_of_unseen_pictures(model):
    assert vlm.measure(*model, count=200, first_seed=UNSEEN)["object_and_colour"] >= 0.95


def test_the_demo_models_stay_small_enough_for_a_repository():
    files = [path for path in FOLDER.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl"}]  # only safetensors hold weights


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("a red hot air balloon by a lake", {"object", "colour", "setting", "caption"}),
        ("a red balloon by a lake", {"colour", "setting"}),
        ("a blue hot air balloon by a lake", {"object", "setting"}),
        ("a red hot air balloon in a city", {"object", "colour"}),
        ("a hot", set()),
    ],
)
def test_the_measure_counts_each_part_of_a_caption(said, right):
    """A measure that is always content would have let a blind model through."""
    found = vlm._right(Concept("hot_air_balloon", "red", "solo", "boho", "lake"), said)
    assert {name for name in ("object", "colour", "setting", "caption") if found[name]} == right
    assert found["object_and_colour"] == ({"object", "colour"} <= right)
