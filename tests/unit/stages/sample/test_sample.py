import hashlib
import itertools
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from sampling import OneBucket, sample_pairs

from ray_app.base.config import SampleConfig
from ray_app.base.schemas import PAIRS, SEARCH_LOG
from ray_app.base.text import normalize_query
from ray_app.features.bm25 import Bm25Index
from ray_app.stages.sample.pair_sources import find_candidates, rank_candidates
from ray_app.stages.sample.pilot import Deviations, stratum_deviations
from ray_app.stages.sample.population import SELECTED

pytestmark = pytest.mark.slow

NOW = datetime(2024, 1, 1, tzinfo=UTC)
COLOURS, THINGS = ["red", "blue", "green", "black", "white"], ["laptop", "bag", "desk", "lamp", "phone", "chair"]
TEXTS = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
PIN_IDS = [f"p{i:02d}" for i in range(len(TEXTS))]
INDEX = Bm25Index.build(TEXTS)
# Every query shows five pins; each second search gets a click on the first.
ALLOCATIONS = ("sqrt", "proportional", "neyman")
UNEQUAL = Deviations(overall=1.0, by_stratum={"en-US/head/top": 4.0, "en-US/torso/middle": 0.3}, num_labels=99)
EVENTS = [(thing, f"p{(7 * q + 3 * i) % 30:02d}", i + 1) for q, thing in enumerate(THINGS) for i in range(5)]


def make_log(events, locale="en-US"):
    """Events of (query, pin_id, position) or (query, pin_id, position, action)."""
    rows = [(*event, "impression")[:4] for event in events]
    return pa.table(
        {
            "event_id": [str(i) for i in range(len(rows))],
            "timestamp": [NOW] * len(rows),
            "query": [row[0] for row in rows],
            "locale": [locale] * len(rows),
            "pin_id": [row[1] for row in rows],
            "position": [row[2] for row in rows],
            "action": [row[3] for row in rows],
            "client_id": [None] * len(rows),
        },
        schema=SEARCH_LOG,
    )


LOG = make_log([*EVENTS, ("laptop", "p00", 1, "click"), ("desk", "p02", 2, "click")])


def neighbors(queries, k):
    """Pins in a circle, starting somewhere that the query decides."""
    rows = (np.array([[len(query) * 5] for query in queries]) + np.arange(k)) % len(PIN_IDS)
    return rows, np.zeros(rows.shape)


def sample(log=LOG, num_pairs=60, seed=1, neighbors=neighbors, pin_ids=PIN_IDS, index=INDEX, **more):
    names = ("excluded_queries", "extra_queries", "trending", "deviations")
    arguments = {name: more.pop(name) for name in names if name in more}
    return sample_pairs(log, pin_ids, index, neighbors, SampleConfig(num_pairs=num_pairs, **more), seed, **arguments)


def rows(pairs):
    return [tuple(row.values()) for row in pairs.to_pylist()]


def keys(pairs):
    return {(row["query"], row["locale"], row["pin_id"]) for row in pairs.to_pylist()}


def truth(query, pin_id):
    """A quantity of each pair, to be summed over all pairs of the log's queries with the catalogue."""
    return (len(query) * 7 + int(pin_id[1:]) * 3) % 11


