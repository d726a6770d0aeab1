"""Indoor scenes."""

import numpy as np

from ray_app.demo.drawings.pen import DARK, GREY, RGB, WHITE, Pen, arc_points, mix, pick


def living_room(pen: Pen, rng: np.random.Generator) -> RGB:
    """Window with curtains, framed picture, standing lamp, wooden floor."""
    wall = pick(rng, ((226, 214, 196), (210, 216, 206), (222, 208, 204)))
    curtain, floor = pick(rng, ((186, 150, 132), (150, 160, 172), (170, 166, 140))), (196, 170, 142)
    pen.box(0, 0, 1, 0.66, wall)
    pen.box(0, 0.66, 1, 1, floor)
    for y in (0.74, 0.83, 0.93):
        pen.path(((0, y), (1, y)), mix(floor, DARK, 0.2), 0.008)
    pen.box(0, 0.64, 1, 0.675, WHITE)
    pen.box(0.08, 0.06, 0.42, 0.44, WHITE)
    pen.box(0.1, 0.08, 0.4, 0.42, (196, 220, 232))
    pen.path(((0.25, 0.08), (0.25, 0.42)), WHITE, 0.015)
    pen.path(((0.1, 0.24), (0.4, 0.24)), WHITE, 0.015)
    pen.poly(((0.04, 0.03), (0.16, 0.03), (0.1, 0.28), (0.14, 0.6), (0.03, 0.6)), curtain)
    pen.poly(((0.46, 0.03), (0.34, 0.03), (0.4, 0.28), (0.36, 0.6), (0.47, 0.6)), curtain)
    pen.path(((0.02, 0.035), (0.48, 0.035)), DARK, 0.014)
    pen.box(0.56, 0.1, 0.78, 0.28, (140, 112, 88))
    pen.box(0.58, 0.12, 0.76, 0.26, (236, 230, 214))
    pen.poly(((0.58, 0.26), (0.64, 0.18), (0.68, 0.22), (0.72, 0.16), (0.76, 0.26)), (158, 172, 168))
    pen.path(((0.9, 0.24), (0.9, 0.72)), DARK, 0.016)
    pen.poly(((0.85, 0.12), (0.95, 0.12), (0.99, 0.28), (0.81, 0.28)), (244, 226, 176))
    return floor


def bedroom(pen: Pen, rng: np.random.Generator) -> RGB:
    """Night: dark blue wall, moon in the window, string of lights, end of a bed with pillows, carpet."""
    wall = pick(rng, ((116, 122, 152), (126, 116, 148), (108, 128, 146)))
    floor = (176, 168, 178)
    pen.box(0, 0, 1, 0.68, wall)
    pen.box(0, 0.68, 1, 1, floor)
    pen.box(0.6, 0.08, 0.9, 0.42, (224, 222, 230))
    pen.box(0.62, 0.1, 0.88, 0.4, (52, 58, 92))
    pen.oval(0.7, 0.15, 0.84, 0.29, (250, 244, 208))
    pen.oval(0.665, 0.13, 0.79, 0.265, (52, 58, 92))
    for x, y in ((0.66, 0.33), (0.8, 0.35), (0.85, 0.14), (0.65, 0.14)):
        pen.oval(x - 0.008, y - 0.008, x + 0.008, y + 0.008, WHITE)
    pen.arc(-0.04, -0.12, 0.56, 0.2, 10, 170, (210, 206, 214), 0.008)
    for x, y in ((0.06, 0.13), (0.15, 0.18), (0.26, 0.2), (0.37, 0.18), (0.46, 0.13)):
        pen.oval(x - 0.02, y - 0.012, x + 0.02, y + 0.028, (252, 232, 160))
    pen.box(-0.1, 0.36, 0.1, 0.86, (138, 110, 96))
    pen.box(0.02, 0.56, 0.34, 0.86, (226, 224, 232))
    pen.box(0.06, 0.48, 0.24, 0.6, (250, 248, 250), radius=0.05)
    pen.box(0.14, 0.62, 0.36, 0.88, (166, 158, 184))
    pen.box(0.86, 0.56, 1.02, 0.84, (138, 110, 96))
    pen.path(((0.94, 0.46), (0.94, 0.56)), WHITE, 0.02)
    pen.poly(((0.9, 0.38), (0.98, 0.38), (1.0, 0.48), (0.88, 0.48)), (250, 226, 160))
    return floor


