"""Small files that would keep a decoder busy, or fill memory: pictures within `limits.max_pixels` all the same."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from hostile_images import encode, jpeg_of_scans, segment
from PIL import Image, WebPImagePlugin

from ray_app.base.config import ImageLimits
from ray_app.base.images.decode import MAX_SCANS, ImageError, decode, num_scans

pytestmark = pytest.mark.slow

LIMITS = ImageLimits()
SIDE = 7056  # squared: 49.8 million pixels, below limits.max_pixels


def code(data, limits=LIMITS, **options):
    with pytest.raises(ImageError) as caught:
        decode(data, limits, **options)
    return caught.value.code


# --- time: scans of a JPEG ---


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(monkeypatch):
    """75 bytes are a pass over 50 million pixels: a picture of 20 MB kept a worker busy for 15 minutes."""
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    assert code(jpeg_of_scans(300, SIDE)) == "too_many_scans"


def test_scans_over_few_pixels_are_allowed_and_their_number_is_bounded():
    assert decode(jpeg_of_scans(MAX_SCANS - 1), LIMITS).size == (256, 256)
    assert code(jpeg_of_scans(MAX_SCANS)) == "too_many_scans"


def test_scans_times_pixels_are_bounded(monkeypatch):
    """100 scans over 50 million pixels would take seconds; what encoders write, about 10, does not."""
    assert decode(jpeg_of_scans(10, SIDE), LIMITS).size == (512, 512)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    assert code(jpeg_of_scans(50, SIDE)) == "too_many_scans"


@pytest.mark.parametrize(
    "between",
    [segment(0xFE, b"\xff\xd9" * 3), b"\xff\xff\xff", segment(0xFE), b"\xff\xd0"],
    ids=["an end of the image in a comment, which is skipped", "fill bytes", "an empty comment", "restart"],
)
def test_nothing_between_scans_hides_them(between):
    data = jpeg_of_scans(MAX_SCANS + 5, 64, between)
    assert num_scans(data) > MAX_SCANS
    # libjpeg goes through all of them, else hiding them would be no attack.
    image = Image.open(io.BytesIO(jpeg_of_scans(3, 64, between)))
    image.load()
    assert image.getpixel((0, 0)) == 128


def test_what_a_segment_or_the_film_after_a_picture_holds_is_no_scan():
    """Photos of phones have films of some MB behind them, in which any two bytes occur."""
    plain = encode(Image.new("RGB", (32, 32)), "JPEG", progressive=True)
    comments = plain[:2] + segment(0xFE, b"\xff\xda" * 500) + plain[2:]
    assert num_scans(comments + b"\xff\xda" * 5000) == num_scans(plain) > 1
    assert decode(comments + b"\xff\xda" * 5000, LIMITS).size == (32, 32)


def test_scans_of_a_strip_of_a_tiff_are_bounded():
    """libtiff's own limit; it would say so if it went."""
    inner = jpeg_of_scans(300, 64)
    tags = [(256, 64), (257, 64), (258, 8), (259, 7), (262, 1), (273, 8), (277, 1), (278, 64), (279, len(inner))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 8 + len(inner)) + inner + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    assert code(data) == "damaged"
    fine = jpeg_of_scans(3, 64)
    assert decode(data.replace(inner, fine + b"\0" * (len(inner) - len(fine))), LIMITS).size == (64, 64)


# --- memory ---


def test_an_animated_webp_of_a_few_bytes_is_refused_by_its_memory():
    """90 bytes took 750 MB: libwebp keeps canvases beside the picture."""
    frames = [Image.new("RGB", (6000, 6000), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], quality=1)
    assert code(data) == "too_much_memory"


def test_a_canvas_beyond_the_pixels_is_refused_before_it_is_made(monkeypatch):
    """Pillow alone refuses from twice the limit on."""
    data = encode(Image.new("RGB", (1100, 1000)), "WEBP")
    monkeypatch.setattr(WebPImagePlugin._webp, "WebPAnimDecoder", lambda *_: pytest.fail("the canvas was made"))
    assert code(data, ImageLimits(max_pixels=1_000_000)) == "too_many_pixels"


def test_only_the_first_frame_is_decoded(monkeypatch):
    frames = [Image.new("RGB", (16, 16), (i, 0, 0)) for i in range(200)]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    decoded = []
    get_next = WebPImagePlugin.WebPImageFile._get_next
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "_get_next", lambda self: decoded.append(1) or get_next(self))
    assert decode(data, LIMITS).size == (16, 16)
    assert decoded == [1]


def test_coefficients_of_a_progressive_jpeg_count():
    data = encode(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True)
    assert code(data, max_decoded_bytes=20_000_000) == "too_much_memory"
    assert decode(encode(Image.new("RGB", (2000, 2000)), "JPEG"), LIMITS, 20_000_000).size == (512, 512)


_PEAK = """
import sys
from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from ray_app.base.config import ImageLimits
from ray_app.base.images.decode import decode

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

data, before = sys.stdin.buffer.read(), peak()
decode(data, ImageLimits())
print(peak() - before)
"""
MODES = {
    "png_rgba": ("RGBA", "PNG", {}), "png_grey": ("L", "PNG", {}), "tiff_16": ("I;16", "TIFF", {"compression": "tiff_lzw"}),
    "tiff_float": ("F", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "tiff_float_of_one_strip": ("F", "TIFF", {"compression": "tiff_adobe_deflate", "strip_size": 3000 * 3000 * 4}),
    "webp": ("RGBA", "WEBP", {"lossless": True}), "jpeg": ("CMYK", "JPEG", {"progressive": True}),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODES)
def test_the_peak_of_memory_is_what_is_counted(kind):
    """In a process of its own. A float TIFF took 27 bytes per pixel, an RGBA picture 16."""
    from ray_app.base.images import decode as images

    mode, form, options = MODES[kind]
    data = encode(Image.new(mode, (3000, 3000)), form, **options)
    done = subprocess.run([sys.executable, "-c", _PEAK], input=data, capture_output=True, check=True)
    counted = {"jpeg": 8}.get(kind, images._BYTES_PER_PIXEL.get(form, images._DEFAULT_BYTES_PER_PIXEL))
    assert int(done.stdout) < 9_000_000 * counted + 20_000_000


def test_a_picture_made_smaller_by_strips_is_that_of_thumbnail():
    """No caption changes: equal bytes give the pixels that they gave before."""
    rng = np.random.default_rng(0)
    for width, height in ((641, 323), (5000, 1), (1, 3000), (2222, 1111), (513, 512)):
        image = Image.fromarray(rng.integers(0, 255, (height, width, 4), np.uint8))
        white = Image.new("RGBA", image.size, "white")
        wanted = Image.alpha_composite(white, image).convert("RGB")
        wanted.thumbnail((64, 64), reducing_gap=2.0)
        found = decode(encode(image, "PNG"), ImageLimits(max_side=64))
        assert found.size == wanted.size and found.tobytes() == wanted.tobytes()
