"""Food: each function draws one object on the unit square, standing on its lower edge, mainly in "main"."""

from ray_app.demo.drawings.pen import RGB, Pen, arc_points

CRUST: RGB = (214, 170, 112)
STEAM: RGB = (250, 250, 250)


def _steam(pen: Pen, x: float, y: float) -> None:
    pen.path(((x, y), (x - 0.03, y - 0.06), (x + 0.03, y - 0.12), (x, y - 0.2)), STEAM, 0.03)


def cake(pen: Pen) -> None:
    """Two tiers with icing, candles on top, on a stand."""
    pen.poly(((0.42, 0.86), (0.58, 0.86), (0.66, 0.98), (0.34, 0.98)), "metal")
    pen.oval(0.04, 0.78, 0.96, 0.92, "metal")
    pen.box(0.12, 0.54, 0.88, 0.85, "main", radius=0.05)
    pen.poly(((0.12, 0.54), (0.88, 0.54), (0.88, 0.64), (0.78, 0.7), (0.68, 0.62), (0.56, 0.72), (0.44, 0.62), (0.32, 0.7),
              (0.22, 0.62), (0.12, 0.66)), "light")  # fmt: skip
    pen.box(0.26, 0.28, 0.74, 0.55, "main", radius=0.05)
    pen.poly(
        ((0.26, 0.29), (0.74, 0.29), (0.74, 0.38), (0.66, 0.44), (0.56, 0.36), (0.44, 0.44), (0.34, 0.36), (0.26, 0.4)),
        "dark",
    )
    for x in (0.36, 0.5, 0.64):
        pen.box(x - 0.02, 0.13, x + 0.02, 0.29, "trim")
        pen.oval(x - 0.025, 0.03, x + 0.025, 0.12, (255, 196, 80), line=False)
    for x in (0.22, 0.36, 0.5, 0.64, 0.78):
        pen.oval(x - 0.03, 0.78, x + 0.03, 0.84, "trim", line=False)


def cupcake(pen: Pen) -> None:
    """A pleated paper cup under a swirl of frosting."""
    pen.poly(((0.22, 0.58), (0.78, 0.58), (0.68, 0.97), (0.32, 0.97)), "cream")
    for x in (0.36, 0.5, 0.64):
        pen.path(((x, 0.6), (0.5 + (x - 0.5) * 0.75, 0.96)), "wood", 0.025)
    pen.oval(0.12, 0.44, 0.88, 0.7)
    pen.oval(0.2, 0.28, 0.8, 0.54, "light")
    pen.oval(0.3, 0.14, 0.7, 0.38)
    pen.poly(((0.38, 0.2), (0.48, 0.02), (0.58, 0.06), (0.62, 0.2)), "light")
    for x, y in ((0.3, 0.56), (0.46, 0.6), (0.66, 0.58), (0.36, 0.4), (0.56, 0.44), (0.5, 0.26)):
        pen.path(((x, y), (x + 0.05, y + 0.025)), "trim", 0.03)


def bread(pen: Pen) -> None:
    """A loaf with slashes, a slice leaning before it."""
    pen.box(0.02, 0.86, 0.98, 0.96, "wood", radius=0.03)
    pen.poly([*arc_points(0.08, 0.3, 0.96, 0.9, 180, 360), (0.96, 0.86), (0.08, 0.86)])
    for x in (0.42, 0.58, 0.74):
        pen.path(((x, 0.36), (x + 0.1, 0.56)), "trim", 0.03)
    pen.oval(0.02, 0.36, 0.36, 0.64, "dark")
    pen.box(0.06, 0.5, 0.32, 0.88, "dark", radius=0.03)
    pen.oval(0.05, 0.39, 0.33, 0.61, "light", line=False)
    pen.box(0.09, 0.5, 0.29, 0.85, "light", line=False)