@pytest.fixture(scope="module")
def draws():
    """Samples of the same log by many seeds: each allocation, of all queries, and of only some of them."""

    def draw(allocation, limit, seed):
        more = {"deviations": UNEQUAL} if allocation == "neyman" else {}
        return rows(sample(seed=seed, max_queries=limit, depth=10, allocation=allocation, **more)[0])

    return {
        (allocation, limit): [draw(allocation, limit, seed) for seed in range(150)]
        for allocation in ALLOCATIONS
        for limit in (100, 4)
    }


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("max_queries", [100, 4])
def test_weighted_totals_are_unbiased(draws, allocation, max_queries):
    """Else a rate estimated on the sample is a rate of the sampler, not of the users."""
    total = sum(truth(query, pin_id) for query in THINGS for pin_id in PIN_IDS)
    estimates = [sum(truth(row[0], row[2]) / row[4] for row in draw) for draw in draws[allocation, max_queries]]
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert error < 0.05 * total
    assert abs(np.mean(estimates) - total) < 3 * error


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_weighted_totals_of_what_users_saw_are_unbiased(draws, allocation):
    """The log's pairs are those whose rates an allocation decides."""
    shown = {(query, pin_id) for query, pin_id, _ in EVENTS}
    total = sum(truth(*pair) for pair in shown)
    estimates = [
        sum(truth(row[0], row[2]) / row[4] for row in draw if (row[0], row[2]) in shown)
        for draw in draws[allocation, 100]
    ]
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert error < 0.05 * total
    assert abs(np.mean(estimates) - total) < 3 * error


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_every_allocation_gives_probabilities_above_zero_and_at_most_one(draws, allocation):
    prob = [row[4] for limit in (100, 4) for draw in draws[allocation, limit] for row in draw]
    assert min(prob) > 0 and max(prob) <= 1


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_each_pair_is_drawn_as_often_as_its_probability_says(draws, allocation):
    """Also those that several sources reach."""
    drawn, prob, num_draws = {}, {}, len(draws[allocation, 100])
    for query, _, pin_id, _, inclusion_prob, _ in itertools.chain(*draws[allocation, 100]):
        drawn[query, pin_id] = drawn.get((query, pin_id), 0) + 1
        prob[query, pin_id] = inclusion_prob
    likely = [pair for pair in drawn if 0.1 < prob[pair] < 0.9]
    deviation = [np.sqrt(num_draws * prob[pair] * (1 - prob[pair])) for pair in likely]
    z = [(drawn[pair] - num_draws * prob[pair]) / d for pair, d in zip(likely, deviation, strict=True)]
    assert len(z) > 50
    assert np.abs(z).max() < 4.5
    assert 0.8 < np.std(z) < 1.25


def test_num_pairs_is_a_cap_that_is_nearly_met():
    log = make_log([(f"{c} {t}", f"p{i:02d}", 1) for c in COLOURS for t in THINGS for i in range(3)])
    pairs, _ = sample(log=log, num_pairs=400, depth=30)
    assert 0.8 * 400 < pairs.num_rows <= 400


def test_a_small_world_is_taken_whole_from_the_log():
    pairs, _ = sample(num_pairs=100_000)
    shown = {(query, "en-US", pin_id) for query, pin_id, _ in EVENTS}
    assert shown <= keys(pairs)


def test_pairs_are_distinct_after_normalising_the_query():
    log = make_log([("Laptop", "p00", 1), (" laptop ", "p00", 2), ("LAPTOP", "p00", 3)])
    pairs, _ = sample(log=log, num_pairs=10_000)
    assert len(keys(pairs)) == pairs.num_rows
    assert set(pairs["query"].to_pylist()) == {"laptop"}


def test_the_same_query_in_two_locales_is_two_queries():
    pairs, _ = sample(log=pa.concat_tables([make_log(EVENTS), make_log(EVENTS, locale="de-DE")]), num_pairs=10_000)
    assert len({key for key in keys(pairs) if key[0] == "laptop" and key[2] == "p00"}) == 2


def test_the_order_of_the_log_changes_nothing():
    shuffled = LOG.take(np.random.default_rng(0).permutation(LOG.num_rows))
    assert rows(sample(log=shuffled)[0]) == rows(sample()[0])


def test_one_more_event_hardly_changes_the_sample():
    """Else every new day of the log would have nearly all pairs labelled anew."""
    more = pa.concat_tables([LOG, make_log([("desk", "p29", 9)])])
    before, after = keys(sample(num_pairs=100)[0]), keys(sample(log=more, num_pairs=100)[0])
    assert len(before & after) >= 0.9 * len(before)


def test_another_seed_draws_another_sample():
    assert keys(sample(seed=1)[0]) != keys(sample(seed=2)[0])


def test_engaged_pairs_are_never_hard_negatives():
    found = set()
    for seed in range(30):
        pairs, _ = sample(seed=seed, num_pairs=40, neighbors=None)
        found |= {(r["query"], r["pin_id"]) for r in pairs.to_pylist() if r["source"] == "bm25"}
    assert ("laptop", "p06") in found and not found & {("laptop", "p00"), ("desk", "p02")}


def test_a_pair_of_several_sources_is_named_after_the_log():
    pairs, _ = sample(num_pairs=100_000)
    source = {(r["query"], r["pin_id"]): r["source"] for r in pairs.to_pylist()}
    assert {source[query, pin_id] for query, pin_id, _ in EVENTS} == {"log"}


