"""Agreement figures of many tables of counts at once, which is what resampling needs: exact, within one, kappa, alpha."""

import numpy as np

from ray_app.analysis.metrics.bootstrap import ratio
from ray_app.analysis.metrics.grading import linear_kappas
from ray_app.base.schemas import NUM_GRADES

AGREEMENT_METRICS = ("exact", "within_one", "kappa", "alpha_ordinal", "alpha_interval")
LEVELS = NUM_GRADES + 1  # 0: no grade

_APART = np.abs(np.subtract.outer(np.arange(LEVELS), np.arange(LEVELS)))
_NEAR = (_APART <= 1) & (np.arange(LEVELS) > 0)[:, None]  # no grade is not near grade 1


def agreement_metrics(tables: np.ndarray, coincidences: np.ndarray) -> dict[str, np.ndarray]:
    """AGREEMENT_METRICS, each float64 (samples,), NaN where undefined.

    Args:
        tables: (samples, 6, 6) how often one side said the row and the other the column; 0 is no grade.
        coincidences: (samples, 5, 5) sums of `coincidences_of`.
    """
    total = tables.sum(axis=(1, 2))
    hits = {"exact": (tables * (_APART == 0)).sum(axis=(1, 2)), "within_one": (tables * _NEAR).sum(axis=(1, 2))}
    return {name: ratio(hit, total) for name, hit in hits.items()} | {
        "kappa": linear_kappas(tables),
        "alpha_ordinal": krippendorff_alphas(coincidences, ordinal=True),
        "alpha_interval": krippendorff_alphas(coincidences, ordinal=False),
    }


def both_orders(given: np.ndarray) -> np.ndarray:
    """Count how often two raters of a pair said one and the other grade, in both orders.

    Args:
        given: (num_pairs, 5) how many raters gave each grade.

    Returns:
        (num_pairs, 5, 5), symmetric; a pair of m raters has m (m - 1).
    """
    return given[:, :, None] * given[:, None, :] - given[:, :, None] * np.eye(NUM_GRADES)


def coincidences_of(given: np.ndarray) -> np.ndarray:
    """`both_orders` with weight 1 / (m - 1) for a pair of m raters, so that each grade that has another counts once."""
    return both_orders(given) / np.maximum(given.sum(axis=1) - 1.0, 1.0)[:, None, None]


def krippendorff_alphas(coincidences: np.ndarray, ordinal: bool) -> np.ndarray:
    """Krippendorff's alpha of many coincidence matrices at once.

    Our own formula, since the library `krippendorff` takes one data set a call, and intervals need a thousand for every
    row and slice; the tests hold it to that library.

    Args:
        coincidences: (samples, 5, 5) float64, symmetric.
        ordinal: Two grades are as far apart as there are given grades between them; else as their difference.

    Returns:
        float64 (samples,); NaN where all grades are equal, or no pair has two.
    """
    each = coincidences.sum(axis=2)
    place = np.cumsum(each, axis=1) - each / 2.0 if ordinal else np.broadcast_to(np.arange(NUM_GRADES), each.shape)
    distance = (place[:, :, None] - place[:, None, :]) ** 2
    chance = np.einsum("si,sj,sij->s", each, each, distance)
    seen = (coincidences * distance).sum(axis=(1, 2)) * (each.sum(axis=1) - 1.0)
    return 1.0 - ratio(seen, chance)
