"""Travel: each function draws one object on the unit square, standing on its lower edge, mainly in "main"."""

import math
from itertools import pairwise

from ray_app.demo.drawings.pen import Pen, arc_points


def tent(pen: Pen) -> None:
    """A ridge tent from its open end, with guy ropes."""
    pen.path(((0.5, 0.14), (-0.02, 0.96)), "line", 0.014)
    pen.path(((0.72, 0.2), (1.04, 0.96)), "line", 0.014)
    pen.poly(((0.42, 0.14), (0.74, 0.2), (0.98, 0.92), (0.7, 0.95)), "dark")
    pen.poly(((0.42, 0.12), (0.76, 0.95), (0.06, 0.95)))
    pen.poly(((0.42, 0.34), (0.56, 0.95), (0.28, 0.95)), "ink")
    pen.poly(((0.42, 0.34), (0.28, 0.95), (0.2, 0.95), (0.3, 0.62)), "light")
    pen.poly(((0.42, 0.34), (0.56, 0.95), (0.64, 0.95), (0.54, 0.62)), "light")
    pen.path(((0.42, 0.14), (0.42, 0.04)), "wood", 0.025)


def campervan(pen: Pen) -> None:
    """A van from the side: pale upper half with windows, two wheels, a rack."""
    pen.box(0.2, 0.18, 0.76, 0.26, "wood", radius=0.02)
    pen.box(0.02, 0.25, 0.98, 0.84, "main", radius=0.13)
    pen.poly(((0.05, 0.35), (0.95, 0.35), (0.97, 0.52), (0.03, 0.52)), "cream")
    for x in (0.09, 0.34, 0.59):
        pen.box(x, 0.34, x + 0.21, 0.51, "glass", radius=0.03)
    pen.poly(((0.84, 0.34), (0.91, 0.34), (0.95, 0.51), (0.84, 0.51)), "glass")
    pen.path(((0.56, 0.54), (0.56, 0.8)), "line", 0.014)
    pen.path(((0.6, 0.6), (0.66, 0.6)), "trim", 0.025)
    pen.oval(0.89, 0.6, 0.97, 0.69, "cream")
    for x in (0.24, 0.76):
        pen.oval(x - 0.12, 0.71, x + 0.12, 0.96, "ink")
        pen.oval(x - 0.05, 0.78, x + 0.05, 0.89, "metal")


def sailboat(pen: Pen) -> None:
    """A hull, a mast, a large and a small sail."""
    pen.path(((0.48, 0.02), (0.48, 0.8)), "wood", 0.035)
    pen.poly(((0.52, 0.06), (0.7, 0.36), (0.92, 0.7), (0.52, 0.7)))
    pen.poly(((0.44, 0.14), (0.44, 0.7), (0.12, 0.7)), "light")
    pen.path(((0.53, 0.5), (0.78, 0.5)), "dark", 0.02)
    pen.poly(((0.02, 0.76), (0.98, 0.76), (0.8, 0.96), (0.2, 0.96)), "main")
    pen.path(((0.06, 0.81), (0.94, 0.81)), "trim", 0.035)
    pen.poly(((0.48, 0.0), (0.6, 0.035), (0.48, 0.07)), "trim")


def surfboard(pen: Pen) -> None:
    """A long pointed board upright in the ground, a stripe along it, a fin."""
    pen.poly(((0.68, 0.76), (0.86, 0.94), (0.64, 0.9)), "dark")
    outline = [(0.5, 0.0), (0.62, 0.12), (0.7, 0.3), (0.73, 0.5), (0.7, 0.72), (0.62, 0.9), (0.5, 0.98)]
    pen.poly([*outline, *[(1 - x, y) for x, y in reversed(outline[1:-1])]])
    pen.poly(((0.5, 0.03), (0.53, 0.3), (0.53, 0.7), (0.5, 0.95), (0.47, 0.7), (0.47, 0.3)), "trim", line=False)
    pen.poly(((0.295, 0.32), (0.705, 0.32), (0.72, 0.4), (0.28, 0.4)), "light")
    pen.poly(((0.275, 0.6), (0.725, 0.6), (0.72, 0.66), (0.28, 0.66)), "dark")


