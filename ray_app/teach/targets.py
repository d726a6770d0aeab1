"""Several raters' grades of a pair -> one target distribution, and one true grade."""

import numpy as np
import pyarrow as pa

from ray_app.schemas import NUM_GRADES

FINAL_RATER = "final"  # rater_id of the adjudicated grade, where a data set has one


def combine_raters(labels: pa.Table, smoothing: float) -> pa.Table:
    """One row per (query, locale, pin_id).

    The target is the mean of two distributions: the final grade, and the raters' grades. So a pair that raters
    disagree on pulls less, while the adjudicated grade stays the likeliest. Without a final grade the median rater's
    grade (the lower one of two) takes its place.

    Args:
        labels: Schema HUMAN_LABELS.
        smoothing: Share of probability that is spread evenly over all grades.

    Returns:
        query, locale, pin_id, grade (int8), num_raters (int32), target (list of 5 float32), sorted by the key.
    """
    by_pair: dict[tuple[str, str, str], tuple[list[int], list[int]]] = {}
    columns = [labels[name].to_pylist() for name in ("query", "locale", "pin_id", "rater_id", "grade")]
    for query, locale, pin_id, rater, grade in zip(*columns, strict=True):
        finals, raters = by_pair.setdefault((query, locale, pin_id), ([], []))
        (finals if rater == FINAL_RATER else raters).append(grade)
    keys = sorted(by_pair)
    grades, targets, num_raters = [], [], []
    for key in keys:
        finals, raters = by_pair[key]
        grade = finals[0] if finals else sorted(raters)[(len(raters) - 1) // 2]
        target = np.zeros(NUM_GRADES)
        target[grade - 1] = 0.5 if raters else 1.0
        for other in raters:
            target[other - 1] += 0.5 / len(raters)
        grades.append(grade)
        targets.append(((1 - smoothing) * target + smoothing / NUM_GRADES).astype(np.float32).tolist())
        num_raters.append(max(len(raters), 1))
    return pa.table(
        {
            "query": pa.array([k[0] for k in keys], pa.string()),
            "locale": pa.array([k[1] for k in keys], pa.string()),
            "pin_id": pa.array([k[2] for k in keys], pa.string()),
            "grade": pa.array(grades, pa.int8()),
            "num_raters": pa.array(num_raters, pa.int32()),
            "target": pa.array(targets, pa.list_(pa.float32(), NUM_GRADES)),
        }
    )


def query_weights(query_index: np.ndarray, balance: float) -> np.ndarray:
    """Weight per pair, (num pairs of its query) ** -balance, with mean 1: a much judged query must not rule the rest.

    Args:
        query_index: (num_pairs,) which query.
        balance: 0..1.

    Returns:
        (num_pairs,) float32.
    """
    counts = np.bincount(query_index).astype(np.float64)
    weights = np.where(counts > 0, counts, 1.0)[query_index] ** -balance
    return (weights / weights.mean()).astype(np.float32) if len(weights) else weights.astype(np.float32)


def grade_weights(targets: np.ndarray, balance: float) -> np.ndarray:
    """Weight per pair, (share of its likeliest grade) ** -balance, with mean 1: a rare grade must be learned too.

    Args:
        targets: (num_pairs, 5).
        balance: 0..1.

    Returns:
        (num_pairs,) float32.
    """
    grades = targets.argmax(1)
    share = np.bincount(grades, minlength=NUM_GRADES) / max(len(grades), 1)
    weights = share[grades] ** -balance
    return (weights / weights.mean()).astype(np.float32) if len(weights) else weights.astype(np.float32)
