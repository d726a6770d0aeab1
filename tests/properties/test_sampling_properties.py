"""Sampling: a wrong probability biases every estimate, and nobody sees it."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import sample_pairs

from ray_app.base.config import SampleConfig
from ray_app.base.hashing import text_keys, uniform
from ray_app.base.schemas import PAIRS, SEARCH_LOG
from ray_app.features.bm25 import Bm25Index
from ray_app.stages.sample.allocation import allocate, solve_factor

ALLOCATIONS = st.sampled_from(["sqrt", "proportional", "neyman"])
STRATA = st.lists(st.tuples(st.integers(0, 5000), st.floats(0.01, 10)), min_size=1, max_size=12)

TEXTS = [f"{colour} {thing}" for colour in ("red", "blue", "black") for thing in ("mug", "cup", "shoe", "lamp")]
PIN_IDS = [f"p{i:02d}" for i in range(len(TEXTS))]
INDEX = Bm25Index.build(TEXTS)
QUERIES = st.sampled_from(["mug", "red cup", "Shoe", "blue", "lamp lamp", "nothing"])
EVENTS = st.lists(
    st.tuples(QUERIES, st.sampled_from(["en-US", "de-DE"]), st.sampled_from([*PIN_IDS, None]), st.integers(1, 9),
              st.sampled_from(["impression", "click", "save"])),
    min_size=1, max_size=40,
)  # fmt: skip
few = settings(settings.default, max_examples=max(10, settings.default.max_examples // 2))


def log_of(events):
    rows = [
        {"event_id": str(i), "timestamp": datetime(2024, 1, 1, tzinfo=UTC), "query": query, "locale": locale, "pin_id": pin,
         "position": position, "action": action if pin else "impression"}
        for i, (query, locale, pin, position, action) in enumerate(events)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SEARCH_LOG)


def sample(events, num_pairs=20, seed=1, pin_ids=PIN_IDS, index=INDEX, neighbors=None, **cfg):
    return sample_pairs(log_of(events), pin_ids, index, neighbors, SampleConfig(num_pairs=num_pairs, **cfg), seed)


def pairs_of(table):
    return {(row["query"], row["locale"], row["pin_id"]): row["inclusion_prob"] for row in table.to_pylist()}


@given(ALLOCATIONS, STRATA, st.floats(0, 20_000))
def test_rates_are_probabilities_and_spend_the_budget(allocation, strata, target):
    sizes, deviations = (np.array(column) for column in zip(*strata, strict=True))
    rates = allocate(allocation, sizes, target, deviations)
    assert rates.shape == sizes.shape and rates.min() >= 0 and rates.max() <= 1
    wanted = min(target, float(sizes.sum()))
    assert abs(rates @ sizes - wanted) <= 1e-6 * max(1.0, wanted)


@given(ALLOCATIONS, STRATA, st.floats(0, 5000), st.floats(0, 5000))
def test_more_budget_lowers_no_rate(allocation, strata, one, other):
    sizes, deviations = (np.array(column) for column in zip(*strata, strict=True))
    low, high = (allocate(allocation, sizes, target, deviations) for target in sorted((one, other)))
    assert (high >= low - 1e-9).all()


@given(st.floats(0.1, 100), st.floats(0, 1e4))
def test_the_factor_is_where_the_total_is_met(slope, target):
    factor = solve_factor(lambda f: slope * f, target, highest=50.0)
    assert 0 <= factor <= 50
    assert abs(slope * factor - min(target, 50 * slope)) < 1e-6 * max(1, target)


@given(st.lists(st.text(max_size=8), max_size=30), st.integers(0, 2**64 - 1))
def test_numbers_belong_to_texts_and_are_below_one(texts, seed):
    numbers = uniform(seed, text_keys(texts, "salt"))
    assert len(numbers) == max(len(texts), 0) and ((numbers >= 0) & (numbers < 1)).all()
    alone = [uniform(seed, text_keys([text], "salt"))[0] for text in texts]
    assert numbers.tolist() == alone


@few
@given(EVENTS, st.integers(1, 200), st.integers(-(2**70), 2**70), ALLOCATIONS)
def test_pairs_are_of_the_log_and_the_catalogue_once_with_a_probability(events, num_pairs, seed, allocation):
    table, strata = sample(events, num_pairs, seed, allocation=allocation)
    assert table.schema.equals(PAIRS)
    found = pairs_of(table)
    assert len(found) == table.num_rows
    assert all(0 < prob <= 1 for prob in found.values())
    locales = {locale for _, locale, *_ in events}
    assert all(locale in locales and pin in PIN_IDS for _, locale, pin in found)
    assert sum(row["num_sampled"] for row in strata) == table.num_rows
    assert all(row["num_sampled"] <= row["num_pairs"] for row in strata)


@few
@given(EVENTS, st.randoms(use_true_random=False), st.integers(0, 99))
def test_the_order_of_the_log_decides_nothing(events, random, seed):
    shuffled = list(events)
    random.shuffle(shuffled)
    assert sample(events, seed=seed)[0].equals(sample(shuffled, seed=seed)[0])


@few
@given(EVENTS, st.integers(0, 99))
def test_everything_is_drawn_where_everything_may_be(events, seed):
    """With a budget so far above all pairs that random pins of a query which the catalogue does not know get their share."""
    found = pairs_of(sample(events, num_pairs=10**9, seed=seed)[0])
    assert all(prob == pytest.approx(1, abs=1e-12) for prob in found.values())
    queries = {(query, locale) for query, locale, _ in found}
    assert len(found) == len(queries) * len(PIN_IDS)
