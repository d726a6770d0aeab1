import numpy as np
import pytest

from ray_app.stages.sample.allocation import allocate, solve_factor, sqrt_rates, weighted_rates

ALLOCATIONS = ("sqrt", "proportional", "neyman")


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("target", [1, 40, 900, 5000])
@pytest.mark.parametrize("seed", range(5))
def test_rates_spend_the_budget_and_are_probabilities(allocation, target, seed):
    rng = np.random.default_rng(seed)
    sizes = np.concatenate([[0, 1], rng.integers(1, 5000, 20)])
    rates = allocate(allocation, sizes, target, rng.uniform(0.05, 3.0, len(sizes)))
    assert rates @ sizes == pytest.approx(target, rel=1e-6)
    assert rates.min() > 0 and rates.max() <= 1


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_budget_above_the_population_takes_all(allocation):
    assert allocate(allocation, np.array([3, 0, 5]), 100, np.array([1.0, 2.0, 3.0])).tolist() == [1, 1, 1]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_no_budget_takes_nothing(allocation):
    assert allocate(allocation, np.array([3, 5]), 0, np.array([1.0, 2.0])).max() < 1e-9


def test_small_strata_get_more_than_their_proportion_and_fewer_than_an_equal_share():
    rates = sqrt_rates(np.array([400, 10_000]), 500)
    assert rates * [400, 10_000] == pytest.approx([83.33, 416.67], abs=0.1)


def test_proportional_is_one_rate_whatever_the_deviations():
    assert allocate("proportional", np.array([10, 90]), 20, np.array([1.0, 9.0])) == pytest.approx([0.2, 0.2])


def test_neyman_rates_are_like_the_deviations():
    assert allocate("neyman", np.array([100, 100]), 40, np.array([3.0, 1.0])) == pytest.approx([0.3, 0.1])


def test_a_stratum_that_gives_all_leaves_the_rest_to_the_others():
    """10 of 10, and the other 30 by deviation 2 : 1."""
    rates = weighted_rates(np.array([10, 100, 100]), np.array([50.0, 2.0, 1.0]), 40)
    assert rates == pytest.approx([1.0, 0.2, 0.1])


def test_solve_factor_meets_its_target():
    assert solve_factor(lambda f: min(f * 3, 10.0), 6.0, highest=100.0) == pytest.approx(2.0)
