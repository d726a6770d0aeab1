"""A list of worst slices sends people to work: it must name the bad slice, and not call bad luck one."""

import numpy as np
import pytest

from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.evaluation import evaluate_systems
from ray_app.analysis.metrics.protocol import validate_judgments
from ray_app.analysis.metrics.worst import worst_slices

SETTINGS = EvaluationSettings(samples=200)
QUERIES, PINS = 60, 12


@pytest.fixture
def world(make_pairs, make_system, make_probs):
    """60 queries of 12 pins in three groups; the student is right, but in group `bad`, where it guesses."""

    def build(bad_group="bad"):
        rng = np.random.default_rng(5)
        rows = [(f"q{q:02d}", f"p{p:02d}", int(rng.choice([1, 5]))) for q in range(QUERIES) for p in range(PINS)]
        group = [("bad", "fine", "good")[q % 3] for q in range(QUERIES) for _ in range(PINS)]
        truth = np.array([row[2] for row in rows])
        guessed = np.where(np.array(group) == bad_group, rng.choice([1, 5], len(rows)), truth)
        noise = np.where(rng.random(len(rows)) < 0.1, 6 - guessed, guessed)
        probs = make_probs(noise)
        pairs = make_pairs(rows, frequency_band=group, pin_age=[("x", "y")[i % 2] for i in range(len(rows))])
        return pairs, make_system(probs @ np.arange(1.0, 6.0) + rng.normal(0, 0.01, len(rows)), probs)

    return build


def found_in(pairs, system):
    judged, order = validate_judgments(pairs, SETTINGS.rating_of_grade)
    return worst_slices(judged, "student", system.take(order), SETTINGS)


def test_the_bad_slice_comes_first_and_is_called_bad(world):
    worst = found_in(*world())
    first = {part.metric: (part.values, part.significant) for part in reversed(worst.slices)}
    assert all("bad" in values and sure for values, sure in first.values()) and set(first) == {"auroc_3", "accuracy"}


def test_where_all_slices_are_alike_none_is_called_bad(world):
    assert [part for part in found_in(*world(bad_group=None)).slices if part.significant] == []


def test_the_difference_is_that_of_slice_and_whole(world):
    pairs, system = world()
    part = next(p for p in found_in(pairs, system).slices if p.metric == "accuracy" and p.values == ("bad",))
    judged, order = validate_judgments(pairs, SETTINGS.rating_of_grade)
    right = system.take(order).grades == judged.grade
    assert part.difference.value == pytest.approx(right[part.mask].mean() - right.mean())
    assert part.num_pairs == part.mask.sum() and part.num_queries == QUERIES // 3


def test_a_slice_of_few_pairs_is_not_listed(world):
    """Of 40 pairs, some are always all wrong."""
    pairs, system = world()
    rare = ["rare" if i < 40 else "rest" for i in range(pairs.num_rows)]
    pairs = pairs.set_column(pairs.column_names.index("frequency_band"), "frequency_band", [rare])
    assert [part for part in found_in(pairs, system).slices if "rare" in part.values] == []


def test_crossing_columns_repeats_no_slice(world):
    """A column that equals another one would list everything twice."""
    pairs, system = world()
    pairs = pairs.set_column(pairs.column_names.index("pin_age"), "pin_age", pairs["frequency_band"])
    masks = [(part.metric, part.mask.tobytes()) for part in found_in(pairs, system).slices]
    assert len(set(masks)) == len(masks)


def test_without_slices_there_is_nothing(synthetic):
    pairs, systems = synthetic
    assert evaluate_systems(pairs, systems, SETTINGS).worst is None
