"""BM25 as rank-bm25's `BM25Okapi` defines it, over a whole catalogue, for many (query, pin) pairs at once.

Corpus statistics are computed once; a (doc, term) pair's share of the score is one stored number, so scoring a pair is
a look-up per query token. Equal to rank-bm25 to 1e-6 (tests/unit/features/test_bm25.py), including its floor under negative idf.

Longer than 300 lines: statistics, look-up of pairs and search read the same arrays, whose layout nothing else knows.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_app.base.text import tokenize
from ray_app.features.corpus import TermStatistics, Tokenizer, term_hashes
from ray_app.features.neighbors import best_k

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryTerms:
    """Distinct terms of a list of queries, flat, query by query.

    Terms that no document has are kept: a query of unknown words is not an empty query.
    """

    start: Ints  # (num_queries + 1,): query i has the terms start[i]:start[i + 1]
    term: Ints  # (num_terms,) index in the vocabulary; -1: in no document here
    count: Floats  # (num_terms,) times the query says it
    idf: Floats  # (num_terms,) as in the score; 0 for unknown terms, and never below 0 but in tiny corpora
    doc_frequency: Ints  # (num_terms,) documents of the corpus that have it; 0: unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTerms:
    """Every (pair, distinct query term), flat, pair by pair."""

    pair: Ints  # (num_pair_terms,) which pair
    query_term: Ints  # (num_pair_terms,) index into QueryTerms
    posting: Ints  # (num_pair_terms,) 1 + index into the index's postings; 0: the document lacks the term


class CatalogueMatch(NamedTuple):
    """Per-query statistics of how well a corpus matches."""

    best: Floats  # (num_queries,) the best score of any document
    num_full: Ints  # (num_queries,) documents that have every token

    @classmethod
    def merged(cls, parts: Sequence["CatalogueMatch"]) -> "CatalogueMatch":
        """Combine the values of several indexes that share one set of corpus statistics."""
        best = np.max([part.best for part in parts], axis=0)
        return cls(best, np.sum([part.num_full for part in parts], axis=0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Bm25Index:
    """Okapi BM25 over a list of documents. Build it with `Bm25Index.build`.

    The list may be a part of the corpus: then words are weighed as in the whole of it, so that a document scores the same
    wherever it is.
    """

    tokenizer: Tokenizer
    corpus: TermStatistics  # of all documents that words are weighed by
    vocabulary: dict[str, int]  # terms of the documents here
    doc_length: Ints  # (num_texts,) tokens, repeats counted
    postings: "csr_array"  # (num_texts, num_terms); a value is 1 + its index, so that 0 means absent
    weight: Floats  # (1 + num_postings,) share of the score; [0] is for absent terms
    epsilon: float

    @classmethod
    def build(
        cls, texts: Sequence[str], k1: float = 1.5, b: float = 0.75, epsilon: float = 0.25,
        tokenizer: Tokenizer = tokenize, corpus: TermStatistics | None = None,
    ) -> "Bm25Index":  # fmt: skip
        """Index `texts`; no text at all is a valid, always-zero index.

        Args:
            texts: One per document; empty ones count in the statistics.
            epsilon: Terms in over half of the documents get this share of the mean idf.
            corpus: Statistics by the same tokeniser of the corpus that words are weighed by, be `texts` a part of it or not.
                Words that it does not have count in a document's length alone. None: `texts` is all of it.
        """
        vocabulary: dict[str, int] = {}
        term_ids, doc_length = _tokens(texts, tokenizer, lambda token: vocabulary.setdefault(token, len(vocabulary)))
        found = _count(term_ids, doc_length, len(vocabulary))
        if corpus is None:
            doc_frequency = np.bincount(found.term, minlength=len(vocabulary))
            hashes = term_hashes(list(vocabulary))
            corpus = TermStatistics.of(hashes, doc_frequency, len(texts), int(doc_length.sum()))
        else:
            doc_frequency = corpus.doc_frequency_of(list(vocabulary))
            known = doc_frequency[found.term] > 0
            found = _Counts(found.doc[known], found.term[known], found.times[known])
        weight = _weights(found, doc_length, corpus.idf(doc_frequency, epsilon), corpus.mean_length, k1, b)
        return cls(
            tokenizer=tokenizer, corpus=corpus, vocabulary=vocabulary, doc_length=doc_length, weight=weight,
            postings=_matrix(found, len(texts), len(vocabulary)), epsilon=epsilon,
        )  # fmt: skip

    @property
    def num_docs(self) -> int:
        """Documents of the corpus, empty ones included."""
        return self.corpus.num_docs

    def score_pairs(self, queries: Sequence[str], query_index: NDArray, doc_index: NDArray) -> Floats:
        """BM25 of pair i = (queries[query_index[i]], document doc_index[i]).

        Args:
            queries: Distinct query texts, any order.
            query_index: (num_pairs,) into `queries`.
            doc_index: (num_pairs,) into the indexed texts.

        Returns:
            (num_pairs,) float64; 0 where query or document is empty or they share no token.

        Raises:
            IndexError: an index outside its list.
        """
        # For a sum, repeated tokens need no count and unknown ones nothing at all: half the work of `query_terms`.
        said = [self.tokenizer(query) for query in queries]
        flat = np.fromiter(map(self.vocabulary.get, chain.from_iterable(said), repeat(-1)), np.int64)
        known = flat >= 0
        term, before = flat[known], np.concatenate([[0], np.cumsum(known)])
        start = before[np.concatenate([[0], np.cumsum(np.fromiter(map(len, said), np.int64, len(said)))])]
        found = self._look_up(start, term, query_index, doc_index)
        return _sum_by(found.pair, self.weight[found.posting], len(query_index))

    def pair_scores(self, terms: QueryTerms, pairs: PairTerms, num_pairs: int) -> Floats:
        """`score_pairs` from looked-up terms. Shape (num_pairs,)."""
        return _sum_by(pairs.pair, self.weight[pairs.posting] * terms.count[pairs.query_term], num_pairs)

    def query_terms(self, queries: Sequence[str]) -> QueryTerms:
        """Tokenise queries, and find their distinct terms in the vocabulary and in the corpus."""
        said = [self.tokenizer(query) for query in queries]
        distinct = [dict.fromkeys(tokens) for tokens in said]
        start = np.concatenate([[0], np.cumsum([len(tokens) for tokens in distinct], dtype=np.int64)])
        terms = np.fromiter(map(self.vocabulary.get, chain.from_iterable(distinct), repeat(-1)), np.int64)
        count = np.ones(len(terms))
        for i, tokens in enumerate(said):
            if len(tokens) > len(distinct[i]):
                count[start[i] : start[i + 1]] = [tokens.count(token) for token in distinct[i]]
        known = {token: i for i, token in enumerate(dict.fromkeys(chain.from_iterable(distinct)))}
        place = np.fromiter(map(known.__getitem__, chain.from_iterable(distinct)), np.int64)
        doc_frequency = self.corpus.doc_frequency_of(list(known))
        idf = self.corpus.idf(doc_frequency, self.epsilon)
        return QueryTerms(start=start, term=terms, count=count, idf=idf[place], doc_frequency=doc_frequency[place])

    def pair_terms(self, terms: QueryTerms, query_index: NDArray, doc_index: NDArray) -> PairTerms:
        """Look up every query term of every pair in the pair's document."""
        return self._look_up(terms.start, terms.term, query_index, doc_index)

    def _look_up(self, start: Ints, term: Ints, query_index: NDArray, doc_index: NDArray) -> PairTerms:
        query_index, doc_index = np.asarray(query_index, np.int64), np.asarray(doc_index, np.int64)
        if query_index.shape != doc_index.shape or query_index.ndim != 1:
            raise ValueError(
                f"query_index {query_index.shape} and doc_index {doc_index.shape} must be equally long lists"
            )
        _check_index(query_index, len(start) - 1, "query_index")
        _check_index(doc_index, len(self.doc_length), "doc_index")
        first = start[query_index]
        length = start[query_index + 1] - first
        pair = np.repeat(np.arange(len(query_index)), length)
        query_term = np.arange(len(pair)) + np.repeat(first - (np.cumsum(length) - length), length)
        wanted = term[query_term]
        unknown = wanted < 0
        posting = _sample(self.postings, doc_index[pair], np.where(unknown, 0, wanted))
        return PairTerms(pair=pair, query_term=query_term, posting=np.where(unknown, 0, posting))

    def score_all(self, query: str) -> Floats:
        """BM25 of one query with every document. Shape (num_texts,), float64."""
        scores = np.zeros(len(self.doc_length))
        docs, found, _ = self._found(query)
        scores[docs] = found
        return scores

    def catalogue_match(self, queries: Sequence[str]) -> CatalogueMatch:
        """Match statistics of these documents for each query."""
        best, full = np.zeros(len(queries)), np.zeros(len(queries), np.int64)
        num_terms = np.diff(self.query_terms(queries).start)
        for i, query in enumerate(queries):
            _, scores, num_said = self._found(query)
            best[i], full[i] = scores.max(initial=0.0), np.count_nonzero(num_said == num_terms[i])
        return CatalogueMatch(best, full)

    def top_k(self, query: str, k: int) -> tuple[Ints, Floats]:
        """The `k` best documents that share a token with the query, best first, ties by the lower index.

        Returns:
            Document indexes and scores, each (<= k,): a rare query has fewer than `k` documents, an unknown one none.
        """
        docs, scores, _ = self._found(query)
        return best_k(docs, scores, k)

    def _found(self, query: str) -> tuple[Ints, Floats, Ints]:
        """Documents here that say a token of a query, rising, their scores, and how many of its distinct tokens they say."""
        terms = self.query_terms([query])
        start, docs, shares = self._by_term
        spans = [(start[t], start[t + 1], c) for t, c in zip(terms.term, terms.count, strict=True) if t >= 0]
        every = np.concatenate([np.zeros(0, np.int64), *(docs[a:z] for a, z, _ in spans)])
        parts = np.concatenate([np.zeros(0), *(shares[a:z] * count for a, z, count in spans)])
        found, place = np.unique(every, return_inverse=True)
        return found, _sum_by(place, parts, len(found)), np.bincount(place, minlength=len(found))

    @cached_property
    def _by_term(self) -> tuple[NDArray, NDArray, Floats]:
        """The postings term by term: start (num_terms + 1,), document and share of the score of each."""
        columns = self.postings.tocsc()
        return columns.indptr, columns.indices, self.weight[columns.data]


