"""Outdoor scenes."""

import numpy as np

from ray_app.demo.drawings.pen import DARK, RGB, WHITE, Pen, fade, mix, pick


def _fir(pen: Pen, x: float, foot: float, height: float, green: RGB, snow: bool = False) -> None:
    pen.box(x - 0.012, foot - height * 0.2, x + 0.012, foot, (140, 116, 98))
    for low, wide in ((0.12, 0.3), (0.38, 0.24), (0.62, 0.17)):
        y, half = foot - height * low, height * wide
        tip = y - height * 0.42
        pen.poly(((x, tip), (x + half, y), (x - half, y)), green)
        if snow:
            pen.poly(
                ((x, tip), (x + half * 0.5, (tip + y) / 2), (x, (tip + y) / 2 - 0.01), (x - half * 0.5, (tip + y) / 2)),
                WHITE,
            )


def garden(pen: Pen, rng: np.random.Generator) -> RGB:
    """Lawn, picket fence, round bushes, flowers, sun."""
    lawn = pick(rng, ((176, 206, 142), (168, 200, 150), (186, 204, 138)))
    fade(pen, (186, 220, 238), (226, 238, 238), 0, 0.5)
    pen.oval(0.78, 0.04, 0.94, 0.2, (252, 232, 156))
    for x in (-0.06, 0.16, 0.66, 0.86):
        size = float(rng.uniform(0.2, 0.3))
        pen.oval(x, 0.5 - size, x + size + 0.04, 0.6, mix((132, 172, 116), WHITE, float(rng.uniform(0, 0.2))))
    pen.box(0, 0.5, 1, 1, lawn)
    for step in range(11):
        x = 0.005 + step * 0.092
        pen.poly(((x, 0.38), (x + 0.03, 0.33), (x + 0.06, 0.38), (x + 0.06, 0.6), (x, 0.6)), (248, 246, 240))
    pen.path(((0, 0.43), (1, 0.43)), (240, 238, 230), 0.03)
    pen.path(((0, 0.54), (1, 0.54)), (240, 238, 230), 0.03)
    petals = ((240, 170, 190), (248, 226, 130), (246, 246, 250), (190, 160, 220))
    for step in range(12):
        x = float(rng.uniform(0.0, 0.22) if step % 2 else rng.uniform(0.78, 1.0))
        y = float(rng.uniform(0.66, 0.96))
        pen.path(((x, y), (x, y + 0.05)), (112, 156, 100), 0.012)
        pen.oval(x - 0.026, y - 0.026, x + 0.026, y + 0.026, petals[step % 4])
        pen.oval(x - 0.01, y - 0.01, x + 0.01, y + 0.01, (250, 210, 110))
    return lawn


def street(pen: Pen, rng: np.random.Generator) -> RGB:
    """A row of gabled houses, pavement, road with a dashed line, traffic light."""
    fade(pen, (204, 216, 226), (234, 234, 230), 0, 0.6)
    walls = ((214, 190, 170), (196, 200, 196), (226, 214, 180), (204, 180, 178), (190, 198, 210))
    for step, place in enumerate(rng.permutation(5)):
        x, top = step * 0.2, 0.22 + float(rng.uniform(-0.05, 0.05))
        pen.box(x, top, x + 0.2, 0.66, walls[place])
        pen.poly(((x - 0.005, top), (x + 0.1, top - 0.12), (x + 0.205, top)), (146, 122, 116))
        for wx in (x + 0.03, x + 0.12):
            for wy in (top + 0.05, top + 0.18):
                pen.box(wx, wy, wx + 0.055, wy + 0.08, (236, 240, 240))
        pen.box(x + 0.075, 0.54, x + 0.13, 0.66, (120, 104, 98))
    pen.box(0, 0.66, 1, 0.76, (212, 208, 204))
    pen.box(0, 0.76, 1, 1, (136, 138, 146))
    for step in range(4):
        pen.box(step * 0.28 + 0.02, 0.87, step * 0.28 + 0.16, 0.9, (248, 246, 236))
    pen.path(((0.92, 0.3), (0.92, 0.76)), (70, 72, 80), 0.024)
    pen.box(0.87, 0.12, 0.97, 0.36, (70, 72, 80), radius=0.02)
    for y, lit in ((0.14, (236, 110, 100)), (0.21, (246, 206, 110)), (0.28, (120, 196, 130))):
        pen.oval(0.892, y, 0.948, y + 0.06, lit)
    return (136, 138, 146)


