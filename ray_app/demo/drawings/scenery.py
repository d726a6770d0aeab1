"""The thirteen settings: each function paints the whole unit square and returns the ground's colour.

All are pale and a little grey, so that a saturated object stands out before them; the middle, where the object will
be, is kept plain and what tells the setting is in the upper half and at the sides.
"""

from collections.abc import Callable

import numpy as np

from ray_app.demo.drawings.indoors import bedroom, cafe, kitchen, living_room, office, party
from ray_app.demo.drawings.outdoors import beach, city, garden, lake, mountains, snow, street
from ray_app.demo.drawings.pen import RGB, Pen

SCENES: dict[str, Callable[[Pen, np.random.Generator], RGB]] = {
    "living_room": living_room, "bedroom": bedroom, "garden": garden, "office": office, "kitchen": kitchen, "cafe": cafe,
    "party": party, "street": street, "beach": beach, "snow": snow, "mountains": mountains, "lake": lake, "city": city,
}  # fmt: skip
