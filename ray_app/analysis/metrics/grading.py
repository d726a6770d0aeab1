"""Grades: thresholds for systems that only have a score, and how well predicted grades and probabilities are calibrated."""

from dataclasses import dataclass

import numpy as np

from ray_app.analysis.metrics.bootstrap import ratio
from ray_app.base.schemas import NUM_GRADES

_MIN_PROB = 1e-12  # bounds the log loss of a certain and wrong prediction at 27.6


def fit_grade_thresholds(scores: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Cut a score into five grades with the highest accuracy on the given pairs: a score-only system at its best.

    Exact, by dynamic programming over the sorted scores. A grade may get no range at all. Fit it on labels of training
    queries only: fitted on the pairs under evaluation, it would flatter the system silently.

    Args:
        scores: (n,) float64, higher is more relevant; pairs with NaN are left out.
        grades: (n,) int, 1..5.

    Returns:
        float64 (4,), ascending, maybe infinite: grade = 1 + number of thresholds at or below the score.

    Raises:
        ValueError: shapes differ, a grade is off the scale, or no pair has a score.
    """
    if scores.shape != grades.shape:
        raise ValueError(f"scores {scores.shape} and grades {grades.shape} must have the same shape")
    known = np.isfinite(scores)
    scores, grades = scores[known], grades[known].astype(np.int64)
    if not scores.size:
        raise ValueError("no pair has a score, so there is nothing to fit grade thresholds on")
    if grades.min() < 1 or grades.max() > NUM_GRADES:
        raise ValueError(f"grades must be 1..{NUM_GRADES}")
    values, index = np.unique(scores, return_inverse=True)
    hits = np.zeros((len(values) + 1, NUM_GRADES), dtype=np.int64)
    np.add.at(hits, (index + 1, grades - 1), 1)
    hits = np.cumsum(hits, axis=0)  # hits[i, g]: pairs of grade g + 1 among the i lowest values
    # right[i]: most correct pairs among the i lowest values when they are cut into the grades so far.
    right = hits[:, 0].copy()
    cut_at = []
    for grade in range(1, NUM_GRADES):
        lead = right - hits[:, grade]
        best = np.maximum.accumulate(lead)
        # Of equally good cuts the first: where the running maximum was last raised.
        raised = np.concatenate([[True], lead[1:] > best[:-1]])
        cut_at.append(np.maximum.accumulate(np.where(raised, np.arange(len(lead)), 0)))
        right = best + hits[:, grade]
    middle = (values[1:] + values[:-1]) / 2.0
    middle = np.where(middle > values[:-1], middle, values[1:])  # no float lies between neighbours
    edges = np.concatenate([[-np.inf], middle, [np.inf]])
    end = len(values)
    thresholds = np.empty(NUM_GRADES - 1)
    for grade in range(NUM_GRADES - 1, 0, -1):
        end = cut_at[grade - 1][end]
        thresholds[grade - 1] = edges[end]
    return thresholds


def scores_to_grades(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Grade 1..5 of each score, int64 (n,): 1 + number of thresholds at or below it."""
    return np.searchsorted(thresholds, scores, side="right") + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityCurve:
    """Predicted against observed share of pairs at or above a grade, by bins of the prediction; empty bins left out."""

    predicted: np.ndarray  # (bins,) mean predicted probability
    observed: np.ndarray  # (bins,) share of pairs at or above the grade
    count: np.ndarray  # (bins,) pairs

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, weighted by pairs; 0 is perfect."""
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.count))


def reliability_curve(probs: np.ndarray, grades: np.ndarray, at_least: int, bins: int = 10) -> ReliabilityCurve:
    """Bin the probability of grade >= `at_least`.

    Args:
        probs: (n, 5), rows of NaN count as uniform: a system that says nothing claims no knowledge.
        grades: (n,) ground truth, 1..5.
        bins: Of equal width over 0..1.
    """
    chance, place = grade_chances(probs, at_least, bins)
    count = np.bincount(place, minlength=bins)
    used = count > 0
    predicted = np.bincount(place, weights=chance, minlength=bins)[used] / count[used]
    observed = np.bincount(place, weights=grades >= at_least, minlength=bins)[used] / count[used]
    return ReliabilityCurve(predicted=predicted, observed=observed, count=count[used])


def grade_chances(probs: np.ndarray, at_least: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) probability of grade >= `at_least`, and (n,) its bin of equal width over 0..1."""
    chance = _filled(probs)[:, at_least - 1 :].sum(axis=1).clip(0.0, 1.0)
    return chance, np.minimum((chance * bins).astype(np.int64), bins - 1)


def log_loss(probs: np.ndarray, grades: np.ndarray) -> float:
    """Mean -ln(probability of the human grade), nats; rows of NaN count as uniform (1.609)."""
    return float(log_losses(probs, grades).mean())


def log_losses(probs: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """(n,) of each pair, see `log_loss`."""
    chosen = _filled(probs)[np.arange(len(grades)), grades - 1]
    return np.asarray(-np.log(np.maximum(chosen, _MIN_PROB)))


def linear_kappa(predicted: np.ndarray, grades: np.ndarray) -> float | None:
    """Linear-weighted kappa of predicted and human grades; a missing prediction is grade 0, farther off than 1.

    Returns:
        1 full agreement, 0 chance; None where chance alone agrees fully (both sides know one grade).
    """
    table = np.zeros((1, NUM_GRADES + 1, NUM_GRADES + 1))
    np.add.at(table[0], (predicted, grades), 1.0)
    kappa = linear_kappas(table)[0]
    return None if np.isnan(kappa) else float(kappa)


def linear_kappas(tables: np.ndarray) -> np.ndarray:
    """Linear-weighted kappa of many tables of counts at once.

    Args:
        tables: (samples, levels, levels) float64, how often one side said the row and the other the column.

    Returns:
        float64 (samples,); NaN where chance alone agrees fully, or nothing was counted.
    """
    total = tables.sum(axis=(1, 2))
    distance = np.abs(np.subtract.outer(np.arange(tables.shape[1]), np.arange(tables.shape[2])))
    # Times the total, which spares a division by 0: expected counts are row sum x column sum / total.
    chance = np.einsum("si,sj,ij->s", tables.sum(axis=2), tables.sum(axis=1), distance)
    apart = (tables * distance).sum(axis=(1, 2)) * total
    return 1.0 - ratio(apart, chance)


def confusion(predicted: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Pairs by human grade (rows, 1..5) and predicted grade (columns, 0 = none, 1..5); int64 (5, 6)."""
    table = np.zeros((NUM_GRADES, NUM_GRADES + 1), dtype=np.int64)
    np.add.at(table, (grades - 1, predicted), 1)
    return table


def _filled(probs: np.ndarray) -> np.ndarray:
    absent = np.isnan(probs).any(axis=1)
    return np.where(absent[:, None], 1.0 / NUM_GRADES, probs).astype(np.float64)
