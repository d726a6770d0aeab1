"""Bring ratings from elsewhere into the form that `evaluate_systems` takes."""

from collections.abc import Mapping

from ray_app.analysis.metrics.bootstrap_result import GRADE_AS_RATING


def rating_of_grade(grade_map: Mapping[int, int] | None) -> dict[int, int]:
    """Ratings of nDCG from a source's grade_map (rating -> grade): its inverse; grades it never makes get the next lower.

    Chorus's {0: 1, 1: 3, 2: 4, 3: 5} gives {1: 0, 2: 0, 3: 1, 4: 2, 5: 3}. None: grade - 1.
    """
    if grade_map is None:
        return dict(GRADE_AS_RATING)
    return {
        grade: max((rating for rating, made in grade_map.items() if made <= grade), default=0) for grade in range(1, 6)
    }
