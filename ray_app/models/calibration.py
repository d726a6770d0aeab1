"""Temperature scaling of a model's probabilities, per locale where there are enough pairs, kept only where it helps.

A temperature T turns logits z into z / T, so probabilities p into p ** (1/T), scaled to sum to 1: above 1 makes an
overconfident model less confident. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".

Few pairs fit a temperature badly, and a badly fitted one makes probabilities worse than none. So each is cross-fitted by
query, and it is kept only if it lowers the log loss of the queries that it was not fitted on, clearly and without a higher
calibration error.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from ray_app.base.locales import language_of

FILE = "calibration.json"  # in the model's folder
MIN_PAIRS = 200  # guessed: a locale with fewer takes its language's temperature, a language the one of all
ALL = "*"
HUMAN_GRADES, TEACHER = "human grades", "calibrated teacher"  # what temperatures are fitted to
_BINS = 10
_MIN_PROB = 1e-7
_FOLDS = 10
_MIN_GAIN = 2.0  # standard errors, clustered by query: about the limit of a 95% CI


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Temperatures, and their effect on queries that they were not fitted on."""

    temperatures: dict[str, float]  # locale, language or `*` -> temperature; 1: unchanged
    pairs: dict[str, int]  # the same keys -> pairs that it was fitted on
    ece_before: float  # top-label expected calibration error, 0..1, without temperatures
    ece_after: float  # with them, cross-fitted by query
    log_loss_before: float | None = None
    """Mean cross-entropy in nats, without temperatures; None: an older version did not record it."""
    log_loss_after: float | None = None  # with them, cross-fitted by query
    rejected: dict[str, float] = field(default_factory=dict)
    """Keys -> best-fitting temperatures that did not improve held-out queries."""
    fitted_to: str | None = None  # HUMAN_GRADES, or TEACHER where there are too few of them
    queries: int | None = None  # distinct queries that it was fitted on

    def apply(self, probs: np.ndarray, locales: Sequence[str]) -> np.ndarray:
        """Calibrated probabilities; both (num_pairs, 5), float32. Rows of NaN stay so."""
        distinct, place = np.unique(np.array(list(locales), dtype=object).astype(str), return_inverse=True)
        power = 1.0 / np.array([self.temperature(locale) for locale in distinct])
        return _tempered(probs, power[place]).astype(np.float32)

    def temperature(self, locale: str) -> float:
        """Temperature of a locale such as `de-AT`; else of its language; else of all."""
        for key in (locale, language_of(locale)):
            if key in self.temperatures:
                return self.temperatures[key]
        return self.temperatures[ALL]

    def to_json(self) -> str:
        """JSON for the model's folder."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


def fit_calibration(
    probs: np.ndarray, targets: np.ndarray, weights: np.ndarray, locales: Sequence[str], queries: Sequence[str],
    fitted_to: str | None = None,
) -> Calibration | None:  # fmt: skip
    """Fit temperatures on pairs that the model was not trained on, by the lowest cross-entropy.

    Args:
        targets: (N, 5), each row a distribution over the grades as they were given: label smoothing in them would make
            honest probabilities too modest.
        weights: (N,); weights that balance grades would fit probabilities to a world that does not exist.
        queries: N queries; temperatures are cross-fitted by folds of them.
        fitted_to: What the targets are, for the model card.

    Returns:
        None if there is no pair.
    """
    if len(probs) == 0:
        return None
    probs = probs.astype(np.float64)
    fold, query = _folds(queries)
    temperatures, rejected, pairs = {ALL: 1.0}, {}, {}
    after = probs.copy()  # by the temperatures that are kept, cross-fitted
    for key, rows in _groups(locales).items():  # all, then languages, then locales: each against what it would replace
        fitted, tried = _temperature(probs[rows], targets[rows], weights[rows]), after.copy()
        for held_out in range(int(fold.max()) + 1):
            fits, applies = rows & (fold != held_out), rows & (fold == held_out)
            if fits.any() and applies.any():
                power = 1.0 / _temperature(probs[fits], targets[fits], weights[fits])
                tried[applies] = _tempered(probs[applies], np.full(int(applies.sum()), power))
        pairs[key] = int(rows.sum())
        if _helps(after[rows], tried[rows], targets[rows], weights[rows], query[rows]):
            temperatures[key], after = fitted, tried
        else:
            rejected[key] = fitted
    return Calibration(
        temperatures=temperatures, pairs=pairs, ece_before=expected_calibration_error(probs, targets, weights),
        ece_after=expected_calibration_error(after, targets, weights),
        log_loss_before=float(np.average(_cross_entropy(probs, targets), weights=weights)),
        log_loss_after=float(np.average(_cross_entropy(after, targets), weights=weights)), rejected=rejected,
        fitted_to=fitted_to, queries=int(query.max()) + 1,
    )  # fmt: skip


def expected_calibration_error(probs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    """Top-label ECE: mean distance between the likeliest grade's probability and its accuracy, over ten bins of the former.

    Args:
        targets: (N, 5); a target that is spread counts as partly right.
    """
    best = probs.argmax(1)
    confidence = probs[np.arange(len(probs)), best]
    right = targets[np.arange(len(targets)), best]
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=weights * (confidence - right), minlength=_BINS)
    return float(np.abs(gaps).sum() / max(float(weights.sum()), 1e-12))


def _groups(locales: Sequence[str]) -> dict[str, np.ndarray]:
    """Key -> rows (bool, (N,)) of all, of each language and of each locale that has enough pairs; in this order."""
    groups = {ALL: np.ones(len(locales), bool)}
    for names in ([language_of(locale) for locale in locales], list(locales)):
        column = np.array(names, dtype=object)
        for name in sorted(set(names)):
            chosen = column == name
            if int(chosen.sum()) >= MIN_PAIRS:
                groups[name] = chosen
    return groups


def _folds(queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) fold of each pair, by a hash of its query, and (N,) number of its query."""
    distinct, query = np.unique(np.array(list(queries), dtype=object).astype(str), return_inverse=True)
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in distinct.tolist()]
    return (np.argsort(np.argsort(hashes)) % _FOLDS)[query], query