def pizza(pen: Pen) -> None:
    """Round, cut in slices, one drawn out; olives and mushrooms on it."""
    pen.oval(0.02, 0.04, 0.96, 0.98, CRUST)
    pen.oval(0.1, 0.12, 0.88, 0.9, "main")
    for x0, y0, x1, y1 in ((0.14, 0.3, 0.84, 0.72), (0.14, 0.72, 0.84, 0.3), (0.49, 0.1, 0.49, 0.92)):
        pen.path(((x0, y0), (x1, y1)), "line", 0.014)
    for x, y in ((0.34, 0.26), (0.66, 0.3), (0.24, 0.52), (0.74, 0.52), (0.4, 0.78), (0.62, 0.74)):
        pen.oval(x - 0.055, y - 0.055, x + 0.055, y + 0.055, "dark")
        pen.oval(x - 0.02, y - 0.02, x + 0.02, y + 0.02, "cream", line=False)
    for x, y in ((0.44, 0.4), (0.6, 0.56), (0.36, 0.62), (0.56, 0.2)):
        pen.oval(x - 0.03, y - 0.03, x + 0.03, y + 0.03, "ink", line=False)


def burger(pen: Pen) -> None:
    """A bun with sesame, lettuce, patty, cheese."""
    pen.box(0.08, 0.74, 0.92, 0.95, "main", radius=0.09)
    pen.box(0.06, 0.63, 0.94, 0.76, (104, 66, 46), radius=0.05)
    pen.poly(((0.1, 0.6), (0.9, 0.6), (0.72, 0.67), (0.6, 0.62), (0.46, 0.71), (0.32, 0.62)), (250, 206, 96))
    pen.poly(((0.04, 0.54), (0.96, 0.54), (0.98, 0.6), (0.84, 0.63), (0.7, 0.59), (0.56, 0.63), (0.42, 0.59), (0.28, 0.63),
              (0.14, 0.59), (0.02, 0.62)), (146, 196, 110))  # fmt: skip
    pen.poly([*arc_points(0.06, 0.08, 0.94, 0.98, 180, 360), (0.94, 0.55), (0.06, 0.55)])
    for x, y in ((0.3, 0.3), (0.46, 0.2), (0.64, 0.26), (0.52, 0.36), (0.74, 0.4), (0.24, 0.44)):
        pen.oval(x - 0.03, y - 0.018, x + 0.03, y + 0.018, "cream", line=False)


def soup(pen: Pen) -> None:
    """A wide bowl seen from above, full, with steam and a spoon."""
    pen.poly([*arc_points(0.02, 0.16, 0.98, 0.98, 0, 180)], "trim")
    pen.box(0.34, 0.9, 0.66, 0.98, "trim")
    pen.oval(0.02, 0.32, 0.98, 0.78, "trim")
    pen.oval(0.08, 0.36, 0.92, 0.74)
    pen.oval(0.2, 0.42, 0.58, 0.58, "light", line=False)
    for x, y in ((0.36, 0.6), (0.6, 0.5), (0.54, 0.66), (0.28, 0.5)):
        pen.oval(x - 0.03, y - 0.02, x + 0.03, y + 0.02, "leaf", line=False)
    pen.path(((0.72, 0.6), (0.98, 0.2)), "metal", 0.05)
    for x in (0.3, 0.48, 0.66):
        _steam(pen, x, 0.32)


def salad(pen: Pen) -> None:
    """A wooden bowl heaped with pointed leaves."""
    for x, y, lean, shade in (
        (0.2, 0.6, -0.16, "dark"), (0.8, 0.6, 0.16, "dark"), (0.36, 0.58, -0.1, "main"), (0.64, 0.58, 0.1, "main"),
        (0.5, 0.56, 0.0, "light"), (0.26, 0.66, -0.18, "light"), (0.74, 0.66, 0.18, "main"), (0.42, 0.68, -0.04, "dark"),
        (0.6, 0.68, 0.06, "light"),
    ):  # fmt: skip
        tip = (x + lean, y - 0.46)
        pen.poly(
            ((x - 0.06, y), (x - 0.12 + lean * 0.6, y - 0.22), tip, (x + 0.12 + lean * 0.6, y - 0.22), (x + 0.06, y)),
            shade,
        )
        pen.path(((x, y), (x + lean * 0.8, y - 0.34)), "line", 0.014)
    for x in (0.32, 0.52, 0.7):
        pen.oval(x - 0.055, 0.5, x + 0.055, 0.61, "cream")
    pen.poly(arc_points(0.04, 0.2, 0.96, 0.97, 5, 175), "wood")
    pen.path(((0.06, 0.64), (0.94, 0.64)), "cream", 0.025)