def beach(pen: Pen, rng: np.random.Generator) -> RGB:
    """Sand, a band of sea with surf, sun, palm, starfish."""
    sand = pick(rng, ((242, 224, 182), (238, 218, 178), (244, 228, 194)))
    fade(pen, (170, 216, 238), (226, 242, 244), 0, 0.42)
    pen.oval(0.66, 0.05, 0.84, 0.23, (254, 238, 164))
    fade(pen, (96, 176, 196), (146, 206, 214), 0.42, 0.58, 4)
    pen.box(0, 0.58, 1, 1, sand)
    pen.poly([(0, 0.56), (1, 0.56), *((1 - step / 8, 0.6 + 0.02 * (step % 2)) for step in range(9))], (250, 252, 250))
    pen.path([(0.12, 0.74), (0.1, 0.5), (0.14, 0.3), (0.2, 0.2)], (164, 134, 104), 0.045)
    for dx, dy in ((0.2, 0.08), (0.22, -0.06), (0.06, -0.16), (-0.14, -0.1), (-0.2, 0.04), (-0.12, 0.14), (0.12, 0.17)):
        pen.poly(
            ((0.2, 0.18), (0.2 + dx * 0.6, 0.15 + dy * 0.5), (0.2 + dx, 0.2 + dy), (0.2 + dx * 0.5, 0.22 + dy * 0.6)),
            (116, 166, 120),
        )
    for _ in range(7):
        x, y = (float(v) for v in rng.uniform((0, 0.68), (1, 0.98)))
        pen.oval(x, y, x + 0.03, y + 0.015, mix(sand, (150, 120, 80), 0.35))
    x, y = 0.88 + float(rng.uniform(-0.05, 0.05)), 0.78
    pen.poly(
        [
            (x + (0.05 if k % 2 else 0.02) * np.sin(k * 0.628), y - (0.05 if k % 2 else 0.02) * np.cos(k * 0.628))
            for k in range(10)
        ],
        (236, 164, 130),
    )
    return sand


def snow(pen: Pen, rng: np.random.Generator) -> RGB:
    """White hills, snowy firs, a snowman, flakes."""
    ground = (240, 244, 250)
    fade(pen, (164, 182, 204), (214, 224, 236), 0, 0.6)
    pen.oval(-0.3, 0.42, 0.6, 0.9, (226, 234, 244))
    pen.oval(0.4, 0.46, 1.3, 0.9, (218, 228, 240))
    for x, tall in ((0.08, 0.4), (0.26, 0.28), (0.78, 0.26)):
        _fir(pen, x + float(rng.uniform(-0.03, 0.03)), 0.62, tall, (120, 152, 142), snow=True)
    pen.poly([(0, 0.66), *((x / 6, 0.62 + 0.03 * (x % 2)) for x in range(7)), (1, 0.66), (1, 1), (0, 1)], ground)
    for y, r in ((0.64, 0.085), (0.51, 0.065), (0.41, 0.045)):
        pen.oval(0.9 - r - 0.008, y - r - 0.008, 0.9 + r + 0.008, y + r + 0.008, (176, 190, 208))
        pen.oval(0.9 - r, y - r, 0.9 + r, y + r, WHITE)
    pen.box(0.865, 0.32, 0.935, 0.38, (72, 74, 84))
    pen.poly(((0.9, 0.4), (0.83, 0.42), (0.9, 0.425)), (240, 150, 90))
    for _ in range(34):
        x, y, r = (float(v) for v in rng.uniform((0, 0, 0.007), (1, 0.98, 0.014)))
        pen.oval(x - r, y - r, x + r, y + r, WHITE if y < 0.6 else (206, 218, 234))
    return ground


