"""Words are weighed by statistics that are small, whatever the corpus."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.base.errors import UserError
from ray_app.base.text import tokenize
from ray_app.cluster.corpus_counts import count_corpus
from ray_app.features.bm25 import Bm25Index
from ray_app.features.corpus import CorpusStatistics, TermStatistics, choose_listed, mean_idf_of
from ray_app.tables.buckets import bucketed_output, write_bucket

TEXTS = ["the red mug", "the blue mug", "the green lamp", "", "the chair the chair"]


@pytest.fixture
def terms():
    return TermStatistics.count(TEXTS, tokenize)


def test_documents_are_counted_once_per_word(terms):
    assert terms.doc_frequency_of(["the", "mug", "chair", "sofa"]).tolist() == [4, 2, 1, 0]
    assert (terms.num_docs, terms.num_tokens, terms.mean_length) == (5, 13, 13 / 5)


def test_the_order_of_documents_does_not_matter(terms):
    other = TermStatistics.count(TEXTS[::-1], tokenize)
    assert other.mean_idf == terms.mean_idf
    np.testing.assert_array_equal(other.hashes, terms.hashes)


def test_files_are_read_back_as_they_were(terms, tmp_path):
    corpus = CorpusStatistics({"title": terms, "no words": TermStatistics.count(["", ""], tokenize)})
    for name, data in corpus.to_files().items():
        (tmp_path / name).write_bytes(data)
    found = CorpusStatistics.open(tmp_path)
    assert isinstance(found["title"].hashes, np.memmap)
    assert found["title"].doc_frequency_of(["mug", "sofa"]).tolist() == [2, 0]
    assert (found["title"].mean_idf, found["no words"].num_docs) == (terms.mean_idf, 2)
    scores = Bm25Index.build(TEXTS, corpus=found["title"]).score_all("red mug the")
    np.testing.assert_array_equal(scores, Bm25Index.build(TEXTS).score_all("red mug the"))
    with pytest.raises(UserError, match=r"no text 'caption'.*corpus_statistics\.py"):
        found["caption"]


def test_beyond_the_bound_words_are_equally_rare(terms, store):
    """Where a word of no document cannot be told from a rare one, both count as rare: everywhere, or training and serving differ."""
    pins = bucketed_output("pins", "pins", [write_bucket(store, "pins", 0, pa.table({"title": TEXTS}), 100)])
    few = count_corpus(store, pins, lambda rows: {"title": (rows["title"].to_pylist(), tokenize)}, 3)["title"]
    assert len(few.hashes) == 2  # "the" and "mug"; five words of one document tie for the third place
    assert few.unlisted == 1
    assert few.doc_frequency_of(["the", "mug", "chair", "sofa"]).tolist() == [4, 2, 1, 1]
    assert (few.mean_idf, few.num_docs, few.num_tokens) == (terms.mean_idf, 5, 13)
    np.testing.assert_allclose(
        Bm25Index.build(TEXTS, corpus=few).score_all("red mug"), Bm25Index.build(TEXTS).score_all("red mug")
    )


@pytest.mark.parametrize(
    ("max_terms", "least", "unlisted"), [(100, 0, 0), (60, 0, 0), (59, 2, 1), (10, 3, 1), (9, 11, 3), (0, 11, 3)]
)
def test_the_most_frequent_words_are_listed(max_terms, least, unlisted):
    found = choose_listed(np.array([1, 2, 10]), np.array([40, 10, 10]), max_terms)
    assert (found.least, found.unlisted) == (least, unlisted)


def test_mean_idf_by_hand():
    idf = [np.log(4.5) - np.log(1.5), np.log(3.5) - np.log(2.5)]
    assert mean_idf_of(np.array([1, 2]), np.array([3, 1]), 5) == pytest.approx((3 * idf[0] + idf[1]) / 4)
    assert mean_idf_of(np.zeros(0, int), np.zeros(0, int), 5) == 0.0
