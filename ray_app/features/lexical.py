"""Pair features beside the language models: BM25 and text match per field, what the query is, what the pin has.

One class for train_teacher, distill, evaluate and serve, so that a model never sees a feature computed in two ways.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.base.config import FeatureConfig, PinTextConfig
from ray_app.base.errors import UserError
from ray_app.base.text import char_grams, field_text, render_pin_texts, stem_tokens
from ray_app.features.bm25 import Bm25Index, CatalogueMatch, PairTerms, QueryTerms, positive_idf
from ray_app.features.corpus import CorpusStatistics, Tokenizer

FEATURES_VERSION = 2  # raised when equal inputs give other features: part of every recipe that has them

MAX_QUERY_CHARS = 500  # longer queries are truncated, which bounds their cost; the default of the ingest limit
_MIN_COMPACT_CHARS = 6  # a shorter query is found by chance inside other words ("art" in "smart")

TEXT, GRAMS = "whole text", "title n-grams"  # of `lexical_texts`, beside the fields

Floats = NDArray[np.float32]
MatchOf = Callable[[Sequence[str]], CatalogueMatch]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Indexes:
    stems: dict[str, list[str]]  # of each field's texts
    of_fields: dict[str, Bm25Index]
    of_all: Bm25Index  # of whole texts
    of_grams: Bm25Index  # of the titles' character n-grams


class LexicalFeatures:
    """Features of (query, pin) pairs over one catalogue. Build once; `compute` is vectorised over pairs.

    A pin without text has zeros and its presence flags are 0. Everything is finite, and 0..about 3 in size.

    It may hold a part of the catalogue's pins: then words are weighed by the whole catalogue's statistics, and a pair's
    features are the same as from the whole, if it is told how well the whole catalogue matches the queries.
    """

    def __init__(
        self,
        pin_texts: pa.Table,
        features: FeatureConfig,
        pin_text: PinTextConfig,
        corpus: CorpusStatistics | None = None,
        match_of: MatchOf | None = None,
    ) -> None:
        """Index pins.

        Args:
            pin_texts: One row per pin (schema PIN_TEXTS); row numbers are the `pin_index` of `compute`.
            corpus: Statistics of the whole catalogue (`lexical_texts`). None: all of it is here, and it is indexed when
                features are first computed.
            match_of: Gives the whole catalogue's `catalogue_match`; None: all of it is here, or `compute` is told.
        """
        self.fields: list[str] = list(features.bm25_fields)
        self._features, self._pin_text = features, pin_text
        self._corpus, self._match_of = corpus, match_of
        self._is_whole = corpus is None
        self._pin_texts = pin_texts
        self.pin_ids: list[str] = pin_texts.column("pin_id").to_pylist()
        self.rendered = render_pin_texts(pin_texts, pin_text)

    def of_texts(self, pin_texts: pa.Table) -> "LexicalFeatures":
        """Features of other texts by this catalogue's statistics, in which they do not count, and with its `catalogue_match`."""
        corpus = self._corpus
        if corpus is None:
            indexes = self._indexes
            of_fields = {name: index.corpus for name, index in indexes.of_fields.items()}
            corpus = CorpusStatistics(of_fields | {TEXT: indexes.of_all.corpus, GRAMS: indexes.of_grams.corpus})
        return LexicalFeatures(pin_texts, self._features, self._pin_text, corpus, self.catalogue_match)

    @cached_property
    def _indexes(self) -> _Indexes:
        texts = lexical_texts(self._pin_texts, self._features, self._pin_text, self.rendered)
        indexes = {
            name: Bm25Index.build(
                some, tokenizer=tokenizer, corpus=None if self._corpus is None else self._corpus[name]
            )
            for name, (some, tokenizer) in texts.items()
        }
        of_all, of_grams = indexes.pop(TEXT), indexes.pop(GRAMS)
        stems = {name: [_padded(text) for text in texts[name][0]] for name in indexes}
        return _Indexes(stems=stems, of_fields=indexes, of_all=of_all, of_grams=of_grams)

    @property
    def names(self) -> list[str]:
        """Name of every feature, in the order of `compute`'s columns."""
        per_field = ("bm25", "coverage", "idf_coverage", "phrase", "present")
        return [
            *(f"{field}_{name}" for field in self.fields for name in per_field),
            *("all_bm25", "all_bm25_log", "all_coverage", "all_idf_coverage"),
            *("title_bm25_share", "title_gram_coverage", "title_starts", "title_head", "title_head_place"),
            *("query_num_tokens", "query_mean_idf", "query_unknown_share", "query_num_full_matches"),
            "pin_num_tokens",
        ]

    def pin_rows(self, pin_ids: Sequence[str]) -> NDArray[np.int64]:
        """Row of each pin id. Shape (num_ids,).

        Raises:
            UserError: a pin that the catalogue does not have.
        """
        try:
            return np.array([self._row_of[pin_id] for pin_id in pin_ids], np.int64)
        except KeyError as error:
            raise UserError(f"pin {error.args[0]!r} is not in the catalogue (table pin_texts); leave it out") from None

    def catalogue_match(self, queries: Sequence[str]) -> CatalogueMatch:
        """Title match statistics of the whole catalogue for each query.

        Raises:
            ValueError: only a part of it is here, and nobody said.
        """
        if self._match_of is not None:
            return self._match_of(queries)
        if not self._is_whole:
            raise ValueError("a part of a catalogue cannot tell how well all of it matches a query; pass `match`")
        return self.match_here(queries)

    def match_here(self, queries: Sequence[str]) -> CatalogueMatch:
        """Title match statistics of the pins here, of which `CatalogueMatch.merged` makes those of the whole catalogue."""
        return _title_match(self._indexes.of_fields["title"], queries)

    def compute(
        self, queries: Sequence[str], query_index: NDArray, pin_index: NDArray, match: CatalogueMatch | None = None
    ) -> Floats:
        """Features of pair i = (queries[query_index[i]], pin pin_index[i]).

        Args:
            queries: Distinct query texts; pass only those that are used.
            query_index: (num_pairs,) into `queries`.
            pin_index: (num_pairs,) rows of the pin_texts table.
            match: Of the whole catalogue; None: `catalogue_match`.

        Returns:
            (num_pairs, num_features) float32, columns as in `names`.

        Raises:
            IndexError: an index outside its list.
        """
        query_index, pin_index = np.asarray(query_index, np.int64), np.asarray(pin_index, np.int64)
        # By the whole queries, which is what they are known by.
        best, num_full = self.catalogue_match(queries) if match is None else match
        queries = [query[:MAX_QUERY_CHARS] for query in queries]
        pairs = _Pairs(queries, query_index, pin_index)
        whole = _Match(self._indexes.of_all, pairs)
        token_weight = whole.idf()
        columns: list[NDArray] = []
        matches = {name: _Match(self._indexes.of_fields[name], pairs) for name in self._indexes.stems}
        stems = [_padded(query) for query in queries]
        for field in self.fields:
            own = matches[field]
            columns += [own.bm25(), own.coverage(), own.coverage(own.idf())]
            columns += [self._phrase(field, stems, pairs), self._indexes.of_fields[field].doc_length[pin_index] > 0]
        raw = whole.raw()
        columns += [whole.bm25(), np.sign(raw) * np.log1p(np.abs(raw)), whole.coverage(), whole.coverage(token_weight)]
        columns.append(_ratio(matches["title"].raw(), best[query_index]))
        grams = _Match(self._indexes.of_grams, pairs)
        has_grams = grams.num_terms[query_index] > 0
        columns.append(np.where(has_grams, grams.coverage(), matches["title"].coverage(matches["title"].idf())))
        columns += self._title_places(stems, pairs)
        num_tokens = whole.num_terms
        per_query = [
            np.log1p(num_tokens),
            _ratio(_sum_by_query(whole.terms, token_weight), num_tokens) / 10.0,
            _ratio(_sum_by_query(whole.terms, (whole.terms.doc_frequency == 0).astype(float)), num_tokens),
            np.log10(1.0 + num_full),
        ]
        columns += [values[query_index] for values in per_query]
        columns.append(np.log1p(self._indexes.of_all.doc_length[pin_index]) / 5.0)
        return np.stack(columns, axis=1).astype(np.float32)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {pin_id: row for row, pin_id in enumerate(self.pin_ids)}

    def _phrase(self, field: str, stems: list[str], pairs: "_Pairs") -> Floats:
        """1 where the field says the query's words in a row, be they written together or apart; (num_pairs,)."""
        texts, compact = self._indexes.stems[field], [stem.replace(" ", "") for stem in stems]
        found = np.zeros(pairs.num_pairs, np.float32)
        for i, (q, p) in enumerate(zip(pairs.query_index.tolist(), pairs.pin_index.tolist(), strict=True)):
            text, query = texts[p], stems[q]
            if not query or not text:
                continue
            found[i] = query in text or (len(compact[q]) >= _MIN_COMPACT_CHARS and compact[q] in text.replace(" ", ""))
        return found

    def _title_places(self, stems: list[str], pairs: "_Pairs") -> list[Floats]:
        """Positions of the query's words in the title; three columns (num_pairs,).

        - 1 if the title starts with the query's first word (often the brand);
        - 1 if the query's last word (its head: what is wanted) is in the title;
        - where in the title that word ends, 0..1: names of things end with the thing.
        """
        titles = self._indexes.stems["title"]
        words = [query.split() for query in stems]
        first = [f" {w[0]} " if w else "" for w in words]
        last = [f" {w[-1]} " if w else "" for w in words]
        starts, head, place = (np.zeros(pairs.num_pairs, np.float32) for _ in range(3))
        for i, (q, p) in enumerate(zip(pairs.query_index.tolist(), pairs.pin_index.tolist(), strict=True)):
            title = titles[p]
            if not title or not last[q]:
                continue
            starts[i] = title.startswith(first[q])
            at = title.rfind(last[q])
            if at >= 0:
                head[i], place[i] = 1.0, (at + len(last[q])) / len(title)
        return [starts, head, place]


