"""Fashion: each function draws one object on the unit square, standing on its lower edge, mainly in "main"."""

from ray_app.demo.drawings.pen import Pen, arc_points


def t_shirt(pen: Pen) -> None:
    """Short sleeves, round neck."""
    pen.poly(((0.34, 0.06), (0.66, 0.06), (0.82, 0.12), (1.0, 0.36), (0.84, 0.48), (0.75, 0.38), (0.75, 0.96), (0.25, 0.96),
              (0.25, 0.38), (0.16, 0.48), (0.0, 0.36), (0.18, 0.12)))  # fmt: skip
    pen.oval(0.36, -0.06, 0.64, 0.2, "trim", start=20, end=160)
    pen.path(((0.04, 0.32), (0.2, 0.44)), "line", 0.015)
    pen.path(((0.96, 0.32), (0.8, 0.44)), "line", 0.015)
    pen.oval(0.4, 0.38, 0.6, 0.58, "light", line=False)


def sweater(pen: Pen) -> None:
    """Long sleeves, ribbed hem and cuffs, a high collar, a zigzag across."""
    for flip in (0, 1):
        sleeve = ((0.26, 0.16), (0.1, 0.3), (0.0, 0.82), (0.16, 0.86), (0.28, 0.44))
        cuff = ((-0.01, 0.78), (0.17, 0.82), (0.16, 0.92), (-0.02, 0.88))
        pen.poly([(1 - x if flip else x, y) for x, y in sleeve], "dark")
        pen.poly([(1 - x if flip else x, y) for x, y in cuff], "trim")
    pen.poly(((0.34, 0.12), (0.66, 0.12), (0.8, 0.2), (0.77, 0.96), (0.23, 0.96), (0.2, 0.2)))
    pen.box(0.36, 0.02, 0.64, 0.17, "light", radius=0.03)
    pen.path([(0.22 + 0.07 * step, 0.38 + 0.08 * (step % 2)) for step in range(9)], "trim", 0.035)
    pen.path([(0.22 + 0.07 * step, 0.52 + 0.08 * (step % 2)) for step in range(9)], "light", 0.035)
    pen.box(0.22, 0.85, 0.78, 0.97, "dark")
    for step in range(7):
        pen.path(((0.29 + step * 0.07, 0.86), (0.29 + step * 0.07, 0.96)), "line", 0.012)


def dress(pen: Pen) -> None:
    """Straps, a narrow waist with a belt, a long wide skirt."""
    pen.path(((0.38, 0.2), (0.4, 0.0)), "line", 0.035)
    pen.path(((0.62, 0.2), (0.6, 0.0)), "line", 0.035)
    pen.poly(((0.34, 0.12), (0.44, 0.17), (0.5, 0.13), (0.56, 0.17), (0.66, 0.12), (0.6, 0.4), (0.92, 0.94), (0.74, 0.98),
              (0.5, 0.95), (0.26, 0.98), (0.08, 0.94), (0.4, 0.4)))  # fmt: skip
    pen.poly(((0.39, 0.36), (0.61, 0.36), (0.62, 0.43), (0.38, 0.43)), "trim")
    for x in (0.28, 0.5, 0.72):
        pen.path((((x - 0.5) * 0.3 + 0.5, 0.48), (x, 0.92)), "dark", 0.025)


def skirt(pen: Pen) -> None:
    """A waistband over pleats."""
    pen.poly(
        (
            (0.28, 0.18),
            (0.72, 0.18),
            (0.98, 0.88),
            (0.82, 0.94),
            (0.66, 0.9),
            (0.5, 0.95),
            (0.34, 0.9),
            (0.18, 0.94),
            (0.02, 0.88),
        )
    )
    for left, right in ((0.18, 0.34), (0.5, 0.66), (0.82, 0.98)):
        top_left, top_right = 0.5 + (left - 0.5) * 0.46, 0.5 + (right - 0.5) * 0.46
        low = 0.88 if right > 0.9 else 0.9
        pen.poly(((top_left, 0.22), (top_right, 0.22), (right, low), (left, 0.94)), "dark", line=False)
    pen.box(0.26, 0.08, 0.74, 0.23, "light", radius=0.02)
    pen.oval(0.46, 0.11, 0.54, 0.2, "trim")


def sneakers(pen: Pen) -> None:
    """A low shoe from the side: thick pale sole, laces, a toe cap; its fellow behind."""
    for dx, dy, shade in ((0.06, -0.2, "dark"), (0.0, 0.0, "main")):
        body = (
            (0.02, 0.42), (0.22, 0.36), (0.34, 0.5), (0.52, 0.58), (0.62, 0.68), (0.86, 0.74), (0.96, 0.86),
            (0.02, 0.86),
        )  # fmt: skip
        pen.poly([(x + dx * 0.6, y + dy) for x, y in body], shade)
        pen.box(0.0 + dx * 0.6, 0.84 + dy, 0.98 + dx * 0.6, 0.95 + dy, "cream", radius=0.05)
    pen.poly(((0.76, 0.73), (0.86, 0.75), (0.95, 0.85), (0.72, 0.85)), "cream")
    for x, y in ((0.32, 0.52), (0.42, 0.58), (0.52, 0.63)):
        pen.path(((x, y), (x + 0.09, y - 0.07)), "trim", 0.035)
    pen.path(((0.12, 0.8), (0.3, 0.66), (0.5, 0.78)), "light", 0.04)
    pen.path(((0.02, 0.42), (0.22, 0.36)), "trim", 0.04)


