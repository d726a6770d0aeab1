import numpy as np
import pyarrow as pa
import pytest

from ray_app.base.config import FeatureConfig, PinTextConfig
from ray_app.base.errors import UserError
from ray_app.features.bm25 import CatalogueMatch
from ray_app.features.corpus import CorpusStatistics, TermStatistics
from ray_app.features.external_embeddings import external_embedding_block
from ray_app.features.lexical import LexicalFeatures, lexical_texts

PINS = pa.table(
    {
        "pin_id": ["watch", "laptop", "bag", "bare"],
        "title": ["Acme smartwatch black", "Acme gaming laptops", "Laptop bag red", None],
        "description": ["A smart watch for runners", "Fast, with 16 GB", "Holds a 15 inch laptop", None],
        "link_text": [None, "computers", None, None],
    }
)
LONG = FeatureConfig(zero_shot_model="none")
ROW = {pin_id: row for row, pin_id in enumerate(PINS["pin_id"].to_pylist())}


@pytest.fixture(scope="module")
def features():
    return LexicalFeatures(PINS, FeatureConfig(zero_shot_model="none"), PinTextConfig())


def value(features, name, query, pin):
    row = features.compute([query], np.array([0]), np.array([ROW[pin]]))[0]
    return row[features.names.index(name)]


def test_one_named_column_per_feature(features):
    matrix = features.compute(["laptop", "x"], np.array([0, 1, 1]), np.array([0, 1, 3]))
    assert (matrix.shape, matrix.dtype) == ((3, len(features.names)), np.float32)
    assert len(set(features.names)) == len(features.names) <= 30


@pytest.mark.parametrize("query", ["", "!!!", "zebra", "laptop " * 2000, "日本語", "s"])
def test_every_query_gives_finite_features(features, query):
    matrix = features.compute([query], np.zeros(4, int), np.arange(4))
    assert np.isfinite(matrix).all() and np.abs(matrix).max() < 10


def test_a_pin_without_text_has_zeros_and_no_presence(features):
    per_pin = [name for name in features.names if not name.startswith("query_")]
    assert {name: value(features, name, "laptop", "bare") for name in per_pin} == dict.fromkeys(per_pin, 0.0)


@pytest.mark.parametrize(
    ("name", "query", "pin", "expected"),
    [
        ("link_text_present", "laptop", "laptop", 1),
        ("link_text_present", "laptop", "bag", 0),
        ("title_coverage", "acme laptop", "laptop", 1),  # which says it in the plural
        ("title_coverage", "acme laptop", "watch", 0.5),
        ("title_idf_coverage", "red laptop", "bag", 1),
        ("title_phrase", "laptop bag", "bag", 1),
        ("title_phrase", "bag laptop", "bag", 0),  # not in a row
        ("title_phrase", "smart watch", "watch", 1),  # written together
        ("description_phrase", "smartwatch", "watch", 1),  # written apart
        ("title_phrase", "art", "watch", 0),  # a short query inside another word
        ("title_gram_coverage", "smart watch", "watch", 1),  # another spelling
        ("title_head_place", "gaming laptop", "laptop", 1),
    ],
)
def test_a_feature_says_how_the_query_stands_in_the_field(features, name, query, pin, expected):
    assert value(features, name, query, pin) == expected


@pytest.mark.parametrize(
    ("name", "query", "pin", "most"),
    [
        ("title_idf_coverage", "red laptop", "laptop", 0.5),  # "laptop" is in two pins, "red" in one
        ("all_idf_coverage", "laptop zebra", "laptop", 0.5),  # an unknown word lowers the coverage
        ("title_head_place", "gaming laptop", "bag", 0.6),  # tells a laptop from a laptop bag
    ],
)
def test_a_feature_of_a_part_match_is_between_zero_and(features, name, query, pin, most):
    assert 0 < value(features, name, query, pin) < most


def test_bm25_is_comparable_over_queries(features):
    """A pin that answers all of a long query must not beat, by length alone, one that answers all of a short one."""
    short, long = (value(features, "all_bm25", query, "laptop") for query in ("gaming", "gaming laptop computers"))
    assert 0.4 < short / long < 2.5


def test_features_of_a_pair_do_not_depend_on_the_batch(features):
    """Teach, evaluate and serve batch differently, and must see the same numbers."""
    queries = ["laptop", "smart watch", ""]
    together = features.compute(queries, np.array([1, 0, 2, 0]), np.array([0, 2, 1, 1]))
    alone = features.compute(["laptop"], np.array([0]), np.array([2]))
    np.testing.assert_array_equal(together[1], alone[0])


