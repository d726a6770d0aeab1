"""Human labels as counts of grades, in which no rater has a name: what agreement and audit are computed from."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_app.analysis.metrics.protocol import KEY
from ray_app.base.errors import UserError
from ray_app.base.schemas import HUMAN_LABELS, NUM_GRADES, require_columns
from ray_app.base.text import normalize_query
from ray_app.sources.adapters.chorus import FINAL_RATER
from ray_app.sources.sheets import is_adjudicator


@dataclass(frozen=True, kw_only=True)
class RaterCounts:
    """The distinct labelled pairs, sorted by query, locale, pin_id, as `combine_raters` and `LabelledPairs` have them.

    A data set's final grade (rater `final`) is what its raters came to, so it is left out where the pair has raters.
    """

    keys: list[tuple[str, str, str]]  # normalised query, locale, pin_id
    spelled: list[str]  # the query of each pair as its raters had it; the first spelling of several
    given: np.ndarray  # (num_pairs, 5) float64, how many raters gave each grade
    raters: list[frozenset[str]]  # of each pair
    rows: list[list[int]]  # of the table of labels, of each pair
    has_final: np.ndarray  # (num_pairs,) bool, a final grade was left out

    @classmethod
    def of(cls, labels: pa.Table) -> "RaterCounts":
        """Count the raters' grades of each pair, queries normalised; the order of the rows does not matter.

        Of a rater who graded two spellings of a query, the first spelling in alphabetical order counts.

        Args:
            labels: HUMAN_LABELS.

        Raises:
            UserError: there are no labels, a column is missing, a grade is off the scale, or a rater graded a pair twice.
        """
        require_columns(labels, HUMAN_LABELS, "agreement")
        if labels.num_rows == 0:
            raise UserError("agreement: there are no human labels; set ingest.human_labels")
        said: dict[tuple[str, str, str], dict[str, tuple[int, int]]] = {}  # pair -> rater -> (row, grade)
        columns = [labels[name].to_pylist() for name in (*KEY, "rater_id", "grade")]
        seen: set[tuple[str, str, str, str]] = set()
        by_spelling = sorted(enumerate(zip(*columns, strict=True)), key=lambda row: (row[1][0], row[0]))
        for row, (query, locale, pin_id, rater, grade) in by_spelling:
            if grade is None or not 1 <= grade <= NUM_GRADES:
                raise UserError(f"agreement: grade {grade} of query {query!r} is not 1..{NUM_GRADES}; set a grade_map")
            if (query, locale, pin_id, rater) in seen:
                raise UserError(f"agreement: {rater} graded query {query!r}, pin {pin_id!r} twice; remove one row")
            seen.add((query, locale, pin_id, rater))
            said.setdefault((normalize_query(query), locale, pin_id), {}).setdefault(rater, (row, grade))
        keys = sorted(said)
        has_final = np.array([len(said[key]) > 1 and said[key].pop(FINAL_RATER, None) is not None for key in keys])
        given = np.zeros((len(keys), NUM_GRADES))
        for i, key in enumerate(keys):
            for _, grade in said[key].values():
                given[i, grade - 1] += 1
        return cls(
            keys=keys, spelled=[columns[0][min(row for row, _ in said[key].values())] for key in keys], given=given,
            raters=[frozenset(said[key]) for key in keys],
            rows=[[row for row, _ in said[key].values()] for key in keys], has_final=has_final,
        )  # fmt: skip

    @property
    def is_adjudicated(self) -> np.ndarray:
        """(num_pairs,) bool, whether the grade is a verdict in place of raters' grades."""
        return np.array([any(map(is_adjudicator, raters)) for raters in self.raters])

    def column(self, values: Iterable[str | None]) -> np.ndarray:
        """(num_pairs,) str: what a column of the labels says of each pair, `several` where its rows differ."""
        texts = [str(value) for value in values]
        found = [{texts[row] for row in rows} for rows in self.rows]
        return np.array([said.pop() if len(said) == 1 else "several" for said in found], dtype=object)
