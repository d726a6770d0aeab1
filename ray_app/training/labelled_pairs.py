"""Human-labelled pairs with the model inputs of a stage."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_app.features.catalogue import Catalogue, index_queries
from ray_app.training.targets import combine_raters


@dataclass(frozen=True, kw_only=True)
class LabelledPairs:
    """Human-labelled pairs with all that a model reads of them."""

    table: pa.Table  # query (normalised), locale, pin_id, grade, num_raters, target; one row per pair
    queries: list[str]  # distinct normalised queries
    query_index: np.ndarray  # (num_pairs,) into `queries`
    pin_index: np.ndarray  # (num_pairs,) rows of the catalogue

    @classmethod
    def of(cls, catalogue: Catalogue, labels: pa.Table, smoothing: float = 0.0) -> "LabelledPairs":
        """Combine the raters of each pair, with label smoothing, and find its pin in the catalogue."""
        table = combine_raters(labels, smoothing)
        queries, query_index = index_queries(table["query"].to_pylist())
        return cls(
            table=table,
            queries=queries,
            query_index=query_index,
            pin_index=catalogue.pairs.pin_rows(table["pin_id"].to_pylist()),
        )
