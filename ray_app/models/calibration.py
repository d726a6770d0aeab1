"""Temperatures that make a model's probabilities honest, one per locale where it has pairs enough.

A temperature T turns logits z into z / T, so probabilities p into p ** (1/T), scaled to sum to 1: above 1 makes an
overconfident model modest. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

FILE = "calibration.json"  # in the model's folder
MIN_PAIRS = 200  # guessed: a locale with fewer takes its language's temperature, a language the one of all
ALL = "*"
_BINS = 10
_MIN_PROB = 1e-7


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Temperatures, and what they do.

    Args:
        temperatures: Locale, language or `*` -> temperature.
        pairs: The same keys -> pairs that it was fitted on.
        ece_before: Expected calibration error of the likeliest grade, 0..1, without temperatures.
        ece_after: With temperatures that were fitted on the other half of the queries.
    """

    temperatures: dict[str, float]
    pairs: dict[str, int]
    ece_before: float
    ece_after: float

    def apply(self, probs: np.ndarray, locales: Sequence[str]) -> np.ndarray:
        """Calibrated probabilities; both (num_pairs, 5), float32. Rows of NaN stay so."""
        distinct, place = np.unique(np.array(list(locales), dtype=object).astype(str), return_inverse=True)
        power = 1.0 / np.array([self.temperature(locale) for locale in distinct])
        return _tempered(probs, power[place]).astype(np.float32)

    def temperature(self, locale: str) -> float:
        """Of a locale such as `de-AT`; else of its language; else of all."""
        for key in (locale, _language(locale)):
            if key in self.temperatures:
                return self.temperatures[key]
        return self.temperatures[ALL]

    def to_json(self) -> str:
        """For the model's folder."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


def fit_calibration(
    probs: np.ndarray, targets: np.ndarray, weights: np.ndarray, locales: Sequence[str], queries: Sequence[str]
) -> Calibration | None:
    """Fit temperatures on pairs that the model was not trained on, by the lowest cross-entropy.

    Args:
        probs: (N, 5), the model's.
        targets: (N, 5), each row a distribution.
        weights: (N,).
        locales: N locales.
        queries: N queries; ECE is measured by halves of them.

    Returns:
        None if there is no pair.
    """
    if len(probs) == 0:
        return None
    keys = np.array([str(locale) for locale in locales], dtype=object)
    temperatures, pairs = _fit(probs, targets, weights, keys)
    half = np.unique(np.array(queries, dtype=object), return_inverse=True)[1] % 2 == 0
    after = np.array(probs, np.float64)
    for part, other in ((half, ~half), (~half, half)):
        if part.any() and other.any():
            found, counts = _fit(probs[other], targets[other], weights[other], keys[other])
            crossed = Calibration(temperatures=found, pairs=counts, ece_before=0.0, ece_after=0.0)
            after[part] = crossed.apply(probs[part], keys[part].tolist())
    return Calibration(
        temperatures=temperatures,
        pairs=pairs,
        ece_before=expected_calibration_error(probs, targets, weights),
        ece_after=expected_calibration_error(after, targets, weights),
    )


def expected_calibration_error(probs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    """Mean distance between the likeliest grade's probability and how often it is right, over ten bins of the former.

    Args:
        probs: (N, 5).
        targets: (N, 5); a target that is spread counts as partly right.
        weights: (N,).
    """
    best = probs.argmax(1)
    confidence = probs[np.arange(len(probs)), best]
    right = targets[np.arange(len(targets)), best]
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=weights * (confidence - right), minlength=_BINS)
    return float(np.abs(gaps).sum() / max(float(weights.sum()), 1e-12))


def _fit(
    probs: np.ndarray, targets: np.ndarray, weights: np.ndarray, locales: np.ndarray
) -> tuple[dict[str, float], dict[str, int]]:
    languages = np.array([_language(locale) for locale in locales], dtype=object)
    groups = {ALL: np.ones(len(probs), bool)}
    for names in (languages, locales):
        for name in sorted(set(names.tolist())):
            chosen = names == name
            if int(chosen.sum()) >= MIN_PAIRS:
                groups[name] = chosen
    temperatures = {name: _temperature(probs[rows], targets[rows], weights[rows]) for name, rows in groups.items()}
    return temperatures, {name: int(rows.sum()) for name, rows in groups.items()}


def _temperature(probs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    from scipy.optimize import minimize_scalar

    def cross_entropy(log_temperature: float) -> float:
        tempered = _tempered(probs, np.full(len(probs), np.exp(-log_temperature)))
        return float(-(weights[:, None] * targets * np.log(np.clip(tempered, _MIN_PROB, None))).sum())

    found = minimize_scalar(cross_entropy, bounds=(np.log(0.25), np.log(4.0)), method="bounded")
    return round(float(np.exp(found.x)), 4)


def _tempered(probs: np.ndarray, power: np.ndarray) -> np.ndarray:
    logits = np.log(np.clip(probs.astype(np.float64), _MIN_PROB, None)) * power[:, None]
    logits -= logits.max(1, keepdims=True, initial=-np.inf)
    raised = np.exp(logits)
    return raised / raised.sum(1, keepdims=True)


def _language(locale: str) -> str:
    return locale.split("-")[0]