class _Pairs(NamedTuple):
    """The pairs that one call of `compute` is about."""

    queries: list[str]
    query_index: NDArray[np.int64]  # (num_pairs,)
    pin_index: NDArray[np.int64]  # (num_pairs,)

    @property
    def num_pairs(self) -> int:
        """Number of features."""
        return len(self.query_index)


class _Match:
    """The query tokens of all pairs, looked up in one index."""

    def __init__(self, index: Bm25Index, pairs: _Pairs) -> None:
        self.index, self.pairs = index, pairs
        self.terms: QueryTerms = index.query_terms(pairs.queries)
        self.found: PairTerms = index.pair_terms(self.terms, pairs.query_index, pairs.pin_index)
        self.num_terms = np.diff(self.terms.start)  # (num_queries,) distinct tokens

    def idf(self) -> NDArray[np.float64]:
        """Weight of each query token by how rare it is in this index; (num_terms,)."""
        return positive_idf(self.terms, self.index.num_docs)

    def raw(self) -> NDArray[np.float64]:
        """BM25; (num_pairs,)."""
        return self.index.pair_scores(self.terms, self.found, self.pairs.num_pairs)

    def bm25(self) -> NDArray[np.float64]:
        """BM25 over the sum of the query's |idf|: 0..2.5 for every query; (num_pairs,)."""
        ideal = _sum_by_query(self.terms, np.abs(self.terms.idf) * self.terms.count)
        return _ratio(self.raw(), ideal[self.pairs.query_index])

    def coverage(self, weight: NDArray | None = None) -> NDArray[np.float64]:
        """Share of the query's distinct tokens that the document has, by number or by `weight`; (num_pairs,)."""
        weight = np.ones(len(self.terms.term)) if weight is None else weight
        hit = (self.found.posting > 0) * weight[self.found.query_term]
        covered = np.bincount(self.found.pair, weights=hit, minlength=self.pairs.num_pairs)
        return _ratio(covered, _sum_by_query(self.terms, weight)[self.pairs.query_index])