def mountains(pen: Pen, rng: np.random.Generator) -> RGB:
    """Jagged grey peaks with snow caps, foothills, a stony meadow."""
    meadow = pick(rng, ((190, 196, 158), (182, 192, 166), (198, 194, 160)))
    fade(pen, (170, 202, 228), (230, 236, 238), 0, 0.6)
    for x, top, wide, shade in (
        (0.5, 0.2, 0.42, (168, 178, 194)),
        (0.16, 0.08, 0.36, (146, 154, 172)),
        (0.84, 0.05, 0.38, (138, 146, 166)),
    ):
        top += float(rng.uniform(-0.03, 0.04))
        base = 0.72
        pen.poly(((x, top), (x + wide, base), (x - wide, base)), shade)
        pen.poly(
            ((x, top), (x + wide * 0.55, top + 0.55 * (base - top)), (x + wide, base), (x + wide * 0.2, base)),
            mix(shade, DARK, 0.3),
        )
        t = 0.32 * (base - top)
        pen.poly(
            (
                (x, top),
                (x + wide * 0.32, top + t),
                (x + wide * 0.14, top + t * 0.75),
                (x, top + t * 1.1),
                (x - wide * 0.16, top + t * 0.75),
                (x - wide * 0.32, top + t),
            ),
            (250, 252, 254),
        )
    pen.poly(((0, 0.62), (0.2, 0.58), (0.45, 0.64), (0.7, 0.6), (1, 0.65), (1, 1), (0, 1)), meadow)
    for step in range(7):
        x = float(rng.uniform(0, 0.2) if step % 2 else rng.uniform(0.8, 1))
        y = float(rng.uniform(0.72, 0.94))
        pen.poly(((x - 0.04, y + 0.03), (x - 0.02, y), (x + 0.02, y - 0.01), (x + 0.045, y + 0.03)), (158, 158, 160))
    return meadow


def lake(pen: Pen, rng: np.random.Generator) -> RGB:
    """Dark wooded shore mirrored in still water, reeds, water lilies, a jetty."""
    water = pick(rng, ((150, 196, 204), (146, 188, 208), (158, 198, 196)))
    fade(pen, (236, 226, 210), (244, 238, 226), 0, 0.36, 5)
    pen.oval(-0.2, 0.18, 0.6, 0.6, (168, 188, 170))
    pen.oval(0.4, 0.2, 1.2, 0.6, (156, 178, 166))
    for step in range(12):
        x = 0.04 + step * 0.085
        _fir(pen, x, 0.43, 0.16 + float(rng.uniform(0, 0.09)), (104, 136, 118))
    fade(pen, mix(water, (90, 130, 120), 0.5), water, 0.42, 0.74, 6)
    pen.box(0, 0.74, 1, 1, water)
    for step in range(14):
        x, y = float(rng.uniform(0, 0.9)), 0.5 + step * 0.035
        pen.path(((x, y), (x + 0.13, y)), (226, 242, 244), 0.01)
    for x in (0.03, 0.07, 0.11, 0.93, 0.97):
        tall = float(rng.uniform(0.24, 0.36))
        pen.path(((x, 1.0), (x + 0.01, 1 - tall)), (124, 146, 98), 0.016)
        pen.oval(x - 0.012, 0.92 - tall, x + 0.03, 1.04 - tall, (136, 104, 82))
    for x, y in ((0.2, 0.88), (0.82, 0.8), (0.86, 0.92)):
        pen.oval(x - 0.06, y - 0.022, x + 0.06, y + 0.022, (142, 176, 128))
        pen.oval(x - 0.018, y - 0.03, x + 0.018, y, (250, 232, 238))
    return water


def city(pen: Pen, rng: np.random.Generator) -> RGB:
    """A dusk skyline of towers with lit windows, one with a spire, over a square."""
    fade(pen, (150, 152, 186), (240, 206, 184), 0, 0.64)
    x = 0.0
    while x < 1.0:
        wide = float(rng.uniform(0.1, 0.16))
        top = float(rng.uniform(0.08, 0.26)) if not 0.35 < x < 0.6 else float(rng.uniform(0.2, 0.34))
        shade = pick(rng, ((96, 104, 132), (112, 116, 146), (84, 94, 122)))
        pen.box(x, top, x + wide, 0.72, shade)
        if rng.random() < 0.4:
            pen.path(((x + wide / 2, top), (x + wide / 2, top - 0.08)), shade, 0.014)
        for row in range(int((0.68 - top) / 0.07)):
            for wx in (0.22, 0.52, 0.8):
                if rng.random() < 0.7:
                    left = x + wide * wx - 0.012
                    pen.box(left, top + 0.03 + row * 0.07, left + 0.024, top + 0.065 + row * 0.07, (250, 228, 160))
        x += wide + 0.008
    ground = (178, 174, 182)
    pen.box(0, 0.7, 1, 1, ground)
    for y in (0.78, 0.88):
        pen.path(((0, y), (1, y)), (160, 156, 166), 0.01)
    for k in (-0.3, 0.1, 0.5, 0.9, 1.3):
        pen.path(((0.5 + (k - 0.5) * 0.6, 0.7), (k, 1.0)), (160, 156, 166), 0.01)
    return ground
