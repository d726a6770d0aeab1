import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from ray_app.base.text import tokenize
from ray_app.features.bm25 import Bm25Index, CatalogueMatch, index_type
from ray_app.features.corpus import TermStatistics

WORDS = ["red", "blue", "laptop", "bag", "the", "hp", "15"]
TEXTS = ["the red laptop", "the blue laptop laptop bag", "the bag", "", "the HP 15 laptop: the best", "desk"]

texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), min_size=1, max_size=12)
queries = st.lists(st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=5).map(" ".join), min_size=1, max_size=4)


def all_pairs(num_queries, num_docs):
    return np.repeat(np.arange(num_queries), num_docs), np.tile(np.arange(num_docs), num_queries)


@settings(max_examples=150, deadline=None)
@given(texts=texts, queries=queries)
def test_pair_scores_equal_rank_bm25(texts, queries):
    """Repeated, unknown and missing words, empty documents, and terms in over half of them, included."""
    texts = [*texts, "anchor"]  # rank-bm25 divides by zero where no document has a word
    reference = BM25Okapi([tokenize(text) for text in texts])
    expected = np.concatenate([reference.get_scores(tokenize(query)) for query in queries])
    scores = Bm25Index.build(texts).score_pairs(queries, *all_pairs(len(queries), len(texts)))
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_other_parameters_equal_rank_bm25():
    reference = BM25Okapi([tokenize(t) for t in TEXTS], k1=0.9, b=0.4, epsilon=0.1).get_scores(["the", "laptop"])
    scores = Bm25Index.build(TEXTS, k1=0.9, b=0.4, epsilon=0.1).score_all("the laptop")
    np.testing.assert_allclose(scores, reference, atol=1e-6)


def test_score_of_a_pair_does_not_depend_on_the_other_pairs():
    index = Bm25Index.build(TEXTS)
    together = index.score_pairs(["laptop", "", "red bag"], np.array([2, 0, 1, 0, 2]), np.array([1, 0, 4, 4, 1]))
    alone = [index.score_pairs([q], np.array([0]), np.array([d]))[0] for q, d in [("red bag", 1), ("laptop", 0)]]
    np.testing.assert_array_equal(together[[0, 1]], alone)


@pytest.mark.parametrize("texts", [[], [""], ["", "!?"]])
def test_a_corpus_without_words_scores_zero(texts):
    index = Bm25Index.build(texts)
    assert index.score_all("laptop").tolist() == [0.0] * len(texts)
    assert len(index.top_k("laptop", 5)[0]) == 0


def test_no_pairs_give_no_scores():
    assert Bm25Index.build(TEXTS).score_pairs([], np.array([], int), np.array([], int)).shape == (0,)


@pytest.mark.parametrize(("query_index", "doc_index"), [([0], [6]), ([1], [0]), ([0], [-1])])
def test_an_index_outside_its_list_is_refused(query_index, doc_index):
    """A negative index would silently score another pin."""
    with pytest.raises(IndexError):
        Bm25Index.build(TEXTS).score_pairs(["laptop"], np.array(query_index), np.array(doc_index))


def test_top_k_is_the_ranking_of_all_scores():
    index = Bm25Index.build(TEXTS)
    docs, scores = index.top_k("red laptop", 2)
    assert docs.tolist() == np.argsort(-index.score_all("red laptop"), kind="stable")[:2].tolist()
    np.testing.assert_array_equal(scores, index.score_all("red laptop")[docs])


def test_top_k_breaks_ties_by_the_lower_index_and_leaves_out_documents_without_any_query_word():
    index = Bm25Index.build(["x", "a b", "a c", "a d", "y"])
    assert (index.top_k("a", 2)[0].tolist(), index.top_k("y", 5)[0].tolist()) == ([1, 2], [4])


def test_catalogue_match_gives_the_best_score_and_the_full_matches():
    index = Bm25Index.build(TEXTS)
    best, full = index.catalogue_match(["laptop bag", "laptop zebra", ""])
    np.testing.assert_allclose(best, [index.score_all("laptop bag").max(), index.score_all("laptop").max(), 0])
    assert full.tolist() == [1, 0, 0]


@settings(max_examples=100, deadline=None)
@given(texts=texts, queries=queries, cut=st.integers(0, 12))
def test_parts_of_a_corpus_score_as_the_whole(texts, queries, cut):
    """Else a pin's score would depend on which shard holds it."""
    whole = Bm25Index.build(texts)
    corpus = TermStatistics.count(texts, tokenize)
    parts = [Bm25Index.build(own, corpus=corpus) for own in (texts[:cut], texts[cut:])]
    assert [part.num_docs for part in parts] == [whole.num_docs] * 2
    for query in queries:
        scores = np.concatenate([part.score_all(query) for part in parts])
        np.testing.assert_allclose(scores, whole.score_all(query), atol=1e-9)
    expected = whole.catalogue_match(queries)
    merged = CatalogueMatch.merged([part.catalogue_match(queries) for part in parts])
    np.testing.assert_allclose(merged.best, expected.best, atol=1e-9)
    assert merged.num_full.tolist() == expected.num_full.tolist()


def test_another_text_is_scored_by_the_corpus_statistics_by_hand():
    index = Bm25Index.build(["red mug", "blue mug", "green lamp on desk", "chair"])
    found = Bm25Index.build(["red red sofa", ""], corpus=index.corpus).score_pairs(
        ["red sofa"], np.array([0, 0]), np.array([0, 1])
    )
    idf = np.log(3.5) - np.log(1.5)
    assert found == pytest.approx([idf * 2 * 2.5 / (2 + 1.5 * (0.25 + 0.75 * 3 / 2.25)), 0.0])
    assert index.score_pairs(["red"], np.array([0]), np.array([0]))[0] > 0


@pytest.mark.parametrize(("largest", "size"), [(2**31 - 1, 4), (2**31, 8), (2**40, 8)])
def test_more_postings_than_32_bits_count_get_64(largest, size):
    assert index_type(largest)(largest) == largest and index_type(largest)(0).itemsize == size
