"""The engagement model: clicks must be read without the position's part in them."""

import numpy as np
import pytest

from ray_app.analysis.simulate.logging_policy import fit_clicks, make_log, propensity
from ray_app.analysis.simulate.traffic import Retrieved, Traffic
from ray_app.analysis.simulate.users import Users
from ray_app.base.config import SimulateConfig
from ray_app.demo.log import CLICK


def test_coefficients_are_found_through_position_bias():
    """The ranker shows what has a large x further up; unweighed clicks then give x more credit than it has."""
    rng = np.random.default_rng(0)
    x = -np.sort(-rng.normal(size=(8_000, 10)), axis=1)
    clicked = rng.random(x.shape) < propensity(10) / (1 + np.exp(-(0.5 * x - 1.0)))
    ones = np.ones(x.size)
    weighed = fit_clicks(x.reshape(-1, 1), (clicked / propensity(10)).ravel(), ones)
    plain = fit_clicks(x.reshape(-1, 1), clicked.ravel().astype(float), ones)
    assert weighed == pytest.approx([0.5, -1.0], abs=0.05)
    assert plain[0] > 0.8


def test_a_pair_never_shown_teaches_nothing():
    x = np.array([[1.0], [-1.0], [50.0]])
    with_it = fit_clicks(x, np.array([30.0, 10.0, 0.0]), np.array([100.0, 100.0, 0.0]))
    assert (with_it == fit_clicks(x[:2], np.array([30.0, 10.0]), np.array([100.0, 100.0]))).all()


def test_a_log_without_clicks_is_refused():
    with pytest.raises(ValueError, match=r"simulate\.num_logged_searches"):
        fit_clicks(np.ones((2, 1)), np.zeros(2), np.ones(2))


@pytest.fixture
def log():
    """One query whose first ten pins are grade 5, the others grade 1; the control knows."""
    pins = np.arange(40)
    found = Retrieved(pins=pins[None, :], grades=np.where(pins < 10, 5, 1)[None, :])
    traffic = Traffic(
        search=np.arange(10_000), query_of=np.zeros(10_000, np.int64), queries=None, is_unseen=np.zeros(1, bool)
    )  # type: ignore[arg-type]
    cfg = SimulateConfig(logging_policy_noise=3.0)
    return make_log(traffic, found, found.grades.astype(float), Users(seed=1, click_prob=np.zeros(40)), cfg, seed=1)


def test_weighed_clicks_per_impression_are_the_grade_s_click_rate(log):
    rate = log.clicks[0] / log.impressions[0]
    assert rate[:10].mean() == pytest.approx(CLICK[4], rel=0.05)
    assert rate[10:].mean() == pytest.approx(CLICK[0], rel=0.2)


def test_half_of_the_searches_are_asked_and_the_other_half_is_told(log):
    """Rates from the same clicks would carry the answer."""
    assert log.impressions.sum() == 5_000 * 20
    assert log.rates.shape == (40, 5)
    assert log.rates[:10, 1].mean() > 3 * log.rates[10:, 1].mean()
