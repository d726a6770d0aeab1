"""Aggregation of several raters' grades of a pair to one target distribution and one grade."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ray_app.base.columns import matrix_column
from ray_app.base.content_key import content_key
from ray_app.base.schemas import NUM_GRADES
from ray_app.base.text import normalize_query
from ray_app.sources.adapters.chorus import FINAL_RATER


def combine_raters(labels: pa.Table, smoothing: float) -> pa.Table:
    """One row per (normalised query, locale, pin_id).

    The target is the distribution of the raters' grades. A data set's final grade is half of it, so that a pair that raters
    disagree on pulls less, while the adjudicated grade stays the likeliest. Where one grade is needed it is the final
    one, else the raters' mean, rounded; halves go up or down by a hash of the pair, so that grades do not drift.

    Returns:
        query, locale, pin_id, grade (int8), num_raters (int32), target (list of 5 float32), sorted by the key.
    """
    by_pair: dict[tuple[str, str, str], tuple[list[int], list[int]]] = {}
    columns = [labels[name].to_pylist() for name in ("query", "locale", "pin_id", "rater_id", "grade")]
    normalized = {query: normalize_query(query) for query in set(columns[0])}
    for query, locale, pin_id, rater, grade in zip(*columns, strict=True):
        finals, raters = by_pair.setdefault((normalized[query], locale, pin_id), ([], []))
        (finals if rater == FINAL_RATER else raters).append(grade)
    keys = sorted(by_pair)
    grades, targets, num_raters = [], [], []
    for key in keys:
        finals, raters = by_pair[key]
        counted = [np.bincount(np.array(said) - 1, minlength=NUM_GRADES) for said in (finals, raters) if said]
        given = [counts / counts.sum() for counts in counted]
        grades.append(_one_grade(finals or raters, key))
        targets.append(np.mean(given, axis=0))
        num_raters.append(max(len(raters), 1))
    return pa.table(
        {
            "query": pa.array([k[0] for k in keys], pa.string()),
            "locale": pa.array([k[1] for k in keys], pa.string()),
            "pin_id": pa.array([k[2] for k in keys], pa.string()),
            "grade": pa.array(grades, pa.int8()),
            "num_raters": pa.array(num_raters, pa.int32()),
            "target": matrix_column(smooth_targets(np.array(targets).reshape(-1, NUM_GRADES), smoothing)),
        }
    )


def smooth_targets(targets: np.ndarray, smoothing: float) -> np.ndarray:
    """Label smoothing: `smoothing` of the probability is spread evenly over the grades. (N, 5) -> (N, 5) float32."""
    return ((1 - smoothing) * targets + smoothing / NUM_GRADES).astype(np.float32)


def _one_grade(grades: Sequence[int], key: tuple[str, str, str]) -> int:
    """Rounded mean grade; halves are rounded by a hash of the pair."""
    low, rest = divmod(sum(grades), len(grades))
    if 2 * rest != len(grades):
        return low + (2 * rest > len(grades))
    return low + int(content_key("half grade", *key)[:8], 16) % 2


def query_weights(query_index: np.ndarray, balance: float) -> np.ndarray:
    """Weight per pair, (num pairs of its query) ** -balance, with mean 1, so that queries with many judgments do not dominate.

    Returns:
        (num_pairs,) float32.
    """
    counts = np.bincount(query_index).astype(np.float64)
    weights = np.where(counts > 0, counts, 1.0)[query_index] ** -balance
    return (weights / weights.mean()).astype(np.float32) if len(weights) else weights.astype(np.float32)


def grade_weights(targets: np.ndarray, balance: float) -> np.ndarray:
    """Weight per pair, (share of its likeliest grade) ** -balance, with mean 1, so that rare grades are learned too.

    Returns:
        (num_pairs,) float32.
    """
    grades = targets.argmax(1)
    share = np.bincount(grades, minlength=NUM_GRADES) / max(len(grades), 1)
    weights = share[grades] ** -balance
    return (weights / weights.mean()).astype(np.float32) if len(weights) else weights.astype(np.float32)


def balance_shift(targets: np.ndarray, balance: float) -> np.ndarray:
    """Logit shift that undoes the grade prior of a model trained with `grade_weights`.

    Weights of share ** -balance make the model learn p(grade | pair) x share(grade) ** -balance, scaled to sum to 1. No
    temperature undoes that.

    Args:
        targets: (num_pairs, 5) that the weights were made of.

    Returns:
        (5,) float64; a grade that is no pair's likeliest counts as one of them.
    """
    count = np.bincount(targets.argmax(1), minlength=NUM_GRADES)
    return balance * np.log(np.maximum(count, 1) / max(len(targets), 1))
