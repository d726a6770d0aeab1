import numpy as np
import pytest

from ray_app.stages.sample.effective_size import WeightSums, effective_size, pooled_effective_size


def test_a_hand_computed_case():
    """(1 + 2 + 3)^2 / (1 + 4 + 9) = 36 / 14."""
    assert effective_size(np.array([1.0, 2.0, 3.0])) == pytest.approx(36 / 14)


def test_equal_weights_lose_nothing():
    assert effective_size(np.full(7, 12.5)) == pytest.approx(7)


def test_strata_pool_to_the_size_of_all():
    """Also beside a stratum from which nothing was drawn."""
    parts = [np.array([1.0, 2.0]), np.array([]), np.array([5.0, 5.0, 9.0])]
    pooled = pooled_effective_size([part.sum() for part in parts], [effective_size(part) for part in parts])
    assert pooled == pytest.approx(effective_size(np.concatenate(parts)))


def test_nothing_drawn_has_no_size_and_no_design_effect():
    assert WeightSums.of([]).described == {"effective_size": 0.0, "design_effect": None}
    assert pooled_effective_size([], []) == 0.0


def test_the_design_effect_is_pairs_over_effective_size():
    assert WeightSums.merged([WeightSums.of([1.0]), WeightSums.of([3.0])]).described == {
        "effective_size": 1.6,
        "design_effect": 1.25,
    }