class _Counts(NamedTuple):
    """Term frequencies sorted by document, then term: the canonical CSR order."""

    doc: Ints
    term: Ints
    times: Ints


def _tokens(texts: Sequence[str], tokenizer: Tokenizer, term_of: Callable[[str], int]) -> tuple[Ints, Ints]:
    """The term of every token, text by text, and each text's number of tokens, (num_texts,)."""
    terms = array("q")  # a list would take four times the memory
    length = np.zeros(len(texts), np.int64)
    for i, text in enumerate(texts):
        tokens = tokenizer(text)
        length[i] = len(tokens)
        terms.extend([term_of(token) for token in tokens])
    return np.array(terms, np.int64), length


def _count(terms: Ints, doc_length: Ints, num_terms: int) -> _Counts:
    """Counts from `_tokens`; terms of -1 are left out."""
    width = max(num_terms, 1)
    doc = np.repeat(np.arange(len(doc_length), dtype=np.int64), doc_length)
    known = terms >= 0
    keys, times = np.unique(doc[known] * width + terms[known], return_counts=True)
    return _Counts(keys // width, keys % width, times)


def _weights(found: _Counts, doc_length: Ints, idf: Floats, mean_length: float, k1: float, b: float) -> Floats:
    """Share of the score of each count, after a 0 for absent terms; (1 + num_counts,)."""
    if not len(found.doc):
        return np.zeros(1)
    norm = k1 * (1 - b + b * doc_length / mean_length)
    share = idf[found.term] * (found.times * (k1 + 1) / (found.times + norm[found.doc]))
    return np.concatenate([[0.0], share])


def _matrix(found: _Counts, num_texts: int, num_terms: int) -> "csr_array":
    """1 + the place of each count, so that 0 means absent; (num_texts, num_terms)."""
    from scipy.sparse import csr_array

    start = np.concatenate([[0], np.cumsum(np.bincount(found.doc, minlength=num_texts))])
    index = index_type(len(found.doc) + 1)
    values = np.arange(1, len(found.doc) + 1, dtype=index)
    columns = (values, found.term.astype(index), start.astype(index))
    matrix = csr_array(columns, shape=(num_texts, max(num_terms, 1)))
    matrix.has_canonical_format = True
    return matrix


def index_type(largest: int) -> type[np.int32] | type[np.int64]:
    """The smaller of two types that holds the numbers up to `largest`: postings may be more than 2^31."""
    return np.int32 if largest <= np.iinfo(np.int32).max else np.int64


def positive_idf(terms: QueryTerms, num_docs: int) -> Floats:
    """Lucene's idf, for weighing a query's words: positive for every term, highest for those in no document; (num_terms,)."""
    return np.log1p((num_docs - terms.doc_frequency + 0.5) / (terms.doc_frequency + 0.5))


def _sum_by(group: Ints, values: Floats, num_groups: int) -> Floats:
    """Sum of the values of each group; (num_groups,)."""
    return np.bincount(group, weights=values, minlength=num_groups).astype(np.float64, copy=False)


def _sample(matrix: "csr_array", rows: Ints, columns: Ints) -> NDArray:
    """matrix[rows[i], columns[i]] for every i."""
    if not len(rows):  # scipy refuses to index a matrix without rows, even by nothing
        return np.zeros(0, matrix.dtype)
    from scipy.sparse import csr_matrix

    # csr_matrix: its fancy indexing is one C call that returns the plain values; csr_array's builds a sparse result.
    plain = csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False)
    plain.has_canonical_format = True
    return np.asarray(plain[rows, columns]).ravel()


def _check_index(index: Ints, size: int, name: str) -> None:
    if len(index) and not 0 <= index.min() <= index.max() < size:
        raise IndexError(f"{name} goes from {index.min()} to {index.max()}, but there are {size}")
