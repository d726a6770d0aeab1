"""Pins as the teacher sees them: texts, lexical features and zero-shot vectors, row by row for the same pins."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ray_app.base.columns import matrix_or_zero
from ray_app.base.config import Config
from ray_app.base.content_key import content_key
from ray_app.base.errors import UserError
from ray_app.base.text import field_text, normalize_query
from ray_app.features.bm25 import CatalogueMatch
from ray_app.features.corpus import CorpusStatistics
from ray_app.features.cosine import CosineFeatures
from ray_app.features.lexical import LexicalFeatures, MatchOf


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Some pins or all, with everything that the teacher reads of a pair."""

    cfg: Config  # the run's
    pin_texts: pa.Table  # schema PIN_TEXTS
    pairs: LexicalFeatures  # lexical features over the same rows
    title_vectors: np.ndarray  # (num_pins, dim) float32, unit length or zero
    text_vectors: np.ndarray  # (num_pins, dim) float32

    @classmethod
    def of(
        cls, cfg: Config, pin_texts: pa.Table, zero_shot_pins: pa.Table, corpus: CorpusStatistics | None = None,
        match_of: MatchOf | None = None,
    ) -> "Catalogue":  # fmt: skip
        """Put the tables side by side.

        Args:
            corpus: See `LexicalFeatures`, as the next one. None: these are all pins.
            match_of: Of the whole catalogue.

        Raises:
            UserError: the tables are of different catalogues.
        """
        if not pin_texts["pin_id"].equals(zero_shot_pins["pin_id"]):
            raise UserError(
                "zero_shot was made from an older pin_texts; run `python pipelines/zero_shot.py --config ...` again"
            )
        return cls(
            cfg=cfg,
            pin_texts=pin_texts,
            pairs=LexicalFeatures(pin_texts, cfg.features, cfg.pin_text, corpus, match_of),
            title_vectors=matrix_or_zero(zero_shot_pins["title_embedding"]),
            text_vectors=matrix_or_zero(zero_shot_pins["text_embedding"]),
        )

    @classmethod
    def of_texts(
        cls, cfg: Config, pin_texts: pa.Table, corpus: CorpusStatistics | None = None, match_of: MatchOf | None = None
    ) -> "Catalogue":
        """Without zero-shot vectors, for the student, which reads none of pins. Arguments as of `of`."""
        nothing = np.zeros((pin_texts.num_rows, 0), np.float32)
        pairs = LexicalFeatures(pin_texts, cfg.features, cfg.pin_text, corpus, match_of)
        return cls(cfg=cfg, pin_texts=pin_texts, pairs=pairs, title_vectors=nothing, text_vectors=nothing)

    def with_texts(self, pin_texts: pa.Table) -> "Catalogue":
        """The same pins with other user-made texts (engaged queries, boards); zero-shot vectors and statistics stay."""
        return replace(self, pin_texts=pin_texts, pairs=self.pairs.of_texts(pin_texts))

    def teacher_features(
        self, cosine: CosineFeatures, queries: list[str], query_vectors: np.ndarray, query_index: np.ndarray,
        pin_index: np.ndarray, match: CatalogueMatch | None = None,
    ) -> np.ndarray:  # fmt: skip
        """The teacher's features of pairs (queries[query_index[i]], pin pin_index[i]): lexical, then cosines.

        Args:
            query_vectors: (num_queries, dim) zero-shot vectors.
            query_index, pin_index: (num_pairs,).
            match: See `LexicalFeatures.compute`.

        Returns:
            (num_pairs, num_features) float32.
        """
        lexical = self.pairs.compute(queries, query_index, pin_index, match)
        semantic = cosine.compute(
            query_vectors[query_index], self.title_vectors[pin_index], self.text_vectors[pin_index]
        )
        return np.concatenate([lexical, semantic], 1)

    def pin_content(self, row: int) -> list[str]:
        """Everything of a pin that decides a pair's label, normalised: the model's text, and the features' fields."""
        fields = sorted({*self.cfg.features.bm25_fields, *self.cfg.features.zero_shot_fields, "title"})
        values = [field_text(self.pin_texts[name][row].as_py()) for name in fields]
        return [self.pairs.rendered[row], *values]

    def pin_keys(self, rows: Sequence[int]) -> dict[int, str]:
        """A hash of `pin_content` per distinct row."""
        return {row: content_key("pin", *self.pin_content(row)) for row in sorted(set(rows))}


def index_queries(raw: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct normalised queries, sorted, and each input's position among them, (len(raw),) int64."""
    normalized = [normalize_query(query) for query in raw]
    distinct = sorted(set(normalized))
    place = {query: i for i, query in enumerate(distinct)}
    return distinct, np.array([place[query] for query in normalized], np.int64)
