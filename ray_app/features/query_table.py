"""The table `queries`: what features of pairs read of a sampled query, computed once against the whole catalogue."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.columns import matrix_column, matrix_or_zero
from ray_app.base.errors import UserError
from ray_app.features.bm25 import CatalogueMatch


class QueryTable:
    """Some queries' zero-shot vectors and matches with the catalogue, looked up by query.

    Args:
        table: query (normalised, distinct), embedding, best_title_score, num_full_matches; as `of` makes it.
    """

    COLUMNS = ("query", "embedding", "best_title_score", "num_full_matches")

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, queries: Sequence[str], vectors: np.ndarray, match: CatalogueMatch) -> "QueryTable":
        """Of queries with their vectors, (num_queries, dim) float32."""
        columns = [
            pa.array(list(queries), pa.string()), matrix_column(vectors), pa.array(match.best, pa.float64()),
            pa.array(match.num_full, pa.int64()),
        ]  # fmt: skip
        return cls(pa.table(columns, names=list(cls.COLUMNS)))

    def vectors(self, queries: Sequence[str]) -> np.ndarray:
        """(num_queries, dim) float32, zeros where a query has none. Errors as of `match_of`."""
        return matrix_or_zero(self._rows(queries)["embedding"])

    def match_of(self, queries: Sequence[str]) -> CatalogueMatch:
        """How well the whole catalogue matches each query.

        Raises:
            UserError: a query is not in the table.
        """
        rows = self._rows(queries)
        return CatalogueMatch(rows["best_title_score"].to_numpy(), rows["num_full_matches"].to_numpy())

    def _rows(self, queries: Sequence[str]) -> pa.Table:
        place = pc.index_in(pa.array(list(queries), pa.string()), value_set=self.table["query"])
        if place.null_count:
            absent = queries[pc.indices_nonzero(pc.is_null(place))[0].as_py()]
            raise UserError(
                f"the table `queries` lacks {absent!r}; run `python pipelines/sample.py --config ...` again"
            )
        return self.table.take(place)