def office(pen: Pen, rng: np.random.Generator) -> RGB:
    """Ceiling lights, a board with a chart, desks with screens, grey carpet."""
    wall, floor = pick(rng, ((222, 226, 230), (214, 222, 228), (226, 226, 222))), (164, 172, 180)
    pen.box(0, 0, 1, 0.64, wall)
    pen.box(0, 0.64, 1, 1, floor)
    pen.box(0, 0, 1, 0.09, (204, 208, 214))
    for x in (0.08, 0.42, 0.76):
        pen.poly(((x, 0.02), (x + 0.18, 0.02), (x + 0.16, 0.07), (x + 0.02, 0.07)), (255, 255, 244))
    pen.box(0.26, 0.14, 0.7, 0.4, GREY)
    pen.box(0.28, 0.16, 0.68, 0.38, WHITE)
    for step, tall in enumerate(rng.permutation([0.05, 0.09, 0.12, 0.16])):
        pen.box(0.33 + step * 0.08, 0.36 - float(tall), 0.38 + step * 0.08, 0.36, (124, 156, 190))
    pen.path(((0.32, 0.27), (0.44, 0.22), (0.54, 0.24), (0.66, 0.18)), (214, 130, 110), 0.012)
    for x in (-0.06, 0.78):
        pen.box(x, 0.6, x + 0.28, 0.64, (168, 146, 124))
        pen.box(x + 0.03, 0.64, x + 0.05, 0.86, DARK)
        pen.box(x + 0.23, 0.64, x + 0.25, 0.86, DARK)
        pen.box(x + 0.12, 0.54, x + 0.16, 0.6, DARK)
        pen.box(x + 0.05, 0.38, x + 0.24, 0.55, (70, 74, 84))
        pen.box(x + 0.065, 0.395, x + 0.225, 0.535, (170, 206, 226))
        pen.path(((x + 0.08, 0.43), (x + 0.16, 0.43)), WHITE, 0.012)
        pen.path(((x + 0.08, 0.47), (x + 0.2, 0.47)), WHITE, 0.012)
    return floor


def kitchen(pen: Pen, rng: np.random.Generator) -> RGB:
    """Tiles, wall cupboards, hanging pans, stove, worktop in front."""
    tile = pick(rng, ((218, 232, 230), (236, 232, 220), (222, 228, 238)))
    cupboard = pick(rng, ((196, 178, 154), (172, 186, 184), (206, 200, 188)))
    pen.box(0, 0, 1, 1, tile)
    for step in range(1, 9):
        pen.path(((step / 8, 0.24), (step / 8, 0.64)), mix(tile, GREY, 0.5), 0.008)
    for y in (0.24, 0.34, 0.44, 0.54):
        pen.path(((0, y), (1, y)), mix(tile, GREY, 0.5), 0.008)
    for x in (0.0, 0.2, 0.62, 0.82):
        pen.box(x + 0.005, 0, x + 0.19, 0.22, cupboard)
        pen.box(x + 0.03, 0.03, x + 0.165, 0.19, mix(cupboard, WHITE, 0.2))
        pen.oval(x + 0.085, 0.16, x + 0.11, 0.185, DARK)
    pen.poly(((0.44, 0.0), (0.58, 0.0), (0.6, 0.12), (0.66, 0.22), (0.36, 0.22), (0.42, 0.12)), (190, 194, 200))
    pen.path(((0.02, 0.27), (0.34, 0.27)), DARK, 0.012)
    for x, r in ((0.08, 0.05), (0.22, 0.06)):
        pen.path(((x, 0.27), (x, 0.36)), DARK, 0.016)
        pen.oval(x - r, 0.35, x + r, 0.35 + 2 * r, (112, 112, 120))
    pen.box(0.78, 0.48, 0.96, 0.62, (168, 172, 178), radius=0.03)
    pen.path(((0.76, 0.5), (0.98, 0.5)), DARK, 0.018)
    pen.box(0, 0.62, 1, 0.72, (190, 186, 180))
    pen.box(0, 0.72, 1, 1, cupboard)
    for x in (0.25, 0.5, 0.75):
        pen.path(((x, 0.72), (x, 1)), mix(cupboard, DARK, 0.4), 0.01)
    return (190, 186, 180)


