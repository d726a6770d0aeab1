"""Labelled pairs to look at again: those that raters, teacher and student disagree on most, as a sheet.

A pair's surprise is the sum of
- how little the systems believe the grade that it counts with (`combine_raters`): the mean over the systems of -ln(the
  probability of that grade), in nats;
- how far its raters are apart: the mean distance of any two of their grades, in grades.
One nat counts as much as one grade; guessed, and it only orders the sheet. The mean over all raters' grades in place of
the one that counts was tried and found half as many wrong grades (docs/agreement.md): where one of two raters is right
and counts, there is nothing to fix. A system that gives the grade less than a uniform guess, or raters who differ, are
a reason to be on the sheet; a pair without one is not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_app.analysis.agreement.coefficients import both_orders
from ray_app.analysis.agreement.rater_counts import RaterCounts
from ray_app.analysis.metrics.protocol import SystemScores
from ray_app.base.schemas import NUM_GRADES
from ray_app.models.head import expected_grade
from ray_app.sources.sheets import KEY, SHOWN, TO_FILL, shown_texts, write_sheet

_MIN_PROB = 1e-4  # guessed: bounds what one certain system adds at 9.2, so that a pair cannot lead by that alone
_UNIFORM = 1.0 / NUM_GRADES
_FAR = np.abs(np.subtract.outer(np.arange(NUM_GRADES), np.arange(NUM_GRADES)))


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelIssue:
    """One pair of the sheet."""

    place: int  # among the pairs of `RaterCounts`
    issue_score: float
    why: str


def find_label_issues(
    counts: RaterCounts, grades: np.ndarray, systems: Mapping[str, SystemScores], max_rows: int, max_per_query: int
) -> list[LabelIssue]:
    """The most surprising pairs, worst first; pairs that were adjudicated are left out, having been looked at.

    Args:
        grades: (num_pairs,) int, 1..5, that each pair counts with.
        systems: name -> scores with probabilities, in the order of the pairs; a pair without is judged by the others.
        max_per_query: Of one query and locale: a query that a system misreads would fill the sheet.

    Raises:
        ValueError: a system has no probabilities, or another number of them than there are pairs.
    """
    given = counts.given
    for name, scores in systems.items():
        if scores.probs is None or len(scores.probs) != len(given):
            raise ValueError(
                f"system {name!r} must have probabilities of {len(given)} pairs, to be surprised at grades"
            )
    rows = np.arange(len(given))
    chance = {name: s.probs[rows, grades - 1] for name, s in systems.items() if s.probs is not None}
    nats = [-np.log(np.maximum(found, _MIN_PROB)) for found in chance.values()]
    heard = np.array(nats).reshape(len(nats), len(given))
    num_heard = np.isfinite(heard).sum(axis=0)
    doubt = np.nansum(heard, axis=0) / np.maximum(num_heard, 1)
    orders = both_orders(given)
    spread = (orders * _FAR).sum(axis=(1, 2)) / np.maximum(orders.sum(axis=(1, 2)), 1.0)
    issue_score = doubt + spread
    was_adjudicated = counts.is_adjudicated
    taken: Counter[tuple[str, str]] = Counter()
    issues: list[LabelIssue] = []
    for place in np.argsort(-issue_score, kind="stable").tolist():  # ties: in the order of the keys
        why = _reason({name: float(found[place]) for name, found in chance.items()}, int(grades[place]), given[place])
        query = counts.keys[place][:2]
        if not why or was_adjudicated[place] or taken[query] >= max_per_query:
            continue
        taken[query] += 1
        issues.append(LabelIssue(place=place, issue_score=float(issue_score[place]), why=why))
        if len(issues) == max_rows:
            break
    return issues


def build_adjudication_sheet(
    issues: Sequence[LabelIssue], counts: RaterCounts, grades: np.ndarray, systems: Mapping[str, SystemScores],
    pin_texts: pa.Table, splits: Sequence[str],
) -> bytes:  # fmt: skip
    """The sheet as CSV. What people fill in comes before what raters and models said, which can so be hidden.

    Args:
        splits: (num_pairs,) train, valid or test: the models have seen the grades of train.
    """
    texts_of = shown_texts(pin_texts, (counts.keys[issue.place][2] for issue in issues))
    opinions = [f"{name}_{what}" for name in systems for what in ("expected_grade", "likeliest_grade")]
    columns = [*KEY, *SHOWN, *TO_FILL, "present_grade", "raters_grades", *opinions, "split", "issue_score", "why"]
    rows = []
    for issue in issues:
        key, place = counts.keys[issue.place], issue.place
        row = dict(zip(KEY, (counts.spelled[place], *key[1:]), strict=True)) | texts_of.get(key[2], {})
        row["present_grade"], row["raters_grades"] = str(grades[place]), _listed(counts.given[place])
        for name, scores in systems.items():
            assert scores.probs is not None
            if not np.isnan(scores.probs[place]).any():
                row[f"{name}_expected_grade"] = f"{expected_grade(scores.probs[[place]])[0]:.2f}"
                row[f"{name}_likeliest_grade"] = str(scores.probs[place].argmax() + 1)
        rows.append(row | {"split": splits[place], "issue_score": f"{issue.issue_score:.2f}", "why": issue.why})
    return write_sheet(columns, rows)


def _listed(given: np.ndarray) -> str:
    """Grades of all raters, ascending, such as `1 4`: with commas a spreadsheet would read a number."""
    return " ".join(str(grade) for grade, times in enumerate(given.astype(int), 1) for _ in range(times))


def _reason(chance: Mapping[str, float], grade: int, given: np.ndarray) -> str:
    """In words, most telling first; empty: nobody disagrees."""
    doubts = sorted((p, name) for name, p in chance.items() if p < _UNIFORM)
    parts = [f"{name} gives grade {grade} a chance of {p:.1%}" for p, name in doubts]
    if len(said := np.flatnonzero(given)) > 1:
        parts.append(f"raters differ by {said[-1] - said[0]}")
    return "; ".join(parts)