def coffee(pen: Pen) -> None:
    """A cup with a handle on a saucer, steaming."""
    for x in (0.34, 0.52):
        _steam(pen, x, 0.26)
    pen.oval(0.02, 0.82, 0.9, 0.98, "light")
    pen.arc(0.6, 0.42, 0.98, 0.76, -100, 100, "line", 0.1)
    pen.arc(0.6, 0.42, 0.98, 0.76, -100, 100, "main", 0.065)
    pen.poly([(0.12, 0.34), (0.78, 0.34), (0.76, 0.62), *arc_points(0.16, 0.4, 0.74, 0.92, 20, 160), (0.14, 0.62)])
    pen.oval(0.12, 0.27, 0.78, 0.42, "light")
    pen.oval(0.17, 0.3, 0.73, 0.4, (92, 60, 42), line=False)
    pen.path(((0.22, 0.46), (0.24, 0.68)), "light", 0.035)


def smoothie(pen: Pen) -> None:
    """A tall glass with a straw and a slice on its rim."""
    pen.path(((0.5, 0.3), (0.64, 0.0), (0.8, 0.0)), "ink", 0.05)
    pen.poly(((0.22, 0.18), (0.78, 0.18), (0.68, 0.97), (0.32, 0.97)), "glass")
    pen.poly(((0.24, 0.28), (0.76, 0.28), (0.67, 0.94), (0.33, 0.94)))
    pen.oval(0.24, 0.22, 0.76, 0.36, "light")
    pen.path(((0.33, 0.4), (0.38, 0.82)), "light", 0.05)
    pen.oval(0.08, 0.08, 0.36, 0.36, (250, 236, 170))
    pen.oval(0.13, 0.13, 0.31, 0.31, "cream", line=False)
    pen.path(((0.22, 0.1), (0.22, 0.34)), "wood", 0.014)
    pen.path(((0.1, 0.22), (0.34, 0.22)), "wood", 0.014)


def ice_cream(pen: Pen) -> None:
    """Three scoops on a waffle cone."""
    pen.poly(((0.26, 0.5), (0.74, 0.5), (0.5, 0.99)), CRUST)
    for x in (0.36, 0.5):
        pen.path(((x, 0.52), (x + 0.17, 0.72 - (x - 0.36))), "wood", 0.018)
        pen.path(((1 - x, 0.52), (0.83 - x, 0.72 - (x - 0.36))), "wood", 0.018)
    pen.oval(0.32, 0.02, 0.68, 0.36, "light")
    pen.oval(0.16, 0.22, 0.52, 0.56)
    pen.oval(0.48, 0.22, 0.84, 0.56)
    pen.oval(0.22, 0.44, 0.4, 0.6, "main", line=False)
    pen.oval(0.58, 0.44, 0.74, 0.62, "main", line=False)
    for x, y in ((0.44, 0.12), (0.56, 0.2), (0.28, 0.34), (0.38, 0.44), (0.6, 0.42), (0.72, 0.34)):
        pen.path(((x, y), (x + 0.04, y + 0.03)), "trim", 0.028)


DRAWINGS = {
    "cake": cake, "cupcake": cupcake, "bread": bread, "pizza": pizza, "burger": burger, "soup": soup, "salad": salad,
    "coffee": coffee, "smoothie": smoothie, "ice_cream": ice_cream,
}  # fmt: skip
