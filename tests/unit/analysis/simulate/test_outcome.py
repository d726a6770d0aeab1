"""Figures of pages: the same protocol as the evaluation's, or the two reports contradict each other."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.analysis.metrics.bootstrap_result import GRADE_AS_RATING, EvaluationSettings
from ray_app.analysis.metrics.protocol import NDCG as EVALUATED_NDCG
from ray_app.analysis.metrics.protocol import PRECISION as EVALUATED_PRECISION
from ray_app.analysis.metrics.protocol import SystemScores, ranking_metrics, validate_judgments
from ray_app.analysis.simulate.outcome import CLICKS, FULFILLED, NDCG, PRECISION, SHOWN, outcomes, page_quality
from ray_app.analysis.simulate.policies import page, ranked
from ray_app.analysis.simulate.traffic import NO_PIN, Retrieved, Traffic
from ray_app.analysis.simulate.users import Users


def test_places_without_a_pin_gain_nothing_and_nothing_to_find_is_undefined():
    found = page_quality(np.array([[3, 0, 0]]), np.array([[5, 3, 0]]))
    assert found[NDCG][0] == pytest.approx(3 / (15 + 3 / np.log2(3)))
    assert np.isnan(page_quality(np.array([[1, 1]]), np.array([[1, 1]]))[NDCG][0])


def test_figures_are_those_of_the_evaluation():
    """Forty candidates, ties among them; candidates are in the order in which the evaluation breaks ties."""
    rng = np.random.default_rng(0)
    grades, scores = rng.integers(1, 6, (6, 40)), rng.integers(0, 12, (6, 40)).astype(np.float64)
    pins = np.arange(40)
    table = pa.table(
        {
            "query": np.repeat([f"q{i}" for i in range(6)], 40),
            "locale": ["en-US"] * 240,
            "pin_id": [f"pin{99 - n:04d}" for n in np.tile(pins, 6)],
            "grade": grades.ravel(),
        }
    )
    judged, order = validate_judgments(table, GRADE_AS_RATING)
    wanted = ranking_metrics(judged, SystemScores(score=scores.ravel()[order]), EvaluationSettings().relevant_grade)
    chosen = ranked(scores, np.ones(scores.shape, bool), SHOWN)
    found = page_quality(page(grades, chosen, 0), grades)
    np.testing.assert_allclose(found[NDCG], wanted[EVALUATED_NDCG], atol=1e-6)
    np.testing.assert_allclose(found[PRECISION], wanted[EVALUATED_PRECISION], atol=1e-6)


@pytest.fixture
def world():
    """Three queries of forty candidates, asked 3,000 times."""
    rng = np.random.default_rng(1)
    found = Retrieved(pins=np.tile(np.arange(40), (3, 1)), grades=rng.integers(1, 6, (3, 40)))
    traffic = Traffic(search=np.arange(3000), query_of=np.arange(3000) % 3, queries=None, is_unseen=np.zeros(3, bool))  # type: ignore[arg-type]
    return traffic, found, Users(seed=5, click_prob=np.zeros(40))


def test_a_perfect_ranking_beats_a_random_one(world):
    traffic, found, users = world
    perfect = outcomes(found.grades.astype(float), traffic, found, users)
    chance = outcomes(np.random.default_rng(2).random(found.pins.shape), traffic, found, users)
    assert perfect[NDCG].min() == pytest.approx(1.0)
    for figure in (NDCG, PRECISION, CLICKS, FULFILLED):
        assert perfect[figure].mean() > 1.2 * chance[figure].mean()


def test_equal_arms_have_exactly_equal_outcomes(world):
    """Scores that differ, but not in their order, are one arm."""
    traffic, found, users = world
    scores = np.random.default_rng(3).random(found.pins.shape)
    one, two = outcomes(scores, traffic, found, users), outcomes(7 * scores - 2, traffic, found, users)
    assert all((one[name] == two[name]).all() for name in one)


def test_unknown_pins_are_not_shown(world):
    traffic, found, users = world
    known = np.arange(40) < 5
    left = found.only(known)
    assert (left.pins[:, 5:] == NO_PIN).all()
    assert (left.grades[:, 5:] == 0).all()
    assert outcomes(np.ones(found.pins.shape), traffic, left, users)[CLICKS].max() <= 5
