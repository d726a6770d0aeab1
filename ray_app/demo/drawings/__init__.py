"""Drawing of the demo's images: a pen, forty objects, thirteen settings."""

from collections.abc import Callable

from ray_app.demo.drawings import fashion, food, home, travel
from ray_app.demo.drawings.pen import Pen

DRAWINGS: dict[str, Callable[[Pen], None]] = {**home.DRAWINGS, **food.DRAWINGS, **fashion.DRAWINGS, **travel.DRAWINGS}
AIRBORNE = ("airplane", "hot_air_balloon")  # throw no shadow on the ground beneath them