def _helps(before: np.ndarray, after: np.ndarray, targets: np.ndarray, weights: np.ndarray, query: np.ndarray) -> bool:
    """Return True if cross-fitted probabilities have a clearly lower log loss and no higher calibration error."""
    gain = weights * (_cross_entropy(before, targets) - _cross_entropy(after, targets))
    by_query = np.bincount(np.unique(query, return_inverse=True)[1], weights=gain)
    n = len(by_query)
    if n < 2:
        return False
    clear = by_query.mean() > _MIN_GAIN * by_query.std(ddof=1) / np.sqrt(n)
    error = [expected_calibration_error(probs, targets, weights) for probs in (before, after)]
    return bool(clear and error[1] <= error[0])


def _cross_entropy(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross-entropy of each pair, (N,) nats."""
    return -(targets * np.log(np.clip(probs, _MIN_PROB, None))).sum(1)


def _temperature(probs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    from scipy.optimize import minimize_scalar

    def cross_entropy(log_temperature: float) -> float:
        tempered = _tempered(probs, np.full(len(probs), np.exp(-log_temperature)))
        return float(weights @ _cross_entropy(tempered, targets))

    found = minimize_scalar(cross_entropy, bounds=(np.log(0.25), np.log(4.0)), method="bounded")
    return round(float(np.exp(found.x)), 4)


def _tempered(probs: np.ndarray, power: np.ndarray) -> np.ndarray:
    logits = np.log(np.clip(probs.astype(np.float64), _MIN_PROB, None)) * power[:, None]
    logits -= logits.max(1, keepdims=True, initial=-np.inf)
    raised = np.exp(logits)
    return raised / raised.sum(1, keepdims=True)
