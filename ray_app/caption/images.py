"""Untrusted bytes -> an RGB picture of bounded size, or the reason why not."""

import io
import struct
import warnings
import zlib
from typing import TYPE_CHECKING

import numpy as np

from ray_app.config import ImageLimits
from ray_app.errors import printable

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1  # part of the recipe: raised when equal bytes give other pixels than before
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow's other decoders are rarely used and rarely audited

# All that Pillow's decoders have been seen to raise on damaged bytes.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, AttributeError,
            struct.error, zlib.error)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag


class PictureError(Exception):
    """Why a picture has no caption: `code: text`, short enough for a cell of a table.

    Args:
        code: Such as `truncated`; for counting.
        text: For people; names no credentials.
    """

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(f"{code}: {printable(' '.join(text.split()))[:300]}")

    def __reduce__(self) -> tuple[type["PictureError"], tuple[str, str]]:
        return PictureError, (self.code, str(self).removeprefix(f"{self.code}: "))


def decode(data: bytes, limits: ImageLimits) -> "Image.Image":
    """The first frame, upright, on white, scaled down to `limits.max_side`; never scaled up.

    The size is read from the header and refused before any pixel is decoded, so a bomb costs nothing.

    Returns:
        Mode RGB, at least 1x1.

    Raises:
        PictureError: empty, too_many_bytes, not_an_image, too_many_pixels or damaged.
    """
    if not data:
        raise PictureError("empty", "zero bytes")
    if len(data) > limits.max_bytes:
        raise PictureError("too_many_bytes", f"{len(data):,} bytes, at most {limits.max_bytes:,} are allowed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the size, which is checked; and of odd metadata
        image = _open(data, limits)
        width, height = image.size
        if width * height > limits.max_pixels:
            raise PictureError(
                "too_many_pixels", f"{width} x {height} pixels, at most {limits.max_pixels:,} are allowed"
            )
        try:
            return _finish(image, limits)
        except _DAMAGED as error:
            raise PictureError("damaged", f"{type(error).__name__}: {error}") from None
        except MemoryError:
            raise PictureError("damaged", "its header asks for more memory than there is") from None


def _open(data: bytes, limits: ImageLimits) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = limits.max_pixels  # for inner images too, such as a thumbnail or a frame
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise PictureError("not_an_image", f"not one of {', '.join(FORMATS)}, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise PictureError("too_many_pixels", f"more than {limits.max_pixels:,}") from None
    except _DAMAGED as error:
        raise PictureError("not_an_image", f"{type(error).__name__}: {error}") from None


def _finish(image: "Image.Image", limits: ImageLimits) -> "Image.Image":
    if image.format == "JPEG":
        image.draft("RGB", (limits.max_side, limits.max_side))  # decodes at 1/2, 1/4 or 1/8 of the size
    image.load()
    turned = _orientation(image)
    image = _to_rgb(image)
    image.thumbnail((limits.max_side, limits.max_side), reducing_gap=2.0)
    return image if turned is None else image.transpose(turned)


def _orientation(image: "Image.Image") -> "Image.Transpose | None":
    """What turns the picture upright, by its EXIF; damaged EXIF says nothing."""
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


def _to_rgb(image: "Image.Image") -> "Image.Image":
    """Any mode to RGB: transparency on white, more than 8 bits scaled down."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image)), "L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Grey values of a wide type as uint8; Pillow's own conversion would cut them off at 255."""
    wide = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
    if pixels.dtype.kind == "f":
        scales = [1.0, 255.0]
    else:
        scales = [65535.0] if pixels.dtype.itemsize == 2 else [255.0, 65535.0]  # Pillow's "I" holds any of them
    top = next((scale for scale in scales if wide.max() <= scale), float(wide.max()))
    return np.clip(wide * (255.0 / top), 0, 255).round().astype(np.uint8)
