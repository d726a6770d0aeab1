"""The pins of the run, as the sampler searches them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.columns import matrix_column, matrix_or_zero
from ray_app.base.text import render_pin_texts, stem_tokens
from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.cluster.encoders import zero_shot_tower
from ray_app.features.bm25 import Bm25Index
from ray_app.features.lexical import TEXT, title_match
from ray_app.features.neighbors import top_neighbors
from ray_app.stages.sample.log_events import LogEvents
from ray_app.stages.sample.pair_sources import NearestPins, PinBucket
from ray_app.stages.sample.scratch import Scratch
from ray_app.tables.buckets import read_bucket
from ray_app.tables.manifest import Output, read_output_files


@dataclass(frozen=True)
class SampledCatalogue:
    """`PinSource` of a run."""

    tables: CatalogueTables
    events: LogEvents
    scratch: Scratch

    @property
    def num_buckets(self) -> int:
        """Number of buckets."""
        return self.tables.num_buckets

    @property
    def num_pins(self) -> int:
        """Number of pins."""
        return self.tables.pin_texts.rows

    def log(self, number: int) -> pa.Table:
        """See `PinSource`."""
        return self.events.split(number)[0]

    def pin_ids(self, number: int) -> list[str]:
        """See `PinSource`."""
        ids: list[str] = read_bucket(self.tables.store, self.tables.pin_texts, number, ["pin_id"])["pin_id"].to_pylist()
        return ids

    def keep_vectors(self, known: Output, selected: pa.Table) -> None:
        """Find the zero-shot vectors of the selected queries; those of product types are made now.

        Args:
            known: The table `zero_shot_queries`.
            selected: Queries (SELECTED).
        """
        queries = selected["query"].unique().sort()
        parts = [
            part.filter(pc.is_in(part["query"], value_set=queries))
            for part in read_output_files(self.tables.store, known)
        ]
        vectors = pa.concat_tables(parts)
        new = queries.filter(pc.invert(pc.is_in(queries, value_set=vectors["query"]))).to_pylist()
        if new:
            made = zero_shot_tower(self.tables.cfg, self.tables.store, "query").encode(new)
            own = pa.table({"query": new, "embedding": matrix_column(made)}, schema=vectors.schema)
            vectors = pa.concat_tables([vectors, own])
        self.scratch.write("vectors", vectors)

    def vectors(self, queries: Sequence[str]) -> np.ndarray:
        """(num_queries, dim) float32 of selected queries, zeros where one has none."""
        vectors = self.scratch.read("vectors")
        place = pc.index_in(pa.array(list(queries), pa.string()), value_set=vectors["query"])
        return matrix_or_zero(vectors["embedding"].take(place))

    def bucket(self, number: int, selected: pa.Table) -> PinBucket:
        """See `PinSource`."""
        texts, vectors = (read_bucket(self.tables.store, table, number) for table in self.tables.outputs)
        corpus, rendered = self.tables.corpus, render_pin_texts(texts, self.tables.cfg.pin_text)
        return PinBucket(
            pin_ids=texts["pin_id"].to_pylist(),
            # Stems: this is for finding pins, not the BM25 baseline.
            bm25=Bm25Index.build(rendered, tokenizer=stem_tokens, corpus=corpus[TEXT]),
            nearest=zero_shot_neighbors(vectors, self.scratch.read("vectors")),
            match=partial(title_match, texts, corpus),
        )


def zero_shot_neighbors(pins: pa.Table, queries: pa.Table) -> NearestPins:
    """Nearest pins by the zero-shot vectors of `zero_shot_pins` and of queries.

    A query without a vector has no neighbours (row -1).
    """
    pin_vectors, query_vectors = matrix_or_zero(pins["text_embedding"]), matrix_or_zero(queries["embedding"])
    row_of = {query: row for row, query in enumerate(queries["query"].to_pylist())}

    def nearest(texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array([row_of.get(text, -1) for text in texts], np.int64)
        # Queries and pins whose vector is zero are near nothing.
        usable = (rows >= 0) & np.any(query_vectors, axis=1)[rows] if len(query_vectors) else rows >= 0
        indices, cosines = np.full((len(texts), k), -1, np.int64), np.zeros((len(texts), k), np.float32)
        found, scores = top_neighbors(query_vectors[rows[usable]], pin_vectors, k)
        has_text = np.any(pin_vectors, axis=1)
        indices[usable, : found.shape[1]] = np.where(has_text[found], found, -1)
        cosines[usable, : found.shape[1]] = scores
        return indices, cosines

    return nearest
