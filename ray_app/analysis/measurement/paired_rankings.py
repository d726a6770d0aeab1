"""Two rankings, and the queries on which they can be compared."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from ray_app.analysis.measurement.rankings import QueryKey, Ranking
from ray_app.base.errors import UserError
from ray_app.base.text import query_group

Missing = Literal["error", "zero", "drop"]


@dataclass(frozen=True, kw_only=True)
class PairedRankings:
    """Two rankings, and the queries to compare them on."""

    control: Ranking  # as things are
    treatment: Ranking  # as they could be
    queries: list[QueryKey]  # sorted
    num_unpaired: int  # queries that only one of the rankings has
    num_trained: int  # queries left out because the teacher was trained on them

    @classmethod
    def of(
        cls, control: Ranking, treatment: Ranking, missing: Missing, trained_groups: Collection[str] = ()
    ) -> "PairedRankings":
        """Find the queries; those whose `query_group` the teacher was trained on are left out.

        Left out as queries, not only their human labels: the teacher errs less there than elsewhere, so its error
        elsewhere would be taken off where there is none.

        Raises:
            UserError: see `same_queries`; or the teacher was trained on all of them.
        """
        found, num_unpaired = same_queries(control, treatment, missing)
        queries = [query for query in found if query_group(query[0]) not in trained_groups]
        if not queries:
            raise UserError(
                "the teacher was trained on all queries of these files; add queries, or see --include-training-queries"
            )
        num_trained = len(found) - len(queries)
        return cls(
            control=control, treatment=treatment, queries=queries, num_unpaired=num_unpaired, num_trained=num_trained
        )

    def pairs(self, depth: int) -> list[tuple[QueryKey, str]]:
        """The distinct (query, pin) of the top of both rankings, sorted."""
        rankings = (self.control, self.treatment)
        return sorted({(q, pin) for q in self.queries for r in rankings for pin in r.pins.get(q, [])[:depth]})


def same_queries(control: Ranking, treatment: Ranking, missing: Missing) -> tuple[list[QueryKey], int]:
    """The queries to compare on, sorted, and how many only one of the rankings has.

    Args:
        missing: A query that only one has: `zero` counts it, since a ranker that finds nothing has no rows; `drop` leaves
            it out, which flatters such a ranker; `error` raises, as only the user knows which it is.

    Raises:
        UserError: see `missing`; or there is no query to compare on.
    """
    both = control.pins.keys() & treatment.pins.keys()
    either = control.pins.keys() | treatment.pins.keys()
    lone = sorted(either - both)
    if lone and missing == "error":
        query, locale = lone[0]
        name = control.name if lone[0] in control.pins else treatment.name
        raise UserError(
            f"{len(lone):,} queries are in one file only, such as {query!r} ({locale}) in {name}: add `--missing zero` if the "
            "other ranker found nothing for them, or `--missing drop` if it was not asked"
        )
    if not both and (missing == "drop" or not either):
        raise UserError(
            f"{control.name} and {treatment.name} share no query; check their locales (--locale is for files without)"
        )
    return sorted(either if missing == "zero" else both), len(lone)