def cafe(pen: Pen, rng: np.random.Generator) -> RGB:
    """Brick wall under a striped awning, menu on a blackboard, hanging lamps, round tables."""
    brick = pick(rng, ((206, 176, 160), (212, 186, 162), (196, 172, 164)))
    stripe, floor = pick(rng, ((170, 110, 104), (104, 140, 126), (116, 124, 150))), (188, 164, 142)
    pen.box(0, 0, 1, 0.72, brick)
    for row in range(7):
        y = 0.2 + row * 0.075
        pen.path(((0, y), (1, y)), mix(brick, WHITE, 0.5), 0.008)
        for step in range(6):
            x = step * 0.19 + (0.09 if row % 2 else 0.0)
            pen.path(((x, y), (x, y + 0.075)), mix(brick, WHITE, 0.5), 0.008)
    pen.box(0, 0.72, 1, 1, floor)
    for step in range(8):
        x = step / 8
        shade = stripe if step % 2 else (246, 242, 234)
        pen.poly([(x, 0), (x + 0.125, 0), *arc_points(x, 0.1, x + 0.125, 0.22, 0, 180)], shade)
    pen.box(0.66, 0.26, 0.96, 0.6, (150, 116, 86))
    pen.box(0.68, 0.28, 0.94, 0.58, (66, 74, 72))
    for row, wide in enumerate((0.18, 0.14, 0.2, 0.12)):
        pen.path(((0.71, 0.33 + row * 0.06), (0.71 + wide, 0.33 + row * 0.06)), WHITE, 0.014)
    for x in (0.1, 0.34):
        pen.path(((x, 0.2), (x, 0.3)), DARK, 0.012)
        pen.oval(x - 0.06, 0.28, x + 0.06, 0.4, (248, 220, 150), start=180, end=360)
    for x in (0.06, 0.94):
        pen.path(((x, 0.68), (x, 0.92)), DARK, 0.025)
        pen.oval(x - 0.16, 0.64, x + 0.16, 0.72, (150, 118, 90))
    return floor


def party(pen: Pen, rng: np.random.Generator) -> RGB:
    """Bunting, balloons, confetti, a table cloth."""
    wall = pick(rng, ((246, 226, 214), (226, 222, 244), (218, 236, 238)))
    bright = ((244, 150, 150), (250, 206, 120), (150, 200, 160), (150, 180, 232), (206, 160, 220))
    pen.box(0, 0, 1, 1, wall)
    for _ in range(44):
        x, y, r = (float(v) for v in rng.uniform((0, 0.1, 0.008), (1, 0.74, 0.015)))
        pen.box(x - r, y - r, x + r, y + r, bright[int(rng.integers(5))])
    pen.arc(-0.05, -0.3, 0.55, 0.14, 10, 170, DARK, 0.01)
    pen.arc(0.45, -0.3, 1.05, 0.14, 10, 170, DARK, 0.01)
    for step in range(10):
        x = 0.03 + step * 0.1
        dip = 0.14 - 2.2 * ((x % 0.5) - 0.25) ** 2
        pen.poly(((x - 0.035, dip - 0.02), (x + 0.035, dip - 0.02), (x, dip + 0.085)), bright[step % 5])
    for x, y, shade in ((0.1, 0.3, 0), (0.22, 0.4, 3), (0.06, 0.48, 1), (0.9, 0.3, 4), (0.8, 0.4, 2), (0.95, 0.47, 0)):
        y += float(rng.uniform(-0.03, 0.03))
        pen.path(((x, y), (x + (0.5 - x) * 0.1, y + 0.34)), GREY, 0.008)
        pen.oval(x - 0.075, y - 0.09, x + 0.075, y + 0.09, bright[shade])
        pen.oval(x - 0.045, y - 0.06, x - 0.015, y - 0.02, WHITE)
    pen.box(0, 0.74, 1, 1, (246, 246, 250))
    for step in range(8):
        pen.oval(step / 8, 0.7, (step + 1) / 8, 0.82, (222, 214, 232))
    return (232, 230, 238)
