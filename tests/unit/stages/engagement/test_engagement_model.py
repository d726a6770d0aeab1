"""The two-tower model learns from the log, and from nothing that the evaluation asks."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_app.base.config import EngagementConfig, EnrichConfig
from ray_app.features.engagement_rates import RATE_NAMES, engagement_rates
from ray_app.stages.engagement.events import allowed_events, engaged_pairs, once_per_client
from ray_app.stages.engagement.two_tower import train
from ray_app.training.contrastive import (
    false_negative_mask,
    log_frequency,
    recall,
    sampled_softmax_loss,
    svd_components,
)

PINS = [f"p{i}" for i in range(12)]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def log(*events):
    """Events (query, pin_id, action), each of a client of its own."""
    names, ids = ("query", "pin_id", "action", "event_id", "client_id"), [f"c{i}" for i in range(len(events))]
    return pa.table(dict(zip(names, map(pa.array, [*zip(*events, strict=True), ids, ids]), strict=True)))


def learn(table, excluded=(), seed=3, **cfg):
    """(rates, pairs, model) of a log; queries are one-hot by their number, pins by theirs."""
    cfg = EngagementConfig(**{"dim": 8, "hidden_dim": 16, **cfg})
    events = allowed_events(table, set(excluded), PINS, EnrichConfig())
    pairs = engaged_pairs(events, PINS, EnrichConfig(), cfg, seed)
    queries = np.eye(12, dtype=np.float32)[[int(q.split()[-1]) % 12 for q in pairs.queries]].reshape(-1, 12)
    pins = np.eye(12, dtype=np.float32)[[int(p[1:]) for p in pairs.pin_ids]].reshape(-1, 12)
    return engagement_rates(once_per_client(events), len(PINS), 20.0), pairs, train(pairs, queries, pins, cfg, seed)


EVENTS = [(f"shoe {i % 12}", f"p{(i * 5) % 12}", ("click", "save", "impression")[i % 3]) for i in range(60)]


def test_events_of_labelled_queries_and_their_plurals_change_nothing():
    """Else rates and vectors carry the answers that the evaluation asks for."""
    leak = [(text, f"p{i}", action) for i in range(6) for text in ("Red Hat 7", "red hats 7") for action in ("click", "hide", "impression")]  # fmt: skip
    rates, pairs, model = learn(log(*EVENTS), ["red hat 7"], epochs=2)
    other_rates, other_pairs, other = learn(log(*leak, *EVENTS), ["red hat 7"], epochs=2)
    assert np.array_equal(rates[0], other_rates[0])
    assert pairs.queries == other_pairs.queries
    assert np.array_equal(model.pin_vectors, other.pin_vectors)


def test_without_the_rule_they_would():
    """The test above would otherwise pass for a model that learns nothing."""
    leak = [("red hat 7", f"p{i}", "click") for i in range(6)]
    assert not np.array_equal(learn(log(*EVENTS))[0][0], learn(log(*leak, *EVENTS))[0][0])


def test_a_run_is_the_same_twice_and_in_any_order_of_rows():
    first, second = learn(log(*EVENTS), epochs=3)[2], learn(log(*reversed(EVENTS)), epochs=3)[2]
    assert np.array_equal(first.pin_vectors, second.pin_vectors)
    assert all(np.array_equal(first.tower.weights[name], second.tower.weights[name]) for name in first.tower.weights)


def test_another_seed_is_another_model():
    first, second = (learn(log(*EVENTS), epochs=3, seed=seed)[2] for seed in (1, 2))
    assert not np.array_equal(first.tower.weights["hidden.weight"], second.tower.weights["hidden.weight"])


def test_training_leaves_torch_as_it_was():
    before = torch.random.get_rng_state()
    learn(log(*EVENTS), epochs=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_loss_is_the_one_computed_by_hand():
    """Logits are cosine / temperature - log probability; weights 1 and 3."""
    cosines, log_prob = np.array([[0.5, 0.1], [0.2, 0.4]]), np.log([0.75, 0.25])
    logits = cosines / 0.5 - log_prob
    each = -np.diag(logits) + np.log(np.exp(logits).sum(1))
    loss = sampled_softmax_loss(
        torch.tensor(cosines), torch.tensor(log_prob), torch.eye(2, dtype=torch.bool),
        torch.tensor([1.0, 3.0], dtype=torch.float64), 0.5,
    )  # fmt: skip
    assert float(loss) == pytest.approx((each[0] + 3 * each[1]) / 4)


def test_a_known_hit_is_no_negative():
    """With all others masked nothing is left to lose."""
    hits = torch.ones(2, 2, dtype=torch.bool)
    assert float(sampled_softmax_loss(torch.rand(2, 2), torch.zeros(2), hits, torch.ones(2), 0.1)) == 0.0


def test_known_hits_are_the_same_pin_and_other_engaged_pins():
    # Pairs (query 0, pin 2), (query 1, pin 2), (query 1, pin 0); query 0 is known to engage with pin 0 as well.
    codes = np.array([0 * 3 + 0, 0 * 3 + 2, 1 * 3 + 0, 1 * 3 + 2])
    hits = false_negative_mask(np.array([0, 1, 2]), np.array([2, 2, 1]), codes, 3)
    assert hits.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_log_frequency_is_the_share_of_pairs():
    assert np.exp(log_frequency(np.array([0, 0, 0, 1]), 2)) == pytest.approx([0.75, 0.25])


def test_untrained_towers_keep_the_order_of_zero_shot_cosines():
    vectors = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    kept = vectors @ svd_components(vectors, 8).T
    assert kept @ kept.T == pytest.approx(vectors @ vectors.T, abs=1e-4)


def test_what_people_choose_beats_what_the_text_says():
    """Queries about n lead to pins about n + 1; queries not trained on, of the same topics, must follow."""
    topic = [(f"words {'abcdefghij'[j]} {n}", f"p{(n + 1) % 12}", "click") for n in range(12) for j in range(10)]
    info = learn(log(*topic), epochs=60, batch_size=32, holdout_fraction=0.3)[2].info
    assert info["measured_queries"] > 10
    assert info["recall_at_10_zero_shot"] < info["recall_at_10"]


def test_recall_by_hand():
    pins = np.eye(3, dtype=np.float32)
    queries = np.array([[0.9, 0.5, 0.1], [0.1, 0.5, 0.9]], np.float32)
    query, pin, none = np.array([0, 0, 1]), np.array([0, 2, 1]), np.zeros(0, np.int64)
    assert recall(queries, pins, query, pin, none, k=1) == pytest.approx(0.25)
    assert recall(queries, pins, query, pin, np.array([1 * 3 + 2]), k=1) == pytest.approx(0.75)  # its best was shown
    assert recall(queries, pins, none, none, none) is None


def test_a_log_without_engagement_gives_no_pair_and_a_tower_that_works():
    _, pairs, model = learn(log(("shoe 1", "p1", "impression")), dim=12)
    assert (len(pairs.query), model.pin_vectors.shape, model.info["recall_at_10"]) == (0, (0, 12), None)
    assert np.linalg.norm(model.tower.encode(np.eye(12, dtype=np.float32)), axis=1) == pytest.approx(1.0)


def test_rates_by_hand():
    """p0 shown twice and clicked once, p1 shown twice: all 4 impressions have a click rate of 1/4."""
    events = [("a", "p0", "impression"), ("a", "p0", "impression"), ("a", "p0", "click")]
    table = log(*events, ("b", "p1", "impression"), ("b", "p1", "impression"), ("b", "unknown", "click"))
    rates, shown = engagement_rates(allowed_events(table, [], PINS, EnrichConfig()), 3, 2.0)
    assert len(RATE_NAMES) == rates.shape[1]
    assert rates[0] == pytest.approx([np.log(3), (1 + 2 / 4) / 4, 0, 0, 0])
    assert rates[1] == pytest.approx([np.log(3), (2 / 4) / 4, 0, 0, 0])
    assert shown.tolist() == [True, True, False]


def test_a_log_without_impressions_has_rates_up_to_one():
    rates, shown = engagement_rates(allowed_events(log(*[("a", "p0", "click")] * 5), [], PINS, EnrichConfig()), 1, 1.0)
    assert (rates[0, 1], shown[0]) == (pytest.approx(1.0), True)


def test_rare_pairs_are_left_out():
    table = log(("a", "p0", "click"), ("a", "p0", "save"), ("a", "p1", "click"), ("a", "p1", "hide"))
    pairs = engaged_pairs(
        allowed_events(table, [], PINS, EnrichConfig()), PINS, EnrichConfig(), EngagementConfig(min_clients=2), 0
    )
    assert (pairs.pin_ids, pairs.weight.tolist()) == (["p0"], pytest.approx([np.log1p(4.0)]))


def test_near_duplicates_are_held_out_together():
    table = log(*[(f"{text} {i}", "p0", "click") for i in range(40) for text in ("red hat", "red hats")])
    pairs = engaged_pairs(
        allowed_events(table, [], PINS, EnrichConfig()), PINS, EnrichConfig(), EngagementConfig(holdout_fraction=0.5), 0
    )
    held_out = dict(zip([pairs.queries[q] for q in pairs.query], pairs.held_out, strict=True))
    assert all(held_out[f"red hat {i}"] == held_out[f"red hats {i}"] for i in range(40))
    assert 0 < sum(held_out.values()) < 80
