"""Images of concepts: a flat-coloured object before a setting, a few milliseconds each.

Object, colour and setting can be seen; material and style leave no trace, so nothing can read them off the pixels.
"""

import io
from typing import Any

import numpy as np

from ray_app.demo.concepts import Concept
from ray_app.demo.drawings import AIRBORNE, DRAWINGS
from ray_app.demo.drawings.pen import RGB, Pen, mix, palette_of
from ray_app.demo.drawings.scenery import SCENES

RGB_OF: dict[str, RGB] = {
    "red": (214, 38, 40), "orange": (246, 132, 30), "yellow": (250, 212, 40), "green": (46, 156, 66),
    "blue": (42, 98, 214), "purple": (126, 58, 176), "pink": (250, 132, 182), "brown": (122, 76, 44),
    "black": (38, 38, 42), "white": (247, 247, 245),
}  # fmt: skip
SHIFT = 9  # of each channel, up or down: less than half the distance of any two colours
OVERSAMPLING = 2  # drawn twice as large and averaged: soft edges


def _shifted(colour: RGB, rng: np.random.Generator) -> RGB:
    moved = np.clip(np.asarray(colour) + rng.integers(-SHIFT, SHIFT + 1, 3), 0, 255)
    return int(moved[0]), int(moved[1]), int(moved[2])


def draw_image(concept: Concept, rng: np.random.Generator, size: int = 128) -> Any:
    """An image of a concept, the same for the same concept and generator state.

    Place, size, tilt and side of the object, its exact colour and the setting's details vary with `rng`.

    Returns:
        PIL image, RGB, size x size.
    """
    from PIL import Image, ImageDraw

    canvas = size * OVERSAMPLING
    image = Image.new("RGB", (canvas, canvas))
    draw = ImageDraw.Draw(image)
    whole = Pen(draw, {}, left=0, top=0, side=canvas, mirror=bool(rng.integers(2)))
    ground = SCENES[concept.setting](whole, rng)

    side = canvas * float(rng.uniform(0.54, 0.72))
    left = (canvas - side) * float(rng.uniform(0.2, 0.8))
    bottom = canvas * float(rng.uniform(0.88, 0.97))
    if concept.object in AIRBORNE:
        bottom -= canvas * 0.1
    else:
        flat = Pen(draw, {}, left=left, top=bottom - side, side=side)
        flat.oval(-0.04, 0.9, 1.04, 1.04, mix(ground, (40, 40, 50), 0.25))
    pen = Pen(
        draw, palette_of(_shifted(RGB_OF[concept.colour], rng)), left=left, top=bottom - side, side=side,
        mirror=bool(rng.integers(2)), degrees=float(rng.uniform(-6, 6)), stroke=max(1, round(canvas / 100)),
    )  # fmt: skip
    DRAWINGS[concept.object](pen)
    return image.reduce(OVERSAMPLING)


def image_bytes_of(concept: Concept, rng: np.random.Generator, size: int = 128) -> bytes:
    """`draw_image` as PNG."""
    stream = io.BytesIO()
    draw_image(concept, rng, size).save(stream, "PNG", compress_level=6)
    return stream.getvalue()