def lexical_texts(
    pin_texts: pa.Table, features: FeatureConfig, pin_text: PinTextConfig, rendered: list[str] | None = None
) -> dict[str, tuple[list[str], Tokenizer]]:
    """The texts whose words are counted, each with its tokeniser: fields by name, whole texts, and titles' n-grams.

    Args:
        rendered: The whole texts, where they are known.
    """
    texts = {name: _field_texts(pin_texts, name) for name in dict.fromkeys((*features.bm25_fields, "title"))}
    whole = render_pin_texts(pin_texts, pin_text) if rendered is None else rendered
    stems: dict[str, tuple[list[str], Tokenizer]] = {name: (some, stem_tokens) for name, some in texts.items()}
    return stems | {TEXT: (whole, stem_tokens), GRAMS: (texts["title"], char_grams)}


def title_match(pin_texts: pa.Table, corpus: CorpusStatistics, queries: Sequence[str]) -> CatalogueMatch:
    """`LexicalFeatures.match_here` of some pins, for which only their titles are indexed."""
    titles = _field_texts(pin_texts, "title")
    return _title_match(Bm25Index.build(titles, tokenizer=stem_tokens, corpus=corpus["title"]), queries)


def _title_match(titles: Bm25Index, queries: Sequence[str]) -> CatalogueMatch:
    return titles.catalogue_match([query[:MAX_QUERY_CHARS] for query in queries])


def _field_texts(pin_texts: pa.Table, name: str) -> list[str]:
    """One normalised text per pin; an absent column is empty everywhere."""
    if name not in pin_texts.column_names:
        return [""] * pin_texts.num_rows
    return [field_text(value) for value in pin_texts.column(name).to_pylist()]


def _padded(text: str) -> str:
    """Stems with a blank on either side, so that whole words can be found with `in`; "" for no word."""
    stems = stem_tokens(text)
    return f" {' '.join(stems)} " if stems else ""


def _sum_by_query(terms: QueryTerms, values: NDArray) -> NDArray[np.float64]:
    """Sum of per-term values for each query; (num_queries,)."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return total[terms.start[1:]] - total[terms.start[:-1]]


def _ratio(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    """Quotient, and 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 1e-9)
