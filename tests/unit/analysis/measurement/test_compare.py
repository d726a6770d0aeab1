"""Two rankings and two sources of labels, with a known ground truth."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ray_app.analysis.measurement.compare import DEFAULT_METRICS, DIFFERENCE, CompareSettings, compare
from ray_app.analysis.measurement.next_queries import draw_queries, next_counts, pairs_to_grade
from ray_app.analysis.measurement.paired_rankings import PairedRankings
from ray_app.analysis.measurement.ranking_metrics import Metric, PinJudgment
from ray_app.analysis.measurement.rankings import Ranking
from ray_app.analysis.measurement.render_text import comparison_json, render_comparison
from ray_app.analysis.measurement.strata import name_strata
from ray_app.base.errors import UserError

P_2 = Metric(kind="p", k=2)
SETTINGS = CompareSettings(metrics=(P_2,), mde=0.15)


def key(i):
    return (f"query {i:04d}", "en-US")


def ranking(name, pins):
    return Ranking(name=name, pins=pins)


@dataclass
class World:
    paired: PairedRankings
    teacher: dict
    human: dict
    strata: dict
    true: float  # difference of P@2 over all queries

    def compare(self, settings=SETTINGS, paired=None):
        return compare(paired or self.paired, self.teacher, self.human, self.strata, settings)


def world(seed=0, num=400, labelled=120, bias=0.3):
    """Control shows c0, c1 and treatment t0, t1. The teacher's probability of relevance favours the treatment by `bias`."""
    rng = np.random.default_rng(seed)
    queries = [key(i) for i in range(num)]
    head = rng.random(num) < 0.4
    truth = {pin: rng.random(num) < (0.6 if pin[0] == "t" else 0.5) + 0.2 * head for pin in ("c0", "c1", "t0", "t1")}
    heard = {pin: says ^ (rng.random(num) < 0.1) for pin, says in truth.items()}  # one in ten is taken the wrong way
    teacher = {
        query: {
            pin: PinJudgment(7.0, float(0.2 + 0.4 * says[i] + bias * (pin[0] == "t"))) for pin, says in heard.items()
        }
        for i, query in enumerate(queries)
    }
    chosen = rng.choice(num, labelled, replace=False)
    human = {
        queries[i]: {pin: PinJudgment(7.0 * says[i], float(says[i])) for pin, says in truth.items()}
        for i in chosen.tolist()
    }
    paired = PairedRankings.of(
        ranking("control.csv", {q: ["c0", "c1"] for q in queries}),
        ranking("treatment.csv", {q: ["t0", "t1"] for q in queries}),
        "error",
    )
    strata = {q: "en-US/head" if h else "en-US/tail" for q, h in zip(queries, head, strict=True)}
    true = float(np.mean(truth["t0"].mean() + truth["t1"].mean() - truth["c0"].mean() - truth["c1"].mean())) / 2
    return World(paired, teacher, human, strata, true)


def test_a_teacher_that_favours_the_treatment_is_corrected():
    made = world()
    line = made.compare().line(P_2, DIFFERENCE)
    assert line.teacher.interval.lo > 0.25 > made.true + 0.1
    assert line.prediction_powered.interval.lo < made.true < line.prediction_powered.interval.hi < 0.25
    assert line.prediction_powered.std_error < 0.8 * line.human_only.std_error


@pytest.mark.parametrize("labelled", [0, 50])
def test_a_file_against_itself_is_exactly_zero(labelled):
    made = world(labelled=labelled)
    found = made.compare(CompareSettings(), replace(made.paired, treatment=made.paired.control))
    num_estimates = 3 if labelled else 1
    for metric in DEFAULT_METRICS:
        line = found.line(metric, DIFFERENCE)
        estimates = [e.interval for e in (line.prediction_powered, line.human_only, line.teacher) if e]
        assert estimates == [(0.0, None, None)] * num_estimates
    assert found.power_analyses == [None, None]
    assert "no query differs" in render_comparison(found)
    with pytest.raises(UserError, match="do not differ"):
        draw_queries(found, 5, 1)


