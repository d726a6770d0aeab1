"""The experiments' tables: what they claim must follow from the scores."""

import csv
import io

import numpy as np
import pyarrow as pa
import pytest

from ray_app.analysis.experiment.ablation_table import (
    ExperimentTable,
    _over_seeds,
    ablation_table,
    by_language,
    deviation_over_seeds,
    table_text,
)
from ray_app.analysis.experiment.files import to_csv, to_markdown, to_png
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.protocol import SystemScores

FAST = EvaluationSettings(samples=60)
RNG = np.random.default_rng(0)


def judged(num_queries=40, locales=("en-US", "de-DE")):
    """Queries with six pins each, half of them good."""
    rows = [
        {"query": f"q{i}", "locale": locales[i % len(locales)], "pin_id": f"p{j}", "grade": 5 if j < 3 else 1}
        for i in range(num_queries)
        for j in range(6)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([("query", pa.string()), ("locale", pa.string()), ("pin_id", pa.string()), ("grade", pa.int8())]))  # fmt: skip


PAIRS = judged()


def system_of(grades, right):
    """Says the grade where it is right, and the opposite elsewhere."""
    probs = np.full((len(grades), 5), 0.05)
    probs[np.arange(len(grades)), np.where(right, grades, 6 - grades) - 1] = 0.8
    return SystemScores(score=probs @ np.arange(1.0, 6.0), probs=probs)


def scores(right, where=None):
    """A system that is right on that share of PAIRS; `where`: only there, else it guesses."""
    grade = PAIRS["grade"].to_numpy()
    hit = RNG.random(len(grade)) < right
    if where is not None:
        hit &= where | (RNG.random(len(grade)) < 0.5)
    return system_of(grade, hit)


def climb(variants, *compare_to, title="t", **options):
    return ablation_table("k", title, "a", PAIRS, variants, FAST, *compare_to, **options)


def test_a_ladder_that_rises_says_so():
    table = climb({"low": [scores(0.6)], "high": [scores(0.95)]})
    assert table.verdict.startswith("Shown")
    assert [row.name for row in table.rows] == ["low", "high"]
    accuracy, relative = table.rows[1].cells[-3].value, table.rows[1].cells[-1].value
    assert accuracy > 0.2
    assert relative == pytest.approx(accuracy / table.rows[0].cells[0].value)


def test_a_step_down_is_named_and_not_hidden():
    table = climb({"good": [scores(0.95)], "bad": [scores(0.6)]})
    assert "not shown: bad over good" in table.verdict
    assert table.verdict in table_text(table)


def test_languages_without_labels_are_judged_apart_from_those_with():
    german = np.array([locale == "de-DE" for locale in PAIRS["locale"].to_pylist()])
    table = by_language("k", "t", "a", PAIRS, [scores(0.95, ~german)], [scores(0.95)], ["en-US"], FAST)
    rows = {row.name: row for row in table.rows}
    assert rows["en"].marked and not rows["de"].marked
    assert rows["de"].cells[-2].lo > 0 and rows["all without labels"].cells[-2] == rows["de"].cells[-2]
    assert table.verdict.startswith("Shown")


def test_a_mean_over_seeds_is_their_mean_and_its_interval_covers_their_spread():
    """One lucky training must not pass for a better arm."""
    low, high = scores(0.5), scores(0.9)
    alone = [climb({"x": [s], "y": [s]}).rows[0].cells[0] for s in (low, high)]
    mean = climb({"base": [low], "lucky and unlucky": [low, high]}).rows[1].cells[0]
    assert mean.value == pytest.approx((alone[0].value + alone[1].value) / 2)
    assert mean.lo < alone[0].hi and mean.hi > alone[1].lo, "a training is drawn anew in each resample"
    assert deviation_over_seeds(PAIRS, [low, high]) == pytest.approx(abs(alone[0].value - alone[1].value) / 2**0.5)


def test_equal_arms_differ_by_nothing():
    same = scores(0.8)
    table = climb({"a": [same], "b": [same]}, "first")
    assert table.rows[1].cells[-3] == (0.0, 0.0, 0.0)
    assert table.verdict.startswith("No arm differs")


def test_arms_against_the_first_say_which_differ_and_which_way():
    verdict = climb({"first": [scores(0.7)], "better": [scores(0.97)], "worse": [scores(0.4)]}, "first").verdict
    assert "better (better" in verdict and "worse (worse" in verdict and "2 of 2 compared" in verdict


def test_a_table_survives_its_files():
    table = climb({"x": [scores(0.6)], "y": [scores(0.9)]}, title="Is 1 | 2?")
    table = table.with_costs(["weights", "nothing"], {"x": ["1,000", "–"], "y": ["–", "–"]})
    again = ExperimentTable.from_json(table.to_json())
    assert [row.costs for row in again.rows] == [["1,000"], ["–"]]
    assert again.rows[1].cells[0].value == pytest.approx(table.rows[1].cells[0].value, abs=1e-6)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert float(rows[1]["accuracy"]) == pytest.approx(table.rows[1].cells[0].value, abs=1e-6)
    assert rows[0]["accuracy, gain over the row above"] == ""
    assert {line.count("|") for line in to_markdown(table).splitlines()[2:6]} == {2 + len(table.columns) + 1}
    assert to_png(table).startswith(b"\x89PNG")


def test_a_query_of_unknown_language_is_no_language_that_nobody_labelled():
    here = [scores(0.9)]
    for labelled in (["en-US"], ["en-US", "und"]):
        table = by_language("k", "t", "a", judged(locales=("en-US", "und")), here, here, labelled, FAST)
        assert {row.name: row.marked for row in table.rows} == {"en": True, "und": False}


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_the_luck_of_training_is_as_wide_as_that_of_a_mean_over_so_many(make_pairs, num_seeds):
    """With every query alike only seeds differ: drawn anew without more, 2 of them showed half of their variance."""
    grades = np.tile([5, 1], 60)
    pairs = make_pairs([(f"q{i // 12}", f"p{i % 12:02d}", int(g)) for i, g in enumerate(grades)])
    right = [np.tile(np.arange(12) < 4 + 2 * (seed % 5), 10) for seed in range(num_seeds)]  # of each query's pins
    accuracies = [found.mean() for found in right]
    settings = EvaluationSettings(samples=4000, slice_columns=())
    variants = {"arm": [system_of(grades, found) for found in right]}
    drawn = _over_seeds(pairs, variants, settings).samples["arm"]["accuracy"]
    assert drawn.mean() == pytest.approx(np.mean(accuracies), abs=0.01)
    assert drawn.var() == pytest.approx(np.var(accuracies, ddof=1) / num_seeds, rel=0.1)


def test_arms_trained_once_are_said_to_have_no_variance_of_training():
    one, two = [scores(0.9)], [scores(0.9), scores(0.8)]
    assert "Every arm was trained once" in climb({"x": one, "y": one}).about
    assert "y: each trained once" in climb({"x": two, "y": one}).about
    assert climb({"bm25": one, "y": two}, untrained=["bm25"]).about == "a"
    assert "trained once" in by_language("k", "t", "a", PAIRS, one, one, ["en-US"], FAST).about
