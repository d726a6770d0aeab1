"""Bring scores and ratings from elsewhere into the form that `evaluate_systems` takes."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from ray_app.analysis.metrics.bootstrap_result import GRADE_AS_RATING
from ray_app.analysis.metrics.protocol import KEY, SystemScores
from ray_app.base.schemas import NUM_GRADES


def align_scores(pairs: pa.Table, table: pa.Table, thresholds: np.ndarray | None = None) -> SystemScores:
    """Scores of a table (query, locale, pin_id, score, maybe probs) in the row order of `pairs`; absent ones NaN."""
    keys = zip(*(table[c].to_pylist() for c in KEY), strict=True)
    row_of = {key: row for row, key in enumerate(keys)}
    wanted = zip(*(pairs[c].to_pylist() for c in KEY), strict=True)
    rows = np.array([row_of.get(key, -1) for key in wanted], dtype=np.int64)
    # The last row of NaN is what an absent pair points at.
    score = np.array([np.nan if s is None else s for s in table["score"].to_pylist()] + [np.nan], dtype=np.float64)
    probs = None
    if "probs" in table.column_names:
        blank = [np.nan] * NUM_GRADES
        probs = np.array([p or blank for p in table["probs"].to_pylist()] + [blank], dtype=np.float64)[rows]
    return SystemScores(score=score[rows], probs=probs, thresholds=thresholds)


def rating_of_grade(grade_map: Mapping[int, int] | None) -> dict[int, int]:
    """Ratings of nDCG from a source's grade_map (rating -> grade): its inverse; grades it never makes get the next lower.

    Chorus's {0: 1, 1: 3, 2: 4, 3: 5} gives {1: 0, 2: 0, 3: 1, 4: 2, 5: 3}. None: grade - 1.
    """
    if grade_map is None:
        return dict(GRADE_AS_RATING)
    return {
        grade: max((rating for rating, made in grade_map.items() if made <= grade), default=0) for grade in range(1, 6)
    }