def test_strata_say_how_users_met_the_pair():
    pairs, _ = sample(num_pairs=100_000)
    stratum = {(r["query"], r["pin_id"]): r["stratum"].split("/") for r in pairs.to_pylist()}
    assert stratum["laptop", "p00"] == ["en-US", "head", "engaged"]
    assert stratum["bag", "p19"][2] == "middle"  # shown at position 5


def test_strata_count_the_population():
    _, strata = sample()
    assert sum(s["num_pairs"] for s in strata) == len(THINGS) * len(PIN_IDS)


def test_held_out_queries_and_their_near_duplicates_are_never_sampled():
    pairs, _ = sample(num_pairs=10_000, excluded_queries={"Laptops"}, extra_queries={("laptop", "en-US"): 10.0})
    assert set(pairs["query"].to_pylist()) == set(THINGS) - {"laptop"}


def test_labelled_queries_are_sampled_though_the_log_lacks_them():
    pairs, _ = sample(log=SEARCH_LOG.empty_table(), extra_queries={("Red Chair", "en-US"): 10.0}, num_pairs=20)
    assert set(pairs["query"].to_pylist()) == {"red chair"}
    assert set(pairs["source"].to_pylist()) <= {"bm25", "embedding", "random"}


def test_labelled_queries_survive_when_queries_are_many():
    assert "red chair" in sample(max_queries=2, extra_queries={("red chair", "en-US"): 10.0})[0]["query"].to_pylist()


def test_a_query_of_unknown_words_gets_fewer_retrieved_pairs():
    """Bots and tests must not eat the budget."""
    log = make_log([("synergize holistic portals", None, None), ("red lamp", None, None)])
    counts = {"red lamp": 0, "synergize holistic portals": 0}
    for seed in range(40):
        for query in sample(log=log, num_pairs=40, seed=seed)[0]["query"].to_pylist():
            counts[query] += 1
    assert counts["red lamp"] > 3 * counts["synergize holistic portals"] > 0


@pytest.mark.parametrize(
    "log", [SEARCH_LOG.empty_table(), make_log([("", "p00", 1), (" ", "p01", 1), ("?!", "p02", 1)])]
)
def test_a_log_without_words_gives_an_empty_sample(log):
    pairs, strata = sample(log=log)
    assert (pairs.num_rows, pairs.schema, strata) == (0, PAIRS, [])


def test_an_empty_catalogue_gives_an_empty_sample():
    assert sample(pin_ids=[], index=Bm25Index.build([]))[0].num_rows == 0


def test_a_catalogue_of_one_pin_gives_that_pin():
    def only(queries, k):
        return np.zeros((len(queries), k), int), np.ones((len(queries), k))

    pairs, _ = sample(pin_ids=["p00"], index=Bm25Index.build(["red laptop"]), num_pairs=1000, neighbors=only)
    assert set(pairs["pin_id"].to_pylist()) == {"p00"}


def test_pins_that_the_catalogue_lacks_are_not_sampled():
    assert (
        "gone"
        not in sample(log=make_log([*EVENTS, ("desk", "gone", 1, "click")]), num_pairs=10_000)[0]["pin_id"].to_pylist()
    )


def test_every_probability_is_above_zero_and_at_most_one():
    prob = sample(num_pairs=100)[0]["inclusion_prob"].to_numpy()
    assert prob.min() > 0 and prob.max() <= 1


def test_queries_come_out_normalised():
    pairs, _ = sample(log=make_log([("  RED  Laptop", "p00", 1)]), num_pairs=1000)
    assert {normalize_query(query) == query for query in pairs["query"].to_pylist()} == {True}


def fingerprint(pairs):
    text = "".join(f"{r['query']}|{r['pin_id']}|{r['inclusion_prob']:.9f};" for r in pairs.to_pylist())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_default_sample_is_what_it_was():
    """A sample that changes without a reason costs all of its labels again."""
    assert fingerprint(sample()[0]) == "f42a40731f9c"


def test_neyman_without_deviations_is_proportional():
    assert rows(sample(allocation="neyman")[0]) == rows(sample(allocation="proportional")[0])


def test_neyman_draws_more_where_grades_differ_more():
    only_log = {"log_fraction": 1.0, "bm25_fraction": 0.0, "embedding_fraction": 0.0, "random_fraction": 0.0}
    spread = Deviations(overall=1.0, by_stratum={"en-US/head/top": 4.0}, num_labels=99)
    pairs, _ = sample(allocation="neyman", deviations=spread, num_pairs=20, **only_log)
    prob = {row["stratum"]: row["inclusion_prob"] for row in pairs.to_pylist()}
    assert prob["en-US/head/top"] == pytest.approx(4 * prob["en-US/torso/top"])


