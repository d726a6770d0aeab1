"""Messages between a replica and its shards."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ray_app.features.bm25 import CatalogueMatch
from ray_app.online.retrieval import Ranked


class QueryInput(NamedTuple):
    """A query as slices need it."""

    text: str  # normalised
    locale: str  # from where it is asked
    vector: np.ndarray | None  # (1, dim); None: the feature-only student answers
    zero_shot: np.ndarray | None  # (1, width); None: no feature reads it


class ShardCandidates(NamedTuple):
    """A slice's candidates for a query, and how well its titles match the query."""

    by_words: Ranked
    by_vector: Ranked
    match: CatalogueMatch


class Hit(NamedTuple):
    """One result of a search."""

    blended_score: float  # what results are ordered by
    row: int
    shown: dict[str, Any]  # see serve.models.SearchResult; lacks rank, sources and teacher_score


class Neighbor(NamedTuple):
    """A pin near another one."""

    cosine: float
    row: int
    shown: dict[str, Any]  # see serve.models.RelatedPin


@dataclass(frozen=True, kw_only=True)
class ShardStats:
    """Statistics of one shard; those of the complete catalogue are merged from all shards."""

    num_pins: int  # with a vector
    locales: Counter[str | None]  # pins by locale; None: without one
    words: Counter[str]  # pins by word

    @classmethod
    def merged(cls, parts: Sequence["ShardStats"]) -> "ShardStats":
        """Merge the statistics of all shards."""
        locales: Counter[str | None] = Counter()
        words: Counter[str] = Counter()
        for part in parts:
            locales.update(part.locales)
            words.update(part.words)
        return cls(num_pins=sum(part.num_pins for part in parts), locales=locales, words=words)
