"""decode: whatever the bytes, an RGB picture that looks as a browser shows it, or a reason."""

import struct
import zlib

import numpy as np
import pytest
from hostile_images import encode
from minimal import peak_bytes
from PIL import Image

from ray_app.base.config import ImageLimits
from ray_app.base.images.decode import ImageError, decode

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=1_000_000, max_side=64)
RED, WHITE = (255, 0, 0), (255, 255, 255)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def pixel(image, x=2, y=2):
    return tuple(int(v) for v in np.asarray(image)[y, x])


def near(found, expected, tolerance=12):
    return all(abs(a - b) <= tolerance for a, b in zip(found, expected, strict=True))


def code(data, limits=LIMITS):
    with pytest.raises(ImageError) as caught:
        decode(data, limits)
    assert str(caught.value).startswith(f"{caught.value.code}: ")
    return caught.value.code


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read(kind):
    image = decode(encode(Image.new("RGB", (20, 10), RED), kind), LIMITS)
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert near(pixel(image), RED)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_lies_on_white(mode):
    """Else what is hidden below, often black or noise, would be described."""
    layer = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    layer.paste((255, 0, 0, 255), (4, 0, 8, 8))
    if mode == "P":
        data = encode(layer, "GIF")
    elif mode == "PA":
        data = encode(layer.convert("P"), "PNG", transparency=layer.convert("P").getpixel((0, 0)))
    else:
        data = encode(layer.convert(mode))
    image = decode(data, LIMITS)
    assert pixel(image, 0, 0) == WHITE
    assert pixel(image, 6, 0) == ((76, 76, 76) if mode == "LA" else RED), "what is opaque keeps its colour"


def test_grey_of_16_bits_is_scaled_not_cut():
    """Pillow's own conversion would turn nearly all of it white."""
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    values[2, 2] = 200
    image = decode(encode(Image.fromarray(values)), LIMITS)
    assert pixel(image, 0, 0) == (0, 0, 0)
    assert near(pixel(image), (1, 1, 1), 1)
    assert near(pixel(image, 0, 4), (130, 130, 130))
    assert pixel(image, 7, 7) == WHITE


@pytest.mark.parametrize("top", [1.0, 255.0, 900.0])
def test_float_pixels(top):
    values = np.array([[0.0, top], [np.nan, top / 2]], np.float32)
    image = decode(encode(Image.fromarray(values, "F"), "TIFF"), LIMITS)
    assert [pixel(image, 0, 0)[0], pixel(image, 1, 0)[0], pixel(image, 0, 1)[0]] == [0, 255, 0]


def test_cmyk():
    image = decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), LIMITS)
    assert image.mode == "RGB"
    assert near(pixel(image), RED, 40)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey(mode):
    assert pixel(decode(encode(Image.new(mode, (8, 8), 255)), LIMITS)) == WHITE


def test_animation_shows_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert near(pixel(decode(data, LIMITS)), RED)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(orientation):
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 8, 8))  # top left
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encode(stored, "JPEG", quality=95, exif=exif), LIMITS)
    assert image.size == (32, 16)
    assert near(pixel(image), RED, 40)


def test_damaged_exif_is_passed_over():
    data = encode(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data, LIMITS).size == (8, 8)


@pytest.mark.parametrize(("size", "scaled"), [((640, 320), (64, 32)), ((3, 1), (3, 1)), ((5000, 1), (64, 1))])
def test_large_pictures_are_scaled_down_in_proportion_and_keep_a_pixel(size, scaled):
    assert decode(encode(Image.new("RGB", size)), LIMITS).size == scaled


def png_header(width, height):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(1001, 1000), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(width, height):
    """50,000 x 50,000 pixels are 7.5 GB, in a file of 70 bytes."""
    assert code(png_header(width, height)) == "too_many_pixels"


def test_a_real_bomb_costs_no_memory():
    data = encode(Image.new("1", (8000, 8000)))
    assert peak_bytes(lambda: code(data)) < 5_000_000
    assert code(data) == "too_many_pixels"


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files_are_an_error(kind):
    """Half a picture, the rest grey, would be described as such."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8))
    data = encode(noise, kind)
    assert code(data[: len(data) // 2]) in ("damaged", "not_an_image")


@pytest.mark.parametrize(
    ("data", "codes"),
    [
        *((data, ("not_an_image", "damaged")) for data in (b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", b"\0" * 100, b"GIF89a")),
        # Pillow reads some 30 formats more, among them PostScript, which it hands to another program.
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", ("not_an_image",)),
        (encode(Image.new("RGB", (8, 8)), "PPM"), ("not_an_image",)),
        (b"", ("empty",)),
        (b"x" * 1_000_001, ("too_many_bytes",)),
    ],
    ids=["html", "png", "pdf", "zeros", "gif", "postscript", "ppm", "empty", "long"],
)  # fmt: skip
def test_what_is_no_picture(data, codes):
    assert code(data) in codes


def test_the_error_survives_a_pickle():
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("empty", "zero bytes")))
    assert (error.code, str(error)) == ("empty", "empty: zero bytes")