def test_neyman_beats_proportional_where_strata_differ_in_spread():
    """Sum over strata of size x mean of the drawn pairs; the deviations are those that a census would tell."""
    events = [(f"w{q} thing", f"p{p:02d}", 1, "click" if p % 2 else "impression") for q in range(40) for p in range(30)]
    log, rng = make_log(events), np.random.default_rng(0)
    grade = {(q, p): 3 + rng.normal() * (1.5 if action == "click" else 0.1) for q, p, _, action in events}
    only_log = {"log_fraction": 1.0, "bm25_fraction": 0.0, "embedding_fraction": 0.0, "random_fraction": 0.0}
    census = sample(log=log, num_pairs=10_000, **only_log)[0].to_pylist()
    spread = stratum_deviations(
        [row["stratum"] for row in census],
        np.array([grade[row["query"], row["pin_id"]] for row in census]),
        np.array([1 / row["inclusion_prob"] for row in census]),
    )

    def variance(allocation, **more):
        estimates = []
        for seed in range(60):
            pairs, strata = sample(log=log, num_pairs=400, seed=seed, allocation=allocation, **more, **only_log)
            drawn = {}
            for row in pairs.to_pylist():
                drawn.setdefault(row["stratum"], []).append(grade[row["query"], row["pin_id"]])
            sizes = {s["stratum"]: s["num_pairs"] for s in strata}
            estimates.append(sum(sizes[name] * np.mean(grades) for name, grades in drawn.items()))
        return np.var(estimates)

    assert variance("neyman", deviations=spread) < 0.75 * variance("proportional")


def test_trending_queries_are_a_band_of_their_own():
    pairs, strata = sample(num_pairs=100_000, trending={("laptop", "en-US")})
    bands = {row["query"]: row["stratum"].split("/")[1] for row in pairs.to_pylist()}
    assert [query for query, band in bands.items() if band == "trending"] == ["laptop"]
    assert sum(s["num_pairs"] for s in strata if "/trending/" in s["stratum"]) == len(PIN_IDS)


def test_trending_queries_get_more_retrieved_pairs():
    """`trending_boost` times their weight beside the other queries; 1 changes nothing."""
    ratio = {}
    for boost in (1, 3):
        cfg = SampleConfig(since=datetime(2023, 1, 1), trending_boost=boost)
        rows = [(query, "en-US", "trending" if query == "desk" else "tail", 1, 0.0, 1.0) for query in ("desk", "lamp")]
        selected = pa.Table.from_pylist([dict(zip(SELECTED.names, row, strict=True)) for row in rows], schema=SELECTED)
        found = find_candidates(OneBucket(LOG, PIN_IDS, INDEX, None).bucket(0, selected), LOG, selected, 10)
        weight = rank_candidates(found, np.arange(2), selected, 10, cfg).queries["weight"].to_pylist()
        ratio[boost] = weight[0] / weight[1]
    assert ratio[3] == pytest.approx(3 * ratio[1])


def test_a_trending_query_is_drawn_more_with_a_boost():
    few = {"num_pairs": 40, "trending": {("desk", "en-US")}, "since": datetime(2023, 1, 1)}

    def num_pairs(boost):
        draws = (sample(seed=seed, trending_boost=boost, **few)[0] for seed in range(40))
        return sum(draw["query"].to_pylist().count("desk") for draw in draws)

    assert num_pairs(5) > 1.5 * num_pairs(1)


def test_strata_know_their_effective_size():
    pairs, strata = sample()
    for stratum in strata:
        prob = [r["inclusion_prob"] for r in pairs.to_pylist() if r["stratum"] == stratum["stratum"]]
        weight = 1 / np.array(prob)
        expected = weight.sum() ** 2 / (weight**2).sum() if prob else 0.0
        assert stratum["effective_size"] == pytest.approx(expected, abs=0.06)


def test_a_stratum_without_a_drawn_pair_has_no_design_effect():
    _, strata = sample(num_pairs=5)
    empty = [s for s in strata if not s["num_sampled"]]
    assert {(s["effective_size"], s["design_effect"]) for s in empty} == {(0.0, None)}
