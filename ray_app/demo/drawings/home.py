"""Home: each function draws one object on the unit square, standing on its lower edge, mainly in "main"."""

from ray_app.demo.drawings.pen import Pen


def sofa(pen: Pen) -> None:
    """Wide, two cushions, two arms."""
    for x in (0.1, 0.84):
        pen.box(x, 0.86, x + 0.06, 0.96, "wood")
    pen.box(0.08, 0.36, 0.92, 0.75, "main", radius=0.1)
    pen.path(((0.5, 0.38), (0.5, 0.6)), "line", 0.012)
    pen.box(0.12, 0.6, 0.5, 0.76, "light", radius=0.05)
    pen.box(0.5, 0.6, 0.88, 0.76, "light", radius=0.05)
    pen.box(0.08, 0.74, 0.92, 0.88, "dark", radius=0.03)
    pen.box(0.0, 0.5, 0.15, 0.89, "main", radius=0.07)
    pen.box(0.85, 0.5, 1.0, 0.89, "main", radius=0.07)


def armchair(pen: Pen) -> None:
    """High back with buttons, one cushion."""
    for x in (0.2, 0.74):
        pen.poly(((x, 0.86), (x + 0.07, 0.86), (x + 0.05, 0.98), (x + 0.02, 0.98)), "wood")
    pen.box(0.22, 0.06, 0.78, 0.72, "main", radius=0.2)
    for x, y in ((0.38, 0.24), (0.62, 0.24), (0.5, 0.36), (0.38, 0.46), (0.62, 0.46)):
        pen.oval(x - 0.02, y - 0.02, x + 0.02, y + 0.02, "line", line=False)
    pen.box(0.24, 0.58, 0.76, 0.74, "light", radius=0.06)
    pen.box(0.18, 0.72, 0.82, 0.88, "dark", radius=0.03)
    pen.box(0.1, 0.44, 0.27, 0.89, "main", radius=0.08)
    pen.box(0.73, 0.44, 0.9, 0.89, "main", radius=0.08)


def bed(pen: Pen) -> None:
    """Seen from its foot: headboard, two pillows, a wide blanket."""
    pen.box(0.08, 0.84, 0.16, 0.97, "wood")
    pen.box(0.84, 0.84, 0.92, 0.97, "wood")
    pen.box(0.12, 0.18, 0.88, 0.6, "wood", radius=0.08)
    pen.poly(((0.14, 0.46), (0.86, 0.46), (0.98, 0.86), (0.02, 0.86)), "cream")
    pen.box(0.19, 0.34, 0.48, 0.5, "cream", radius=0.07)
    pen.box(0.52, 0.34, 0.81, 0.5, "cream", radius=0.07)
    pen.poly(((0.11, 0.54), (0.89, 0.54), (1.0, 0.9), (0.0, 0.9)), "main")
    pen.poly(((0.12, 0.5), (0.88, 0.5), (0.91, 0.6), (0.09, 0.6)), "light")
    pen.path(((0.34, 0.6), (0.28, 0.9)), "dark", 0.015)
    pen.path(((0.66, 0.6), (0.72, 0.9)), "dark", 0.015)


def vase(pen: Pen) -> None:
    """Belly, neck, and stems with leaves."""
    for x, y in ((0.3, 0.1), (0.5, 0.02), (0.7, 0.1)):
        pen.path(((0.5, 0.44), (x, y + 0.05)), "leaf", 0.022)
        pen.oval(x - 0.06, y, x + 0.06, y + 0.12, "cream")
        pen.oval(x - 0.025, y + 0.035, x + 0.025, y + 0.085, "wood", line=False)
    pen.poly(
        ((0.38, 0.36), (0.62, 0.36), (0.58, 0.48), (0.74, 0.62), (0.76, 0.76), (0.66, 0.96), (0.34, 0.96), (0.24, 0.76),
         (0.26, 0.62), (0.42, 0.48))
    )  # fmt: skip
    pen.path(((0.25, 0.66), (0.75, 0.66)), "light", 0.035)
    pen.path(((0.26, 0.77), (0.74, 0.77)), "dark", 0.035)


def candle(pen: Pen) -> None:
    """A thick candle on a dish, burning."""
    pen.oval(0.12, 0.82, 0.88, 0.98, "metal")
    pen.box(0.28, 0.38, 0.72, 0.92, "main", radius=0.04)
    pen.poly(((0.28, 0.4), (0.28, 0.6), (0.33, 0.66), (0.38, 0.58), (0.42, 0.5), (0.5, 0.55), (0.55, 0.4)), "light")
    pen.oval(0.28, 0.32, 0.72, 0.46, "light")
    pen.path(((0.5, 0.39), (0.5, 0.28)), "ink", 0.025)
    pen.poly(
        ((0.5, 0.02), (0.58, 0.17), (0.57, 0.26), (0.5, 0.31), (0.43, 0.26), (0.42, 0.17)), (255, 190, 70), line=False
    )
    pen.poly(((0.5, 0.13), (0.54, 0.22), (0.5, 0.28), (0.46, 0.22)), (255, 244, 190), line=False)