def boots(pen: Pen) -> None:
    """A tall boot with a heel, its fellow behind."""
    for dx, dy, shade in ((0.22, -0.06, "dark"), (0.0, 0.0, "main")):
        shaft = (
            (0.12, 0.08), (0.44, 0.08), (0.42, 0.6), (0.62, 0.72), (0.72, 0.86), (0.72, 0.92), (0.12, 0.92),
            (0.16, 0.6),
        )  # fmt: skip
        pen.poly([(x + dx, y + dy) for x, y in shaft], shade)
        sole = ((0.12, 0.89), (0.73, 0.89), (0.73, 0.95), (0.36, 0.95), (0.32, 0.99), (0.12, 0.99))
        pen.poly([(x + dx, y + dy) for x, y in sole], "ink")
        pen.box(0.1 + dx, 0.04 + dy, 0.46 + dx, 0.15 + dy, "trim", radius=0.03)
    pen.path(((0.16, 0.64), (0.42, 0.64)), "line", 0.02)
    pen.box(0.24, 0.6, 0.34, 0.69, "metal")
    pen.path(((0.24, 0.2), (0.24, 0.54)), "light", 0.035)


def handbag(pen: Pen) -> None:
    """A trapezoid with an arched handle, a flap and a clasp."""
    pen.arc(0.26, 0.02, 0.74, 0.8, 180, 360, "line", 0.085)
    pen.arc(0.26, 0.02, 0.74, 0.8, 180, 360, "dark", 0.055)
    pen.poly(((0.14, 0.38), (0.86, 0.38), (0.98, 0.94), (0.02, 0.94)))
    pen.poly(((0.14, 0.38), (0.86, 0.38), (0.82, 0.58), (0.5, 0.7), (0.18, 0.58)), "light")
    pen.box(0.44, 0.6, 0.56, 0.75, "metal", radius=0.02)
    pen.path(((0.04, 0.88), (0.96, 0.88)), "line", 0.014)


def backpack(pen: Pen) -> None:
    """A tall rounded bag: loop on top, straps at its sides, a pocket with a zip."""
    pen.arc(0.4, -0.02, 0.6, 0.16, 180, 360, "line", 0.05)
    for flip in (0, 1):
        strap = (
            (0.24, 0.24), (0.08, 0.36), (0.04, 0.72), (0.2, 0.86), (0.2, 0.72), (0.14, 0.66), (0.17, 0.44),
            (0.24, 0.38),
        )  # fmt: skip
        pen.poly([(1 - x if flip else x, y) for x, y in strap], "trim")
    pen.box(0.18, 0.06, 0.82, 0.96, "main", radius=0.2)
    pen.box(0.26, 0.56, 0.74, 0.9, "light", radius=0.07)
    pen.path(((0.3, 0.66), (0.7, 0.66)), "trim", 0.025)
    pen.arc(0.24, 0.14, 0.76, 0.8, 200, 340, "trim", 0.025)
    pen.box(0.42, 0.36, 0.58, 0.48, "dark", radius=0.02)


def hat(pen: Pen) -> None:
    """A wide brim, a round crown, a band."""
    pen.oval(0.0, 0.56, 1.0, 0.9)
    pen.poly(
        [
            (0.22, 0.7),
            *arc_points(0.22, 0.14, 0.78, 0.86, 190, 350),
            (0.78, 0.7),
            *arc_points(0.22, 0.62, 0.78, 0.78, 0, 180),
        ]
    )
    pen.poly(((0.215, 0.54), (0.785, 0.54), (0.785, 0.69), (0.64, 0.75), (0.36, 0.75), (0.215, 0.69)), "trim")
    pen.arc(0.1, 0.6, 0.9, 0.86, 20, 160, "dark", 0.025)
    pen.path(((0.4, 0.24), (0.5, 0.32), (0.6, 0.24)), "line", 0.02)


def scarf(pen: Pen) -> None:
    """Wound once, both ends hanging down with fringes."""
    for x0, y0, x1, y1, shade in ((0.52, 0.32, 0.72, 0.8, "dark"), (0.28, 0.34, 0.52, 0.9, "main")):
        for step in range(4):
            x = x0 + 0.03 + step * (x1 - x0 - 0.06) / 3
            pen.path(((x, y1), (x, y1 + 0.09)), "line", 0.028)
        pen.poly(((x0 + 0.04, y0), (x1, y0), (x1, y1), (x0, y1)), shade)
        for y in (y1 - 0.08, y1 - 0.16):
            pen.path(((x0, y), (x1, y)), "trim", 0.035)
    pen.oval(0.08, 0.06, 0.92, 0.46)
    pen.oval(0.2, 0.08, 0.8, 0.26, "line")
    pen.arc(0.12, -0.04, 0.88, 0.36, 20, 160, "light", 0.03)
    pen.box(0.36, 0.28, 0.58, 0.5, "light", radius=0.07)


DRAWINGS = {
    "t_shirt": t_shirt, "sweater": sweater, "dress": dress, "skirt": skirt, "sneakers": sneakers, "boots": boots,
    "handbag": handbag, "backpack": backpack, "hat": hat, "scarf": scarf,
}  # fmt: skip
