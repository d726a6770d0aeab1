"""Fuzzes the decoder of pictures: `python tests/fuzz/fuzz_images.py --seconds 60`.

Whatever the bytes, `decode` gives an RGB picture of bounded size or a ImageError, whose text is one line. A JPEG that it
decodes has a bounded number of scans.
"""

import sys
from pathlib import Path

import driver
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile_images import encode, jpeg_of_scans, segment

with driver.instrumented():
    from ray_app.base.config import ImageLimits
    from ray_app.base.images.decode import MAX_SCANS, ImageError, decode, num_scans

LIMITS = ImageLimits(max_bytes=driver.MAX_BYTES, max_pixels=1_000_000, max_side=64)

TOKENS = (
    b"\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"IHDR", b"IDAT", b"tRNS", b"iCCP", b"zTXt",
    b"eXIf", b"acTL", b"fcTL", b"PLTE", b"\xff\xd8\xff\xe1", b"\xff\xdb", b"\xff\xc4", b"\xff\xc2", b"Exif\x00\x00",
    b"MPF\x00", b"GIF89a", b"\x21\xf9\x04", b"\x2c", b"RIFF", b"VP8X", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"BM",
    b"\xff\xda", b"\xff\xd9", b"\xff\xfe\x00\x02", b"\xff\xd0", b"II*\x00", b"MM\x00*", b"II+\x00",
    b"\x01\x01\x03\x00", b"\x11\x01\x04\x00", b"\xff" * 64,
)  # fmt: skip


def target(data: bytes) -> None:
    """See the module."""
    try:
        image = decode(data, LIMITS)
    except ImageError as error:
        assert str(error).startswith(f"{error.code}: ") and str(error).isprintable(), f"not one line: {error!r}"
        return
    assert image.mode == "RGB" and 1 <= min(image.size) and max(image.size) <= LIMITS.max_side, image
    assert len(image.tobytes()) == 3 * image.width * image.height
    if data.startswith(b"\xff\xd8"):
        assert num_scans(data) <= MAX_SCANS, "more scans than are allowed were decoded"


def seeds() -> list[bytes]:
    """Small pictures in each format, mode and manner of packing."""
    from PIL import Image

    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (9, 13, 3), np.uint8))
    grey16 = Image.fromarray(rng.integers(0, 65535, (5, 7), np.uint16))
    floats = Image.fromarray(rng.random((5, 7), np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = [
        (rgb, "JPEG", {"exif": exif}), (rgb, "JPEG", {"progressive": True, "quality": 5}), (rgb.convert("L"), "JPEG", {}),
        (rgb.convert("CMYK"), "JPEG", {}), (rgb, "PNG", {}), (rgb.convert("RGBA"), "PNG", {"exif": exif}),
        (rgb.convert("P"), "PNG", {"transparency": 3}), (rgb.convert("1"), "PNG", {}), (rgb.convert("LA"), "PNG", {}),
        (grey16, "PNG", {}), (rgb, "PNG", {"icc_profile": b"not a profile" * 9}), (rgb, "WEBP", {}),
        (rgb.convert("RGBA"), "WEBP", {"lossless": True}), (rgb, "GIF", {}), (rgb, "BMP", {}), (rgb.convert("1"), "BMP", {}),
        (rgb, "TIFF", {}), (rgb, "TIFF", {"compression": "tiff_lzw"}), (rgb, "TIFF", {"compression": "tiff_deflate"}),
        (rgb, "TIFF", {"compression": "jpeg"}), (rgb.convert("1"), "TIFF", {"compression": "group4"}), (grey16, "TIFF", {}),
        (floats, "TIFF", {}), (floats, "TIFF", {"compression": "tiff_adobe_deflate"}), (rgb, "TIFF", {"big_tiff": True}),
    ]  # fmt: skip
    more = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    made += [(rgb, kind, more) for kind in ("GIF", "PNG", "WEBP", "TIFF")]
    found = [encode(image, kind, **options) for image, kind, options in made]
    comment = segment(0xFE, b"\xff\xd9\xff\xda")
    return [*found, jpeg_of_scans(3, 16), jpeg_of_scans(MAX_SCANS - 1, 16), jpeg_of_scans(60, 16, comment)]


if __name__ == "__main__":
    driver.main(__file__, target, seeds(), TOKENS)
