"""Untrusted bytes -> an RGB picture of bounded size, or the reason why not."""

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ray_app.base.config import ImageLimits
from ray_app.base.errors import printable

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1  # part of the recipe: raised when equal bytes give other pixels than before
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow's other decoders are rarely used and rarely audited

# All that Pillow's decoders have been seen to raise on damaged bytes.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, AttributeError,
            struct.error, zlib.error)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag

MAX_DECODED_BYTES = 600_000_000  # of memory while one picture is decoded
# Peaks of Pillow 13, measured, but for TIFF's: libwebp keeps canvases beside the picture; libtiff unpacks a strip, which may be
# all of the picture and has up to 8 bytes per pixel (measured: 4). The others hold the picture once.
_BYTES_PER_PIXEL = {"WEBP": 17, "TIFF": 12}
_DEFAULT_BYTES_PER_PIXEL = 5
_BYTES_PER_COEFFICIENT = 2  # libjpeg keeps those of all pixels and bands if there are several scans
# A scan of a progressive JPEG may take 75 bytes and still walks over all of its pixels, some 0.7 s per 10^9 of them.
# Encoders write about 10 scans. libtiff has a limit of its own, 100 per strip.
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 1_000_000_000  # scans x pixels
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # of a JPEG: those that end it or have a length
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_STRIP_PIXELS = 1 << 18  # of a picture that is made smaller; some MB, whatever its mode


