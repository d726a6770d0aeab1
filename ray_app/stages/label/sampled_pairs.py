"""The sampled pairs bucket by bucket, with all that the teacher reads of them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.cluster.executor import Wanted
from ray_app.features.catalogue import Catalogue, index_queries
from ray_app.features.query_table import QueryTable
from ray_app.features.shown_pairs import ShownPairs
from ray_app.stages.label.labeller import Labeller
from ray_app.tables.buckets import common_num_buckets, read_bucket
from ray_app.tables.manifest import Output, read_output


@dataclass(frozen=True, kw_only=True)
class SampledPairs:
    """Tables of which the teacher's inputs are made. Picklable: tasks read the buckets that they work on."""

    labeller: Labeller
    tables: CatalogueTables
    pairs: Output  # schema PAIRS, by pin
    queries: Output  # their distinct queries (`QueryTable`)

    @property
    def wanted(self) -> Wanted:
        """The pairs as rows of `ModelWork.compute`."""
        num_buckets = common_num_buckets([self.pairs, self.tables.pin_texts])
        return Wanted(num_buckets=num_buckets, keyed=self._keyed, columns=self._columns)

    def keyed_pairs(self, number: int) -> tuple[pa.Table, pa.Array]:
        """The pairs of a bucket in the order of the table, and their content keys."""
        pairs, shown = self._shown(number)
        return pairs, self.labeller.content_keys(shown)

    def _keyed(self, number: int) -> pa.Table:
        return self.labeller.keyed(self._shown(number)[1])

    def _columns(self, number: int, missing: pa.Table) -> pa.Table:
        queries = QueryTable(read_output(self.tables.store, self.queries))
        return self.labeller.columns(self._shown(number, queries)[1], missing, queries.vectors)

    def _shown(self, number: int, queries: QueryTable | None = None) -> tuple[pa.Table, ShownPairs]:
        """The pairs of a bucket, and what the teacher reads of them; without `queries` their texts alone, as keys need no more."""
        tables = self.tables
        pairs = read_bucket(tables.store, self.pairs, number)
        if queries is None:
            texts = read_bucket(tables.store, tables.pin_texts, number)
            catalogue = Catalogue.of_texts(tables.cfg, texts, tables.corpus)
        else:
            catalogue = tables.bucket(number, queries.match_of)
        distinct, query_index = index_queries(pairs["query"].to_pylist())
        pin_index: np.ndarray = catalogue.pairs.pin_rows(pairs["pin_id"].to_pylist())
        return pairs, ShownPairs.of(catalogue, distinct, query_index, pin_index)
