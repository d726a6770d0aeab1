"""Throughput and cost: sums that can be done by hand."""

import pytest

from ray_app.base.config import PriceConfig
from ray_app.cluster.cost_estimate import ReservedResources, cost_of, estimate_cost, render_cost_estimate, timing

PRICES = PriceConfig(gpu_hour=3.6, cpu_hour=0.36)
HELD = ReservedResources(gpus=1, cpus=3)


def test_time_in_which_no_engine_worked_does_not_count():
    found = timing(4, [(20.0, 22.0), (10.0, 12.0), (11.0, 13.0), (11.0, 11.5)], began=4.0, ended=23.0)
    assert (found.rows, found.wall_sec, found.startup_sec) == (4, 19.0, 6.0)
    assert found.engine_sec == 5.0
    assert found.rows_per_sec == 0.8


def test_nothing_answered():
    found = timing(0, [], 1.0, 3.0)
    assert (found.rows_per_sec, found.startup_sec, found.wall_sec) == (0.0, 0.0, 2.0)


def test_a_quote_is_start_up_and_rate():
    estimate = estimate_cost("pairs", timing(8, [(10.0, 12.0)], 0.0, 12.0), 0, 7_200, HELD, PRICES)  # 4/s
    assert (estimate.rows_per_sec, estimate.limited_by, estimate.wall_sec) == (4.0, "engine", 10 + 1800)
    assert estimate.cost.gpu_hours == pytest.approx(1810 / 3600)
    assert estimate.cost.cpu_hours == pytest.approx(3 * 1810 / 3600)
    assert estimate.cost.money == pytest.approx(1810 / 3600 * (3.6 + 3 * 0.36))
    text = render_cost_estimate(estimate)
    assert "4.0 pairs/s" in text
    assert "7,200 distinct pairs" in text
    assert "2.35 USD" in text


def test_slow_feeders_decide_the_rate():
    """While the engine started they ran ahead, so that the sample alone would not show it."""
    measured = timing(8, [(10.0, 12.0)], 0.0, 12.0)
    estimate = estimate_cost("pictures", measured, 0, 10, HELD, PRICES, feeder=("decoding", 2.0))
    assert (estimate.rows_per_sec, estimate.limited_by) == (2.0, "decoding")


@pytest.mark.parametrize(
    ("num_gpus", "prices", "money"),
    [
        (0, PriceConfig(), None),
        (0, PriceConfig(gpu_hour=1.0), None),
        (0, PriceConfig(cpu_hour=1.0), 3.0),
        (2, PriceConfig(cpu_hour=1.0), None),
        (2, PriceConfig(gpu_hour=1.0), 2.0),
        (2, PriceConfig(gpu_hour=1.0, cpu_hour=1.0), 5.0),
    ],
)
def test_money_needs_the_prices_of_what_is_used(num_gpus, prices, money):
    assert cost_of(3600, ReservedResources(gpus=num_gpus, cpus=3), prices).money == money


def test_nothing_left_or_nothing_measured():
    measured = timing(1, [(0.0, 1.0)], 0.0, 1.0)
    assert "no other is left" in render_cost_estimate(estimate_cost("pairs", measured, 0, 0, HELD, PRICES))
    assert "no quote for 5" in render_cost_estimate(estimate_cost("pairs", timing(0, [], 0.0, 1.0), 3, 5, HELD, PRICES))
