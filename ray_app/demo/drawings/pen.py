"""A pen that draws on the unit square: (0, 0) top left, (1, 1) bottom right, wherever and however large the square lies."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

RGB = tuple[int, int, int]
Point = tuple[float, float]
_ARC_STEPS = 28  # corners of a full ellipse: round enough at 256 px


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """`a` with a share of `b` in it."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def palette_of(main: RGB) -> dict[str, RGB]:
    """Names of colours -> RGB for an object in the colour `main`: shades of it, and neutral ones for details."""
    luminance = (299 * main[0] + 587 * main[1] + 114 * main[2]) / 1000
    is_dark = luminance < 75
    if is_dark:  # an outline darker than black cannot be seen
        line = (168, 168, 176) if max(main) - min(main) < 40 else mix(main, (0, 0, 0), 0.6)
    else:
        line = mix(main, (0, 0, 0), 0.62)
    return {
        "main": main, "dark": mix(main, (0, 0, 0), 0.18) if not is_dark else mix(main, (0, 0, 0), 0.35),
        "light": mix(main, (255, 255, 255), 0.22), "line": line,
        "trim": (238, 232, 220) if luminance < 140 else (84, 76, 78), "ink": (52, 48, 52), "cream": (244, 236, 220),
        "wood": (176, 132, 88), "metal": (176, 180, 186), "glass": (206, 226, 234), "leaf": (120, 156, 112),
    }  # fmt: skip


class Pen:
    """Draws filled shapes with an outline; every shape is a polygon, so that the square may be turned and mirrored."""

    def __init__(
        self, draw: Any, palette: dict[str, RGB], *, left: float, top: float, side: float, mirror: bool = False,
        degrees: float = 0.0, stroke: int = 0,
    ) -> None:  # fmt: skip
        """`draw` is a PIL ImageDraw; lengths are its pixels; `stroke` is the outline's width, 0: no outline."""
        self.draw, self.palette, self.stroke, self.side = draw, palette, stroke, side
        turn = math.radians(degrees)
        cos, sin, flip = math.cos(turn), math.sin(turn), -1.0 if mirror else 1.0
        self._xx, self._xy, self._yx, self._yy = side * cos * flip, -side * sin, side * sin * flip, side * cos
        self._x0 = left + side / 2 - (self._xx + self._xy) / 2
        self._y0 = top + side / 2 - (self._yx + self._yy) / 2

    def _place(self, points: Iterable[Point]) -> list[Point]:
        xx, xy, yx, yy, x0, y0 = self._xx, self._xy, self._yx, self._yy, self._x0, self._y0
        return [(x0 + xx * x + xy * y, y0 + yx * x + yy * y) for x, y in points]

    def _rgb(self, colour: str | RGB) -> RGB:
        return self.palette[colour] if isinstance(colour, str) else colour

    def poly(self, points: Iterable[Point], fill: str | RGB = "main", line: bool = True) -> None:
        """A filled polygon."""
        placed = self._place(points)
        self.draw.polygon(placed, fill=self._rgb(fill))
        if line and self.stroke:
            self.draw.line([*placed, placed[0], placed[1]], fill=self.palette["line"], width=self.stroke)

    def oval(
        self, x0: float, y0: float, x1: float, y1: float, fill: str | RGB = "main", line: bool = True,
        start: float = 0.0, end: float = 360.0,
    ) -> None:  # fmt: skip
        """An ellipse in a box, or the piece of it between two angles (0: right, 90: down), closed by a straight line."""
        self.poly(arc_points(x0, y0, x1, y1, start, end), fill, line)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, fill: str | RGB = "main", line: bool = True,
        radius: float = 0.0,
    ) -> None:  # fmt: skip
        """A rectangle, its corners rounded by `radius`."""
        if not radius:
            self.poly(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), fill, line)
            return
        r = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
        corners = ((x1 - r, y0 + r, -90), (x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180))
        points: list[Point] = []
        for x, y, angle in corners:
            for step in (0, 30, 60, 90):
                turn = math.radians(angle + step)
                points.append((x + r * math.cos(turn), y + r * math.sin(turn)))
        self.poly(points, fill, line)

    def path(self, points: Sequence[Point], fill: str | RGB = "line", width: float = 0.02) -> None:
        """A line through points; `width` in units of the square."""
        pixels = max(1, round(width * self.side))
        self.draw.line(self._place(points), fill=self._rgb(fill), width=pixels, joint="curve" if pixels > 4 else None)

    def arc(
        self, x0: float, y0: float, x1: float, y1: float, start: float, end: float, fill: str | RGB = "line",
        width: float = 0.02,
    ) -> None:  # fmt: skip
        """A piece of an ellipse's rim."""
        self.path(arc_points(x0, y0, x1, y1, start, end), fill, width)


def arc_points(x0: float, y0: float, x1: float, y1: float, start: float = 0.0, end: float = 360.0) -> list[Point]:
    """Points on the rim of the ellipse in a box, from one angle to another."""
    steps = max(4, math.ceil(_ARC_STEPS * abs(end - start) / 360))
    x, y, a, b = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    turns = (math.radians(start + (end - start) * step / steps) for step in range(steps + 1))
    return [(x + a * math.cos(turn), y + b * math.sin(turn)) for turn in turns]


WHITE: RGB = (255, 255, 255)
GREY: RGB = (150, 152, 158)
DARK: RGB = (96, 96, 104)


def fade(pen: Pen, top: RGB, bottom: RGB, y0: float, y1: float, bands: int = 8) -> None:
    """A vertical gradient as bands."""
    step = (y1 - y0) / bands
    for band in range(bands):
        pen.box(0, y0 + band * step, 1, y1 + 0.001, mix(top, bottom, band / (bands - 1)))


def pick(rng: np.random.Generator, colours: tuple[RGB, ...]) -> RGB:
    """One of the colours at random."""
    return colours[int(rng.integers(len(colours)))]
