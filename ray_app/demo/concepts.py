"""Concepts of pins and requests of users as language-free ids, and the ground truth: the grade of any pair of them.

A concept has five attributes. Object, colour and setting can be seen in the image; material and style can only be read.
`material` is what an object is made of; for food how it is made, for travel what kind of trip.
"""

from dataclasses import dataclass

import numpy as np

VISIBLE = ("object", "colour", "setting")
ATTRIBUTES = ("colour", "material", "style", "setting")  # besides the object

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
STYLES = ("modern", "vintage", "rustic", "boho", "minimalist", "festive")
MATERIALS = {
    "home": ("wood", "velvet", "linen", "metal"),
    "food": ("vegan", "gluten_free", "homemade", "spicy"),
    "fashion": ("cotton", "wool", "leather", "denim"),
    "travel": ("budget", "luxury", "family", "solo"),
}
SETTINGS = {
    "home": ("living_room", "bedroom", "garden", "office"),
    "food": ("kitchen", "garden", "cafe", "party"),
    "fashion": ("street", "beach", "office", "snow"),
    "travel": ("beach", "mountains", "lake", "city"),
}

GROUPS = {  # objects of one group are similar: a user who searches for one may like another
    "home": (("sofa", "armchair", "bed"), ("vase", "candle", "lamp"), ("rug", "mirror"), ("clock", "bookshelf")),
    "food": (("cake", "cupcake", "bread"), ("pizza", "burger"), ("soup", "salad"), ("coffee", "smoothie", "ice_cream")),
    "fashion": (("t_shirt", "sweater"), ("dress", "skirt"), ("sneakers", "boots"), ("handbag", "backpack"), ("hat", "scarf")),
    "travel": (("tent", "campervan"), ("sailboat", "surfboard"), ("airplane", "hot_air_balloon", "train"), ("suitcase", "beach_umbrella", "lighthouse")),
}  # fmt: skip
CATEGORY_OF = {obj: category for category, groups in GROUPS.items() for group in groups for obj in group}
GROUP_OF = {obj: group for groups in GROUPS.values() for group in groups for obj in group}
OBJECTS = tuple(CATEGORY_OF)

# There is no blue pizza. Other categories come in every colour.
FOOD_COLOURS = {
    "cake": ("white", "brown", "pink", "yellow", "red", "green"),
    "cupcake": ("white", "brown", "pink", "yellow", "red", "purple"), "bread": ("brown", "white", "yellow", "black"),
    "pizza": ("red", "yellow", "green", "white"), "burger": ("brown", "red", "green", "black"),
    "soup": ("red", "orange", "yellow", "green", "white", "brown"), "salad": ("green", "red", "orange", "purple"),
    "coffee": ("brown", "black", "white"), "smoothie": ("green", "purple", "pink", "orange", "yellow", "red"),
    "ice_cream": ("white", "brown", "pink", "yellow", "green", "purple"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Concept:
    """Concept of a pin; every attribute has a value."""

    object: str
    colour: str
    material: str
    style: str
    setting: str

    @property
    def category(self) -> str:
        """home, food, fashion or travel."""
        return CATEGORY_OF[self.object]


@dataclass(frozen=True, slots=True)
class Request:
    """Request of a search: an object, and attributes that matter; None: any."""

    object: str
    colour: str | None = None
    material: str | None = None
    style: str | None = None
    setting: str | None = None

    @property
    def category(self) -> str:
        """home, food, fashion or travel."""
        return CATEGORY_OF[self.object]

    @property
    def asked(self) -> dict[str, str]:
        """Required attributes: attribute -> value."""
        return {name: value for name in ATTRIBUTES if (value := getattr(self, name)) is not None}


def colours_of(obj: str) -> tuple[str, ...]:
    """Colours that an object comes in."""
    return FOOD_COLOURS.get(obj, COLOURS)


def draw_concept(rng: np.random.Generator, obj: str | None = None) -> Concept:
    """A concept, every attribute uniform among those that fit the object; None: any object."""
    obj = str(rng.choice(OBJECTS)) if obj is None else obj
    category = CATEGORY_OF[obj]
    return Concept(
        object=obj, colour=str(rng.choice(colours_of(obj))), material=str(rng.choice(MATERIALS[category])),
        style=str(rng.choice(STYLES)), setting=str(rng.choice(SETTINGS[category])),
    )  # fmt: skip


def true_grade(request: Request, concept: Concept) -> int:
    """Ground truth grade, 1..5 (reasons in docs/demo_world.md).

    The same object: 5 if all that is asked holds, 4 if half of it does, 3 if less. A near object (same group): 3 if
    something is asked and all of it holds, else 2. The same category: 2 if something is asked and all holds, else 1.
    """
    asked = request.asked
    held = sum(getattr(concept, name) == value for name, value in asked.items())
    all_held = held == len(asked)
    if concept.object == request.object:
        return 5 if all_held else 4 if 2 * held >= len(asked) else 3
    if concept.object in GROUP_OF[request.object]:
        return 3 if asked and all_held else 2
    return 2 if concept.category == request.category and asked and all_held else 1
