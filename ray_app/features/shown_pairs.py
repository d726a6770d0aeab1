"""Teacher inputs of the pairs to be labelled: a pin's engaged queries omit the query of the pair itself.

Human-labelled queries are never among the engaged queries of a pin, so the teacher was trained and calibrated on pairs
whose text does not hold their query there. A query of the log is: shown to the teacher, its clicks would come back as grades.
So its group (`query_group`) is left out of the pin's text for this pair; other queries' engagement stays.
"""

import logging
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ray_app.base.config import Config
from ray_app.base.text import query_group
from ray_app.features.catalogue import Catalogue
from ray_app.features.cosine import CosineFeatures

logger = logging.getLogger(__name__)

_FIELD = "engaged_queries"


@dataclass(frozen=True, kw_only=True)
class ShownPairs:
    """Pairs (queries[query_index[i]], pin pin_index[i]) with the text and the features that the teacher reads."""

    catalogue: Catalogue  # the run's
    variants: Catalogue
    """Texts of pins without some group among their engaged queries, weighed by the catalogue's statistics."""
    queries: list[str]  # distinct normalised queries
    query_index: np.ndarray  # (num_pairs,) int64
    pin_index: np.ndarray  # (num_pairs,) int64, rows of the catalogue
    variant: np.ndarray  # (num_pairs,) int64, row of `variants` that is shown; -1: the pin's text as it is

    @classmethod
    def of(
        cls, catalogue: Catalogue, queries: list[str], query_index: np.ndarray, pin_index: np.ndarray
    ) -> "ShownPairs":
        """Find the pairs whose pin says their query, and make those pins' texts without it."""
        groups, group_of_query = np.unique([query_group(query) for query in queries], return_inverse=True)
        pair_key = pin_index * max(len(groups), 1) + group_of_query[query_index]
        saying = _saying(catalogue, np.unique(pin_index), groups) if _is_read(catalogue.cfg) else np.zeros(0, np.int64)
        keys = np.intersect1d(saying, pair_key)
        found = np.searchsorted(keys, pair_key)
        is_variant = np.isin(pair_key, keys)
        if len(keys):
            logger.info("%d of %d pairs: the pin is shown without their query", is_variant.sum(), len(pair_key))
        return cls(
            catalogue=catalogue,
            variants=_variants(catalogue, keys // max(len(groups), 1), groups[keys % max(len(groups), 1)].tolist()),
            queries=queries, query_index=query_index, pin_index=pin_index, variant=np.where(is_variant, found, -1),
        )  # fmt: skip

    def take(self, rows: np.ndarray) -> "ShownPairs":
        """The given pairs, in that order."""
        return replace(
            self, query_index=self.query_index[rows], pin_index=self.pin_index[rows], variant=self.variant[rows]
        )

    @property
    def pin_keys(self) -> list[str]:
        """Hash of the shown pin text, per pair."""
        own = self.catalogue.pin_keys(self.pin_index[self.variant < 0].tolist())
        other = self.variants.pin_keys(self.variant[self.variant >= 0].tolist())
        return [other[v] if v >= 0 else own[p] for p, v in self._places]

    @property
    def pin_texts(self) -> list[str]:
        """Shown pin text, per pair."""
        own, other = self.catalogue.pairs.rendered, self.variants.pairs.rendered
        return [other[v] if v >= 0 else own[p] for p, v in self._places]

    def features(self, cosine: CosineFeatures, query_vectors: np.ndarray) -> np.ndarray:
        """The teacher's features (`Catalogue.teacher_features`) of what is shown, (num_pairs, num_features) float32.

        Args:
            query_vectors: (num_queries, dim) zero-shot vectors.
        """
        features = self.catalogue.teacher_features(
            cosine, self.queries, query_vectors, self.query_index, self.pin_index
        )
        rows = np.flatnonzero(self.variant >= 0)
        if len(rows):
            used, place = np.unique(self.query_index[rows], return_inverse=True)
            queries = [self.queries[i] for i in used]
            match = self.catalogue.pairs.catalogue_match(queries)  # by titles, which are the same
            features[rows] = self.variants.teacher_features(
                cosine, queries, query_vectors[used], place, self.variant[rows], match
            )
        return features

    @property
    def _places(self) -> list[tuple[int, int]]:
        return list(zip(self.pin_index.tolist(), self.variant.tolist(), strict=True))


def _is_read(cfg: Config) -> bool:
    """Return True if engaged queries are among the text fields that the teacher reads."""
    return _FIELD in cfg.pin_text.fields or _FIELD in cfg.features.bm25_fields


def _saying(catalogue: Catalogue, pins: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The keys pin * num_groups + group of every engaged query of `pins` that falls into one of the sorted `groups`."""
    place = {group: i for i, group in enumerate(groups.tolist())}
    group_of: dict[str, int] = {}
    found = []
    lists = catalogue.pin_texts[_FIELD].take(pa.array(pins)).to_pylist()
    for pin, said in zip(pins.tolist(), lists, strict=True):
        for query in said or ():
            if query not in group_of:
                group_of[query] = place.get(query_group(query), -1)
            if group_of[query] >= 0:
                found.append(pin * len(groups) + group_of[query])
    return np.unique(np.array(found, np.int64))


def _variants(catalogue: Catalogue, pins: np.ndarray, without: list[str]) -> Catalogue:
    """Row i: pin pins[i] without the group without[i] among its engaged queries."""
    texts = catalogue.pin_texts.take(pa.array(pins, pa.int64()))
    kept = [
        [query for query in said or () if query_group(query) != group] or None
        for said, group in zip(texts[_FIELD].to_pylist(), without, strict=True)
    ]
    index = texts.column_names.index(_FIELD)
    texts = texts.set_column(index, texts.schema.field(index), pa.array(kept, pa.list_(pa.string())))
    return replace(
        catalogue, pin_texts=texts, pairs=catalogue.pairs.of_texts(texts), title_vectors=catalogue.title_vectors[pins],
        text_vectors=catalogue.text_vectors[pins],
    )  # fmt: skip