def airplane(pen: Pen) -> None:
    """An airliner climbing: fuselage, swept wings, tail fin, a row of windows."""
    pen.poly(((0.5, 0.46), (0.62, 0.44), (0.44, 0.14), (0.34, 0.16)), "dark")
    pen.poly(((0.16, 0.54), (0.0, 0.22), (0.12, 0.2), (0.32, 0.5)), "main")
    pen.poly([(0.04, 0.6), (0.2, 0.48), (0.76, 0.42), *arc_points(0.62, 0.42, 1.0, 0.66, -60, 80), (0.3, 0.7)], "main")
    pen.poly(((0.12, 0.58), (0.02, 0.72), (0.1, 0.74), (0.24, 0.62)), "dark")
    pen.poly(((0.46, 0.62), (0.64, 0.58), (0.46, 0.96), (0.32, 0.98)), "light")
    for step in range(6):
        x = 0.3 + step * 0.085
        pen.oval(x, 0.53 - step * 0.008, x + 0.045, 0.58 - step * 0.008, "trim", line=False)
    pen.poly(((0.87, 0.45), (0.94, 0.48), (0.97, 0.52), (0.86, 0.52)), "glass")


def hot_air_balloon(pen: Pen) -> None:
    """A huge envelope in gores over a basket."""
    for x0, x1 in ((0.34, 0.43), (0.66, 0.57)):
        pen.path(((x0, 0.66), (x1, 0.84)), "line", 0.016)
    pen.box(0.41, 0.83, 0.59, 0.98, "wood", radius=0.02)
    pen.poly([(0.4, 0.76), *arc_points(0.1, 0.0, 0.9, 0.76, 155, 385), (0.6, 0.76)])
    pen.poly([*arc_points(0.3, 0.0, 0.7, 0.78, 150, 390), (0.57, 0.76), (0.43, 0.76)], "light")
    pen.poly([*arc_points(0.42, 0.0, 0.58, 0.78, 120, 420)], "dark")
    pen.path([(0.11 + 0.078 * step, 0.42 + 0.05 * (step % 2)) for step in range(11)], "trim", 0.03)


def train(pen: Pen) -> None:
    """A steam engine from the side: cab, boiler, chimney with smoke, wheels on a rail."""
    for x, y, r in ((0.8, 0.1, 0.07), (0.66, 0.05, 0.055), (0.55, 0.06, 0.04)):
        pen.oval(x - r, y - r, x + r, y + r, "metal", line=False)
    pen.path(((-0.02, 0.95), (1.02, 0.95)), "ink", 0.03)
    pen.poly(((0.74, 0.16), (0.9, 0.16), (0.86, 0.4), (0.78, 0.4)), "dark")
    pen.box(0.36, 0.36, 0.95, 0.7, "main", radius=0.08)
    pen.box(0.06, 0.16, 0.42, 0.72, "main")
    pen.box(0.13, 0.26, 0.34, 0.46, "glass")
    pen.box(0.02, 0.1, 0.46, 0.19, "dark", radius=0.02)
    pen.box(0.55, 0.28, 0.66, 0.38, "dark", radius=0.04)
    for x in (0.54, 0.72):
        pen.path(((x, 0.37), (x, 0.69)), "trim", 0.025)
    pen.poly(((0.04, 0.68), (0.94, 0.68), (1.02, 0.88), (0.86, 0.8), (0.04, 0.8)), "dark")
    for x, r in ((0.18, 0.13), (0.44, 0.13), (0.67, 0.09), (0.85, 0.09)):
        pen.oval(x - r, 0.94 - 2 * r, x + r, 0.94, "ink")
        pen.oval(x - r * 0.4, 0.94 - r * 1.4, x + r * 0.4, 0.94 - r * 0.6, "metal", line=False)


