import numpy as np
import pyarrow as pa
import pytest

from ray_app.base.config import SampleConfig
from ray_app.base.hashing import text_keys, uniform
from ray_app.base.schemas import SEARCH_LOG
from ray_app.base.storage import Storage
from ray_app.stages.sample.draw import find_factor
from ray_app.stages.sample.log_events import LogEvents, product_types
from ray_app.stages.sample.pair_sources import depth_of_bucket
from ray_app.stages.sample.sampled_catalogue import zero_shot_neighbors
from ray_app.stages.sample.stage import split_roles
from ray_app.tables.buckets import bucketed_output, write_bucket


def test_numbers_are_uniform_and_belong_to_their_content():
    keys = text_keys([str(i) for i in range(20_000)], "query")
    numbers = uniform(7, keys, keys[::-1])
    assert np.histogram(numbers, bins=10, range=(0, 1))[0].min() > 1800
    np.testing.assert_array_equal(uniform(7, keys[:5], keys[::-1][:5]), numbers[:5])


def test_numbers_of_two_sources_are_unrelated():
    """Else a pair that BM25 does not draw would be drawn by the embedding less often, too."""
    keys = text_keys([str(i) for i in range(20_000)], "query")
    assert abs(np.corrcoef(uniform(7, 1, keys), uniform(7, 2, keys))[0, 1]) < 0.03


def test_splits_decide_who_is_held_out_and_who_is_wanted():
    splits = pa.table({"query": ["Laptop", "bag", "desk"], "split": ["test", "train", "valid"]})
    labels = pa.table({"query": ["laptop", "Bag", "bag", "desk"], "locale": ["en-US", "en-US", "de-DE", "en-US"]})
    assert split_roles(splits, labels) == ({"laptop"}, {("bag", "en-US"), ("bag", "de-DE")})


def test_a_kind_of_pins_without_a_locale_is_asked_from_an_unknown_one():
    """An empty text would be a locale of its own, beside the log's `und`."""
    pins = pa.table({"title": ["Red mug", "Blue mug"], "locale": pa.array(["de-DE", None], pa.string())})
    assert product_types(pins) == {("mug", "de-DE"): 1, ("mug", "und"): 1}


def vectors(rows):
    return pa.array(rows, pa.list_(pa.float32(), 2))


def test_neighbours_are_the_nearest_pins_that_have_a_vector():
    pins = pa.table({"pin_id": ["a", "b", "c"], "text_embedding": vectors([[1, 0], None, [0, 1]])})
    queries = pa.table({"query": ["up", "none"], "embedding": vectors([[0, 1], None])})
    found, _ = zero_shot_neighbors(pins, queries)(["none", "up", "unheard"], 3)
    assert found[1].tolist()[0] == 2
    assert 1 not in found[1]
    assert found[[0, 2]].max() == -1


def log(pin_ids, action="impression"):
    num = len(pin_ids)
    columns = {"event_id": list("abc")[:num], "timestamp": [0] * num, "query": ["q"] * num, "locale": ["en"] * num}
    columns |= {"pin_id": pin_ids, "position": [1] * num, "action": [action] * num, "client_id": ["c"] * num}
    return pa.table(columns).cast(SEARCH_LOG)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (SEARCH_LOG.empty_table(), "no search log"),
        (log(["gone", "elsewhere"]), "names a pin"),
        (log(["p", "p"]), "no engagement"),
    ],
)
def test_a_log_that_could_not_be_used_as_intended_is_noted(table, words, tmp_path):
    assert words in note(table, tmp_path)


def test_a_log_with_engagement_needs_no_note(tmp_path):
    assert note(log(["p"], "click"), tmp_path) is None


def note(table, folder):
    store = Storage(str(folder))
    tables = {"search_log": table, "pin_texts": pa.table({"pin_id": ["p"]})}
    log, pins = (bucketed_output(n, n, [write_bucket(store, n, 0, some, 100)]) for n, some in tables.items())
    return LogEvents(store=store, output=log, window=None).use(pins, 0).note


@pytest.mark.parametrize("num_buckets", [1, 2, 16, 1024])
def test_a_bucket_offers_enough_of_its_best_pins(num_buckets):
    """Else a query's best pins would depend on how many buckets there are."""
    depth = depth_of_bucket(100, num_buckets)
    most = np.random.default_rng(0).binomial(100, 1 / num_buckets, 1_000_000).max()
    assert most <= depth <= 100
    assert depth < 20 or num_buckets < 100


def test_shares_must_sum_to_one():
    with pytest.raises(ValueError, match="must be 1"):
        SampleConfig(log_fraction=0.9)


@pytest.mark.parametrize("factor", [1e-14, 1e-7, 0.3, 40.0, 1e6])
def test_the_factor_of_retrieval_is_found_wherever_it_is(factor):
    """With many pins per query it is tiny, and a floor under it drew 25 times the pairs that were asked for."""
    found = find_factor(lambda factors: np.minimum(np.array(factors) / factor, 5.0) * 100, target=100.0, highest=1e6)
    assert found == pytest.approx(factor, rel=2e-2)


def test_a_budget_that_cannot_be_spent_gives_the_highest_factor():
    assert find_factor(lambda factors: np.minimum(np.array(factors), 5.0), target=100.0, highest=1e6) == 1e6