def test_the_order_of_queries_and_labels_does_not_matter():
    made = world(num=60, labelled=30)
    files = (made.paired.control, made.paired.treatment)
    turned = PairedRankings.of(*(ranking(r.name, dict(reversed(r.pins.items()))) for r in files), "error")
    labels = [{q: dict(reversed(pins.items())) for q, pins in reversed(s.items())} for s in (made.teacher, made.human)]
    backwards = World(turned, *labels, dict(reversed(made.strata.items())), made.true)
    one, other = (json.dumps(comparison_json(w.compare(CompareSettings()))) for w in (made, backwards))
    assert one == other


def test_swapping_the_files_turns_the_sign():
    made = world(num=60, labelled=30)
    swapped = replace(made.paired, control=made.paired.treatment, treatment=made.paired.control)
    one, other = (made.compare(paired=c).line(P_2, DIFFERENCE) for c in (made.paired, swapped))
    assert other.prediction_powered.interval.value == pytest.approx(-one.prediction_powered.interval.value)
    assert other.prediction_powered.interval.lo == pytest.approx(-one.prediction_powered.interval.hi)


def test_a_query_whose_top_the_teacher_has_not_judged_is_left_out_and_counted():
    made = world(num=20, labelled=10)
    made.teacher[key(0)].pop("t1")
    assert made.compare().num_unjudged == 1
    found = made.compare(replace(SETTINGS, max_unjudged=0.5))
    assert (found.num_unjudged, len(found.queries)) == (0, 20)
    assert found.lines[1].judged_teacher == pytest.approx(39 / 40)


def test_human_grades_of_one_ranking_only_do_not_count():
    """Else the other ranking would have no gain there, and lose."""
    made = world(num=40, labelled=20)
    first = min(made.human)
    for pin in ("t0", "t1"):
        made.human[first].pop(pin)
    found = made.compare()
    assert (int(found.labelled.sum()), found.num_few_grades) == (19, 1)
    assert "CAUTION: 1 queries with human labels do not count" in render_comparison(found)


def test_without_human_labels_the_teacher_stands_alone_with_a_caution_and_a_guessed_plan():
    found = world(num=40, labelled=0).compare()
    assert found.line(P_2, DIFFERENCE).prediction_powered is None
    assert found.power_analyses[0].assumed
    assert "too few human labels to correct the teacher" in render_comparison(found)


def test_no_teacher_label_at_all_is_an_error():
    with pytest.raises(UserError, match="labels for 0 of 20 queries"):
        replace(world(num=20, labelled=10), teacher={}).compare()


def test_queries_that_the_teacher_was_trained_on_are_left_out_with_their_near_duplicates():
    pins = {("laptops", "en-US"): ["a"], ("shoe", "en-US"): ["a"]}
    paired = PairedRankings.of(ranking("c", pins), ranking("t", pins), "error", {"laptop"})
    assert (paired.queries, paired.num_trained) == ([("shoe", "en-US")], 1)
    with pytest.raises(UserError, match="trained on all"):
        PairedRankings.of(ranking("c", pins), ranking("t", pins), "error", {"laptop", "shoe"})


def test_a_query_in_one_file_only_is_the_users_to_decide():
    full, part = ranking("c", {key(0): ["a"], key(1): ["a"]}), ranking("t", {key(0): ["a"]})
    with pytest.raises(UserError, match=r"1 queries are in one file only, such as 'query 0001' \(en-US\) in c"):
        PairedRankings.of(full, part, "error")
    assert PairedRankings.of(full, part, "drop").queries == [key(0)]
    zero = PairedRankings.of(full, part, "zero")
    assert (zero.queries, zero.num_unpaired) == ([key(0), key(1)], 1)
    with pytest.raises(UserError, match="share no query"):
        PairedRankings.of(ranking("c", {key(0): ["a"]}), ranking("t", {key(1): ["a"]}), "drop")