def suitcase(pen: Pen) -> None:
    """A trolley case: long handle, ribs, two wheels, a sticker."""
    for x in (0.36, 0.64):
        pen.path(((x, 0.3), (x, 0.03)), "metal", 0.035)
    pen.path(((0.33, 0.03), (0.67, 0.03)), "ink", 0.06)
    for x in (0.24, 0.68):
        pen.oval(x, 0.87, x + 0.1, 0.98, "ink")
    pen.box(0.14, 0.24, 0.86, 0.92, "main", radius=0.1)
    for x in (0.27, 0.42, 0.57, 0.72):
        pen.path(((x, 0.28), (x, 0.88)), "dark", 0.03)
    pen.box(0.4, 0.2, 0.6, 0.28, "trim", radius=0.03)
    for x in (0.16, 0.76):
        pen.box(x, 0.5, x + 0.08, 0.58, "metal")


def beach_umbrella(pen: Pen) -> None:
    """A parasol on a pole: a dome of gores with a scalloped hem."""
    pen.path(((0.5, 0.06), (0.5, 0.98)), "wood", 0.04)
    dome = arc_points(0.0, 0.08, 1.0, 1.0, 180, 360)
    edges = (1.0, 0.78, 0.5, 0.22, 0.0)
    hem = [point for right, left in pairwise(edges) for point in arc_points(left, 0.5, right, 0.58, 360, 180)]
    pen.poly([*dome, *hem])
    for left, right, shade in ((0.22, 0.5, "light"), (0.78, 1.0, "dark")):
        curve = [
            (left + (0.5 - left) * (1 - math.sin(t)), 0.54 - 0.45 * math.cos(t)) for t in (1.57, 1.2, 0.8, 0.4, 0.0)
        ]
        back = [
            (right + (0.5 - right) * (1 - math.sin(t)), 0.54 - 0.45 * math.cos(t)) for t in (0.0, 0.4, 0.8, 1.2, 1.57)
        ]
        pen.poly([*curve, *back], shade)
    pen.oval(0.47, 0.03, 0.53, 0.1, "trim")


def lighthouse(pen: Pen) -> None:
    """A tapered tower with two pale bands, a lamp room, and a cap, on rocks."""
    pen.poly(((0.62, 0.16), (1.0, 0.06), (1.0, 0.28)), (255, 240, 170), line=False)
    pen.poly(((0.04, 0.98), (0.2, 0.84), (0.44, 0.9), (0.66, 0.83), (0.96, 0.98)), "metal")
    pen.poly(((0.37, 0.26), (0.63, 0.26), (0.74, 0.9), (0.26, 0.9)))
    for top, bottom in ((0.4, 0.48), (0.64, 0.72)):
        left_top, left_bottom = 0.37 - (top - 0.26) * 0.17, 0.37 - (bottom - 0.26) * 0.17
        pen.poly(((left_top, top), (1 - left_top, top), (1 - left_bottom, bottom), (left_bottom, bottom)), "trim")
    pen.box(0.4, 0.11, 0.6, 0.25, (255, 236, 150))
    pen.poly(((0.36, 0.12), (0.5, 0.0), (0.64, 0.12)), "dark")
    pen.box(0.32, 0.23, 0.68, 0.29, "dark")
    pen.box(0.44, 0.77, 0.56, 0.9, "ink", radius=0.05)


DRAWINGS = {
    "tent": tent, "campervan": campervan, "sailboat": sailboat, "surfboard": surfboard, "airplane": airplane,
    "hot_air_balloon": hot_air_balloon, "train": train, "suitcase": suitcase, "beach_umbrella": beach_umbrella,
    "lighthouse": lighthouse,
}  # fmt: skip
