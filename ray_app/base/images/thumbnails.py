"""Small pictures inside the report: it stays one file and fetches nothing."""

import base64
import io

from ray_app.base.config import ImageLimits
from ray_app.base.images.decode import ImageError, decode
from ray_app.base.images.fetch import normalize_location, read_image

SIDE = 112  # pixels: shown at half of it, so sharp on dense screens


def thumbnail(image: str | None, image_bytes: bytes | None, limits: ImageLimits) -> str | None:
    """A JPEG as a data URI; None: there is no picture, or it cannot be read, which the captions table explains."""
    try:
        data = image_bytes if image_bytes is not None else read_image(normalize_location(image or ""), limits)
        picture = decode(data, limits)
    except ImageError:
        return None
    picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
