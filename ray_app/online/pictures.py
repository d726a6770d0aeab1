"""The pins' pictures for the page."""

import io
from collections import OrderedDict
from urllib.parse import quote

import pyarrow as pa

from ray_app.caption.fetch import is_url, normalise_location, read_picture
from ray_app.caption.images import PictureError, decode
from ray_app.config import ImageLimits
from ray_app.online.problems import NotFound

SIDE = 480  # pixels
_KEPT = 500  # pictures, some 20 kB each


class PinPictures:
    """Where pictures are, and small copies of those that were looked at.

    Args:
        pins: Columns image and image_bytes, as `schemas.PINS` has them.
        limits: Of a picture that is read.
    """

    def __init__(self, pins: pa.Table, limits: ImageLimits) -> None:
        self._pins, self._limits = pins, limits
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def url(self, pin_id: str, row: int) -> str | None:
        """What a browser loads: the web's own URL, or a path of this app; None: no picture."""
        location = self._pins["image"][row].as_py()
        if self._pins["image_bytes"][row].is_valid or (location and not is_url(location)):
            return f"/v1/pins/{quote(pin_id, safe='')}/image"
        return location or None

    def jpeg(self, row: int) -> bytes:
        """At most SIDE pixels a side; decoded and written anew, so that no other file can be read this way.

        Raises:
            NotFound: there is none, or it cannot be read.
        """
        if (kept := self._kept.get(row)) is not None:
            return kept
        data, location = self._pins["image_bytes"][row].as_py(), self._pins["image"][row].as_py()
        try:
            if data is None:
                data = read_picture(normalise_location(location or ""), self._limits)
            picture = decode(data, self._limits)
        except PictureError as error:
            raise NotFound("no_picture", f"this pin's picture cannot be shown: {error.code}") from None
        picture.thumbnail((SIDE, SIDE))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=82)
        self._kept[row] = out.getvalue()
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return out.getvalue()
