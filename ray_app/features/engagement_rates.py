"""Smoothed rates of each action per pin, among the clients that the pin was shown to."""

import numpy as np
import pandas as pd

RATE_NAMES = ("log_impressions", "click_rate", "long_click_rate", "save_rate", "hide_rate")
_ACTIONS = ("click", "long_click", "save", "hide")


def engagement_rates(events: pd.DataFrame, num_pins: int, prior_impressions: float) -> tuple[np.ndarray, np.ndarray]:
    """Rates per impression, drawn towards those of the whole log: (count + prior * rate of all) / (shown + prior).

    A log without impressions, or with some missing, counts a pin as shown as often as its most frequent action.

    Args:
        events: Columns pin (row) and action; see `once_per_client`, without which one client makes any rate.
        prior_impressions: Strength of the prior.

    Returns:
        (num_pins, 5) float32, columns RATE_NAMES, and (num_pins,) bool: was it ever shown. Rows of pins that never
        were hold log_impressions 0 and the prior.
    """
    counts = np.zeros((num_pins, len(_ACTIONS) + 1))
    for column, action in enumerate(("impression", *_ACTIONS)):
        counts[:, column] = np.bincount(events.loc[events["action"] == action, "pin"], minlength=num_pins)
    shown = counts.max(axis=1)
    prior = counts[:, 1:].sum(axis=0) / max(shown.sum(), 1.0)
    smoothed = (counts[:, 1:] + prior_impressions * prior) / (shown[:, None] + prior_impressions)
    return np.column_stack([np.log1p(shown), smoothed]).astype(np.float32), shown > 0