def lamp(pen: Pen) -> None:
    """A table lamp with a wide shade."""
    pen.oval(0.26, 0.86, 0.74, 0.98, "dark")
    pen.box(0.46, 0.5, 0.54, 0.92, "metal")
    pen.oval(0.4, 0.66, 0.6, 0.84, "main")
    pen.oval(0.4, 0.5, 0.6, 0.62, (255, 240, 190))
    pen.poly(((0.32, 0.06), (0.68, 0.06), (0.92, 0.54), (0.08, 0.54)))
    pen.path(((0.1, 0.49), (0.9, 0.49)), "trim", 0.02)
    pen.path(((0.7, 0.54), (0.7, 0.68)), "line", 0.012)


def rug(pen: Pen) -> None:
    """Flat on the floor, patterned, with fringes at both ends."""
    for step in range(9):
        y = 0.58 + step * 0.04
        drift = 0.1 - (y - 0.56) * 0.24
        pen.path(((drift + 0.04, y), (drift - 0.04, y + 0.01)), "trim", 0.016)
        pen.path(((0.96 - drift, y), (1.04 - drift, y + 0.01)), "trim", 0.016)
    pen.poly(((0.12, 0.54), (0.88, 0.54), (0.98, 0.94), (0.02, 0.94)))
    pen.poly(((0.18, 0.6), (0.82, 0.6), (0.88, 0.88), (0.12, 0.88)), "light")
    pen.poly(((0.22, 0.64), (0.78, 0.64), (0.82, 0.84), (0.18, 0.84)), "main", line=False)
    for x in (0.34, 0.5, 0.66):
        pen.poly(((x, 0.66), (x + 0.07, 0.74), (x, 0.82), (x - 0.07, 0.74)), "trim")
        pen.poly(((x, 0.7), (x + 0.035, 0.74), (x, 0.78), (x - 0.035, 0.74)), "main", line=False)


def mirror(pen: Pen) -> None:
    """An oval standing mirror with a broad frame."""
    pen.poly(((0.36, 0.84), (0.64, 0.84), (0.76, 0.98), (0.24, 0.98)), "dark")
    pen.oval(0.16, 0.0, 0.84, 0.93)
    pen.oval(0.2, 0.04, 0.8, 0.89, "main", line=False)
    pen.oval(0.29, 0.15, 0.71, 0.78, "glass")
    pen.path(((0.4, 0.52), (0.58, 0.26)), (255, 255, 255), 0.04)
    pen.path(((0.46, 0.62), (0.64, 0.38)), (255, 255, 255), 0.02)


def clock(pen: Pen) -> None:
    """An alarm clock: two bells, feet, hands."""
    pen.path(((0.26, 0.84), (0.16, 0.97)), "line", 0.06)
    pen.path(((0.74, 0.84), (0.84, 0.97)), "line", 0.06)
    pen.path(((0.5, 0.16), (0.5, 0.04)), "line", 0.05)
    pen.oval(0.1, 0.06, 0.44, 0.34, "dark", start=150, end=335)
    pen.oval(0.56, 0.06, 0.9, 0.34, "dark", start=205, end=390)
    pen.oval(0.1, 0.12, 0.9, 0.94)
    pen.oval(0.19, 0.21, 0.81, 0.85, "light")
    for x, y in ((0.5, 0.26), (0.75, 0.53), (0.5, 0.8), (0.25, 0.53)):
        pen.oval(x - 0.03, y - 0.03, x + 0.03, y + 0.03, "trim", line=False)
    pen.path(((0.5, 0.53), (0.5, 0.33)), "trim", 0.045)
    pen.path(((0.5, 0.53), (0.65, 0.63)), "trim", 0.045)


def bookshelf(pen: Pen) -> None:
    """Tall, three boards full of books."""
    pen.box(0.14, 0.02, 0.86, 0.97)
    books = ("cream", "metal", "wood", "ink", "cream", "metal")
    for row, y in enumerate((0.1, 0.4, 0.7)):
        pen.box(0.22, y, 0.78, y + 0.22, "dark")
        for step in range(5 if row != 1 else 4):
            x = 0.235 + step * 0.085
            top = y + (0.03, 0.06, 0.02, 0.05, 0.04)[(step + row) % 5]
            pen.box(x, top, x + 0.07, y + 0.22, books[(step * 2 + row) % 6 if step % 2 else (step + row) % 6])
    pen.oval(0.6, 0.52, 0.74, 0.62, "light")


DRAWINGS = {
    "sofa": sofa, "armchair": armchair, "bed": bed, "vase": vase, "candle": candle, "lamp": lamp, "rug": rug,
    "mirror": mirror, "clock": clock, "bookshelf": bookshelf,
}  # fmt: skip
