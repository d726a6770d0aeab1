"""One order of relevance and engagement."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_app.base.config import BlendConfig
from ray_app.features.engagement_rates import RATE_NAMES

# What a person's action says of a pin; guessed, as the defaults of `enrich.action_weights`, and a hide undoes a save.
_RATE_WEIGHTS = {"click_rate": 1.0, "long_click_rate": 2.0, "save_rate": 3.0, "hide_rate": -3.0}
UNKNOWN = 0.5  # the mean of `engagement_scores` over all pins that have one


def engagement_scores(
    rates: NDArray[np.floating], known: NDArray[np.bool_], among: NDArray[np.floating] | None = None
) -> NDArray[np.float32]:
    """Engagement rank of each pin among those with impressions: 0 the lowest, 1 the highest, 0.5 the median.

    A percentile, so that it means the same in any catalogue, and one viral pin does not flatten all others. The rates
    are drawn towards the log's mean (`engagement_rates`), so a pin with one lucky impression is near the middle.

    Args:
        rates: (num_pins, 5), columns RATE_NAMES.
        known: (num_pins,) whether a pin was ever shown.
        among: (n, 5) rates of all pins that were ever shown, these among them; None: these are all.

    Returns:
        (num_pins,) float32, NaN where unknown. Equal rates give equal scores, and the mean over all is UNKNOWN.
    """
    scores = np.full(len(rates), np.nan, np.float32)
    own = _engaged(rates[known])
    all_engaged = np.sort(own if among is None else _engaged(among))
    if len(own):
        places = np.searchsorted(all_engaged, own, "left") + np.searchsorted(all_engaged, own, "right")
        scores[known] = places / 2 / len(all_engaged)  # the middle of those that are equal
    return scores


def _engaged(rates: NDArray[np.floating]) -> NDArray[np.float64]:
    """Engagement score of each pin; (num_pins,). Summed pin by pin: a product's rounding depends on the row."""
    weights = np.array([_RATE_WEIGHTS.get(name, 0.0) for name in RATE_NAMES])
    return np.asarray((np.asarray(rates, np.float64) * weights).sum(axis=1))


def blend(scores: NDArray[np.floating], engagement: NDArray[np.floating], cfg: BlendConfig) -> NDArray[np.float32]:
    """Expected grades, raised by up to `engagement_weight` for engaging pins.

    A pin that nobody has met counts as the catalogue's mean: a new pin is neither punished for what could not happen
    yet, nor favoured over pins that people liked.

    Args:
        scores: (n,) expected grades, 1..5.
        engagement: (n,) 0..1, NaN for unknown.

    Returns:
        (n,) float32, grades and engagement in grades; comparable between pins, not a grade.

    Raises:
        ValueError: the lists differ in length; one would silently be spread over the other.
    """
    if scores.shape != engagement.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and engagement {engagement.shape} must be equally long lists")
    met = np.where(np.isnan(engagement), UNKNOWN, engagement)
    return np.asarray(scores + cfg.engagement_weight * met, np.float32)


def order(scores: NDArray[np.floating], pin_ids: Sequence[str] | NDArray[np.object_]) -> NDArray[np.int64]:
    """Places of the scores, best first, ties by pin id; (n,)."""
    if len(scores) != len(pin_ids):
        raise ValueError(f"{len(scores)} scores of {len(pin_ids)} pins")
    return np.lexsort((np.asarray(pin_ids, dtype=object), -np.asarray(scores, np.float64)))