class ImageError(Exception):
    """Why a picture has no caption: `code: text`, short enough for a cell of a table."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(f"{code}: {printable(' '.join(text.split()))[:300]}")

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return ImageError, (self.code, str(self).removeprefix(f"{self.code}: "))


def decode(data: bytes, limits: ImageLimits, max_decoded_bytes: int = MAX_DECODED_BYTES) -> "Image.Image":
    """The first frame, upright, on white, scaled down to `limits.max_side`; never scaled up.

    Size, memory and scans are read from the header and refused before any pixel is decoded, so a bomb costs nothing.

    Returns:
        Mode RGB, at least 1x1.

    Raises:
        ImageError: empty, too_many_bytes, not_an_image, too_many_pixels, too_much_memory, too_many_scans or damaged.
    """
    if not data:
        raise ImageError("empty", "zero bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_many_bytes", f"{len(data):,} bytes, at most {limits.max_bytes:,} are allowed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the size, which is checked; and of odd metadata
        image = _open(data, limits)
        width, height = image.size
        if width * height > limits.max_pixels:
            raise ImageError("too_many_pixels", f"{width} x {height} pixels, at most {limits.max_pixels:,} are allowed")
        kept = _coefficient_bytes(data, image) if data.startswith(b"\xff\xd8") else 0
        if image.format == "JPEG":
            image.draft("RGB", (limits.max_side, limits.max_side))  # decodes at 1/2, 1/4 or 1/8 of the size
        per_pixel = _BYTES_PER_PIXEL.get(image.format or "", _DEFAULT_BYTES_PER_PIXEL)
        needed = kept + image.width * image.height * per_pixel
        if needed > max_decoded_bytes:
            raise ImageError(
                "too_much_memory",
                f"{width} x {height} pixels take {needed >> 20:,} MB, at most {max_decoded_bytes >> 20:,} are allowed",
            )
        try:
            return _finish(image, limits)
        except _DAMAGED as error:
            raise ImageError("damaged", f"{type(error).__name__}: {error}") from None
        except MemoryError:
            raise ImageError("damaged", "its header asks for more memory than there is") from None


def _coefficient_bytes(data: bytes, image: "Image.Image") -> int:
    """Memory for the coefficients of a JPEG.

    Raises:
        ImageError: too_many_scans.
    """
    scans, pixels = num_scans(data), image.width * image.height
    if scans > MAX_SCANS or (scans > 1 and scans * pixels > MAX_SCANNED_PIXELS):
        raise ImageError("too_many_scans", f"at least {scans} over {pixels:,} pixels")
    return _BYTES_PER_COEFFICIENT * len(image.getbands()) * pixels if scans > 1 else 0


def num_scans(data: bytes) -> int:
    """Scans of a JPEG, counted as libjpeg goes through it; counting ends at one more than MAX_SCANS."""
    start = bytes((0xFF, _START_OF_SCAN))
    if (most := data.count(start)) <= 1:  # what a segment or the film after a picture holds counts here too
        return most
    scans, at = 0, 2
    while scans <= MAX_SCANS and (found := _MARKER.search(data, at)) is not None:
        marker, at = data[found.start() + 1], found.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _open(data: bytes, limits: ImageLimits) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    # For inner images too, such as a thumbnail or a frame, and before a WebP's canvas is made. Pillow warns of more and
    # refuses twice as many.
    Image.MAX_IMAGE_PIXELS = (limits.max_pixels + 1) // 2
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError("not_an_image", f"not one of {', '.join(FORMATS)}, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise ImageError("too_many_pixels", f"more than {limits.max_pixels:,}") from None
    except _DAMAGED as error:
        raise ImageError("not_an_image", f"{type(error).__name__}: {error}") from None


def _finish(image: "Image.Image", limits: ImageLimits) -> "Image.Image":
    image.load()
    turned = _orientation(image)
    image = _small_rgb(image, limits.max_side)
    return image if turned is None else image.transpose(turned)


def _small_rgb(image: "Image.Image", max_side: int) -> "Image.Image":
    """RGB thumbnail, equal to `thumbnail` with a reducing gap of 2, without a second full-size image in memory."""
    from PIL import Image

    width, height = image.size
    size = _fitted(width, height, max_side)
    factor = int(width / size[0] / 2.0) or 1, int(height / size[1] / 2.0) or 1
    is_wide = image.mode.startswith("I") or image.mode == "F"  # grey of more than 8 bits
    white = _white(image) if is_wide else None
    reduced = Image.new("RGB", (-(-width // factor[0]), -(-height // factor[1])))
    for top, strip in _strips(image, factor[1]):
        reduced.paste(_to_rgb(strip, white).reduce(factor), (0, top // factor[1]))
    if reduced.size == size:
        return reduced
    return reduced.resize(size, Image.Resampling.BICUBIC, (0, 0, width / factor[0], height / factor[1]))


def _fitted(width: int, height: int, max_side: int) -> tuple[int, int]:
    """The size within max_side x max_side that changes the proportions least, as `thumbnail` has it."""
    if max(width, height) <= max_side:
        return width, height
    shape = width / height
    if shape <= 1:
        exact = max_side * shape
        return max(min(math.floor(exact), math.ceil(exact), key=lambda n: abs(shape - n / max_side)), 1), max_side
    exact = max_side / shape
    return max_side, max(
        min(math.floor(exact), math.ceil(exact), key=lambda n: abs(shape - max_side / n) if n else 0), 1
    )


def _strips(image: "Image.Image", multiple: int) -> "Iterator[tuple[int, Image.Image]]":
    """Full-width parts of a picture with their top row, from top to bottom, `multiple` rows or a multiple of it each."""
    rows = max(1, _STRIP_PIXELS // (image.width * multiple)) * multiple
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _orientation(image: "Image.Image") -> "Image.Transpose | None":
    """Transposition that turns the image upright according to its EXIF; corrupt EXIF is ignored."""
    from PIL.Image import Transpose

    try:
        value = image.getexif().get(_ORIENTATION)
    except _DAMAGED:
        return None
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    return turns.get(value) if isinstance(value, int) else None


def _to_rgb(image: "Image.Image", white: float | None) -> "Image.Image":
    """Any mode to RGB: transparency on white, more than 8 bits scaled down so that the value `white` becomes white."""
    from PIL import Image

    if white is not None:
        # Pillow's own conversion would cut them off at 255.
        grey = np.clip(_numbers(np.asarray(image)) * (255.0 / white), 0, 255).round().astype(np.uint8)
        return Image.fromarray(grey, "L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        back = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(back, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _white(image: "Image.Image") -> float:
    """The value of a wide grey that stands for white: the top of the range that its values are in."""
    top = max(float(_numbers(np.asarray(strip)).max()) for _, strip in _strips(image, 1))
    if image.mode == "F":
        scales = [1.0, 255.0]
    else:
        scales = [65535.0] if image.mode.startswith("I;16") else [255.0, 65535.0]  # Pillow's "I" holds any of them
    return next((scale for scale in scales if top <= scale), top)


def _numbers(pixels: np.ndarray) -> np.ndarray:
    return np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