def taken(rows):
    return PINS.take(pa.array(rows, pa.int64()))


@pytest.mark.parametrize("own", [[0, 2], [3], [], [0, 1, 2, 3]])
def test_features_of_a_part_are_rows_of_the_whole(features, own):
    """A shard holds a part of the pins, and must grade them as if it held all."""
    others = [row for row in range(4) if row not in own]
    cfg = FeatureConfig(zero_shot_model="none")
    texts = lexical_texts(PINS, cfg, PinTextConfig())
    corpus = CorpusStatistics({name: TermStatistics.count(*some) for name, some in texts.items()})
    part, rest = (LexicalFeatures(taken(rows), cfg, PinTextConfig(), corpus) for rows in (own, others))
    queries = ["laptop bag", "smart watch", "acme", "zebra laptop laptop", ""]
    with pytest.raises(ValueError, match="a part of a catalogue"):
        part.catalogue_match(queries)
    match = CatalogueMatch.merged([part.match_here(queries), rest.match_here(queries)])
    query_index = np.repeat(np.arange(5), len(own))
    found = part.compute(queries, query_index, np.tile(np.arange(len(own)), 5), match)
    wanted = features.compute(queries, query_index, np.tile(np.array(own, int), 5))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_catalogue_is_asked_by_whole_queries_however_long():
    """Those of a sample are known by them: the shortened one was not found, and no new sample helped."""
    asked = []

    def match_of(queries):
        asked.extend(queries)
        return CatalogueMatch(np.ones(len(queries)), np.zeros(len(queries), np.int64))

    corpus = CorpusStatistics(
        {n: TermStatistics.count(*some) for n, some in lexical_texts(PINS, LONG, PinTextConfig()).items()}
    )
    LexicalFeatures(PINS, LONG, PinTextConfig(), corpus, match_of).compute(
        ["laptop " * 200], np.zeros(1, int), np.zeros(1, int)
    )
    assert asked == ["laptop " * 200]


def test_no_pairs_and_no_pins_work():
    empty = LexicalFeatures(PINS.slice(0, 0), FeatureConfig(zero_shot_model="none"), PinTextConfig())
    assert empty.compute(["laptop"], np.array([], int), np.array([], int)).shape == (0, len(empty.names))


def test_a_pin_that_is_not_in_the_catalogue_is_named(features):
    assert features.pin_rows(["bag", "watch"]).tolist() == [2, 0]
    with pytest.raises(UserError, match="'gone'"):
        features.pin_rows(["bag", "gone"])


VECTORS = pa.table(
    {
        "sage": pa.array([[1.0, 2.0], None, [float("nan"), 1.0]], pa.list_(pa.float32(), 2)),
        "omni": pa.array([None, [3.0], [0.0]], pa.list_(pa.float32(), 1)),
    }
)


@pytest.mark.parametrize(
    ("named", "values", "mask"),
    [
        ({"omni": 1, "sage": 2}, [[0, 1, 2], [3, 0, 0], [0, 0, 0]], [[0, 1], [1, 0], [1, 0]]),
        ({}, [[], [], []], [[], [], []]),
    ],
)
def test_named_vectors_stand_side_by_side_with_a_mask(named, values, mask):
    """A zero vector is present and an absent one is not: the two would be the same to a model without the mask."""
    found = external_embedding_block(VECTORS, named)
    assert (found[0].tolist(), found[1].tolist()) == (values, mask)


@pytest.mark.parametrize(("named", "word"), [({"nope": 2}, "nope"), ({"sage": 3}, "sage")])
def test_a_named_vector_that_does_not_fit_is_named(named, word):
    with pytest.raises(UserError, match=word):
        external_embedding_block(VECTORS, named)


def test_other_texts_are_weighed_as_in_the_catalogue_and_not_counted_in_it(features):
    """A pin's text with a query left out must score like a text of the catalogue, not like one of a catalogue of its own."""
    queries = ["laptop bag", "smart watch", "acme zebra", ""]
    match = features.catalogue_match(queries)
    query_index = np.repeat(np.arange(4), 3)
    again = features.of_texts(taken([2, 2, 0]))
    wanted = features.compute(queries, query_index, np.tile([2, 2, 0], 4))
    np.testing.assert_array_equal(again.compute(queries, query_index, np.tile([0, 1, 2], 4), match), wanted)
    new = PINS.slice(0, 1).set_column(1, "title", pa.array(["Quokka laptop"]))
    unknown = features.of_texts(new).compute(["laptop quokka"], np.array([0]), np.array([0]), match)[0]
    assert unknown[features.names.index("title_coverage")] == 0.5
