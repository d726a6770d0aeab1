"""Pictures must show what the truth says, or captions and truth are about different worlds."""

import io

import numpy as np
import pytest
from PIL import Image

from ray_app.demo.concepts import CATEGORY_OF, COLOURS, OBJECTS, SETTINGS, Concept, colours_of
from ray_app.demo.render_images import RGB_OF, draw_image, image_bytes_of


def concept(obj="sofa", colour="red", setting="garden", material="wood", style="modern"):
    return Concept(object=obj, colour=colour, material=material, style=style, setting=setting)


def pixels(shown, seed=0, size=64):
    return np.asarray(draw_image(shown, np.random.default_rng(seed), size), float)


@pytest.mark.parametrize("obj", OBJECTS)
def test_every_object_shows_its_colour_more_than_any_other_picture_of_it_does(obj):
    """Of one drawing in all its colours, each picture must be the nearest to its own colour."""
    colours = colours_of(obj)
    place = SETTINGS[CATEGORY_OF[obj]][0]
    near = np.array(
        [
            [(np.abs(pixels(concept(obj, shown, place)) - RGB_OF[asked]).max(-1) < 20).mean() for asked in colours]
            for shown in colours
        ]
    )
    assert (near.argmax(0) == np.arange(len(colours))).all()


def test_a_picture_is_the_same_for_the_same_seed_and_another_for_another():
    assert image_bytes_of(concept(), np.random.default_rng(1)) == image_bytes_of(concept(), np.random.default_rng(1))
    assert image_bytes_of(concept(), np.random.default_rng(1)) != image_bytes_of(concept(), np.random.default_rng(2))


def test_what_can_only_be_read_leaves_no_trace():
    """A caption model that could see the style would make the boards' titles worthless."""
    plain, other = concept(), concept(material="velvet", style="festive")
    assert (pixels(plain) == pixels(other)).all()


@pytest.mark.parametrize("place", sorted({place for places in SETTINGS.values() for place in places}))
def test_settings_differ(place):
    category = next(category for category, places in SETTINGS.items() if place in places)
    obj = next(obj for obj in OBJECTS if CATEGORY_OF[obj] == category)
    others = [other for other in SETTINGS[category] if other != place]
    here = pixels(concept(obj, setting=place))
    assert all(np.abs(here - pixels(concept(obj, setting=other))).mean() > 5 for other in others)


@pytest.mark.parametrize("size", [32, 128])
def test_the_file_is_a_small_png_of_the_size_asked_for(size):
    data = image_bytes_of(concept(), np.random.default_rng(0), size)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (size, size))
    assert len(data) < 15_000


def test_all_colours_have_their_paint():
    assert set(RGB_OF) == set(COLOURS)