@pytest.mark.parametrize("wrong", [{"max_unjudged": 1.0}, {"max_unjudged": -0.1}, {"mde": 0.0}])
def test_settings_that_make_no_sense_name_the_argument(wrong):
    with pytest.raises(UserError, match="--"):
        CompareSettings(**wrong)


def test_next_queries_are_new_and_a_second_round_goes_on_where_the_first_ended():
    made = world()
    found = made.compare()
    drawn = draw_queries(found, 50, seed=3)
    chosen = {(row["query"], row["locale"]) for row in drawn}
    assert len(chosen) == 50
    assert not chosen & made.human.keys()
    counts = dict(
        zip(found.power_analyses[0].strata, next_counts(found.power_analyses[0], found.labelled, 50), strict=True)
    )
    assert {name: [row["stratum"] for row in drawn].count(name) for name in counts} == counts
    assert draw_queries(found, 20, seed=4) != draw_queries(found, 20, seed=3)
    assert len(draw_queries(found, 999, seed=3)) == 400 - 120  # all that are left
    fewer = {row["query"] for row in draw_queries(found, 20, seed=3)}
    assert fewer < {row["query"] for row in drawn}


def test_the_next_queries_make_all_labels_spread_as_neyman_says():
    analysis = world(num=400, labelled=120).compare().power_analyses[0]
    labelled = np.isin(np.arange(400), np.flatnonzero(analysis.stratum == 0)[:60])  # the second stratum has none
    counts = next_counts(analysis, labelled, 60)
    assert counts.sum() == 60
    assert counts[1] > counts[0]
    assert next_counts(analysis, labelled, 1) is None  # not two in each stratum: a plain draw


def test_pairs_to_grade_are_those_of_both_rankings_that_no_human_graded_and_in_no_order_of_theirs():
    chosen = [{"query": key(i)[0], "locale": "en-US"} for i in range(40)]
    found = world(num=40, labelled=20).compare()
    table = pairs_to_grade(found, chosen, {key(1): {"t0": PinJudgment(0, 0)}}, seed=1)
    of = {q: [r["pin_id"] for r in table if r["query"] == q] for q, _ in map(key, range(40))}
    assert sorted(of[key(0)[0]]) == ["c0", "c1", "t0", "t1"]
    assert sorted(of[key(1)[0]]) == ["c0", "c1", "t1"]
    assert len({tuple(pins) for pins in of.values()}) > 10


def test_small_strata_are_taken_together_by_their_size_alone():
    bands = {(f"a{i}", "en-US"): "head" for i in range(60)} | {(f"b{i}", "de-DE"): "tail" for i in range(33)}
    bands |= {(f"c{i}", f"fr-{i}"): "tail" for i in range(6)} | {("d", "it-IT"): "torso"}
    names = name_strata(bands)
    assert names["a0", "en-US"] == "en-US/head"
    assert names["b0", "de-DE"] == "de-DE/tail"
    # Six of a hundred tails of other locales are enough for a stratum; the lone torso joins the smallest.
    assert names["c0", "fr-0"] == names["d", "it-IT"] == "other locales/tail + others"


def test_the_text_says_who_is_better_what_it_rests_on_and_the_json_says_the_same():
    found = world().compare()
    text, line = render_comparison(found, ["a note"]), json.loads(json.dumps(comparison_json(found, ["a note"])))
    assert "400 queries judged by the teacher, 120 of them by humans too" in text
    assert "P@2: treatment is better, by +" in text
    assert "CAUTION: a note" in text
    assert "humans labelled a random sample of each stratum" in text
    value = line["metrics"][2]["prediction_powered"]["value"]
    assert f"{value:+.4f}" in text
    assert (
        line["power_analyses"][0]["with_teacher"]["num_labelled"] == found.power_analyses[0].with_teacher.num_labelled
    )
