"""Losses by hand, and what each is for."""

import numpy as np
import pytest
import torch

from ray_app.base.config import TrainConfig
from ray_app.training.losses import (
    hard_cross_entropy,
    kl_with_temperature,
    loss_of,
    margin_mse,
    ordinal_cross_entropy,
    soft_cross_entropy,
)
from ray_app.training.targets import grade_weights

SURE = torch.eye(5)


def logits_of(probs: list[float]) -> torch.Tensor:
    return torch.tensor([probs]).log()


def test_cross_entropy_by_hand() -> None:
    """The hard one sees only the likeliest grade."""
    halves, rather = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]]), torch.tensor([[0.4, 0.6, 0.0, 0.0, 0.0]])
    assert soft_cross_entropy(logits_of([0.2] * 5), halves).item() == pytest.approx(np.log(5))
    assert hard_cross_entropy(logits_of([0.1, 0.7, 0.1, 0.05, 0.05]), rather).item() == pytest.approx(-np.log(0.7))


def test_ordinal_by_hand() -> None:
    """Target grade 5: -log of P(above k) for k = 1..4."""
    got = ordinal_cross_entropy(logits_of([0.1, 0.2, 0.3, 0.2, 0.2]), SURE[4:])
    assert got.item() == pytest.approx(-sum(np.log([0.9, 0.7, 0.4, 0.2])), rel=1e-5)


def test_ordinal_costs_more_the_further_off() -> None:
    """What cross-entropy cannot tell apart: grade 2 for a 5 is worse than grade 4."""
    near, far = logits_of([0.02, 0.02, 0.02, 0.92, 0.02]), logits_of([0.02, 0.92, 0.02, 0.02, 0.02])
    assert ordinal_cross_entropy(far, SURE[4:]) > ordinal_cross_entropy(near, SURE[4:]) + 1
    assert soft_cross_entropy(far, SURE[4:]).item() == pytest.approx(soft_cross_entropy(near, SURE[4:]).item())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_is_0_for_the_same_distribution_and_above_else(temperature: float) -> None:
    probs = torch.tensor([[0.1, 0.2, 0.4, 0.2, 0.1]])
    assert kl_with_temperature(probs.log(), probs, temperature).item() == pytest.approx(0, abs=1e-5)
    assert kl_with_temperature(torch.zeros(1, 5), probs, temperature).item() > 0.01


def test_kl_at_temperature_1_has_the_gradient_of_soft_cross_entropy() -> None:
    target = torch.tensor([[0.1, 0.2, 0.4, 0.2, 0.1]])
    gradients = []
    for loss in (soft_cross_entropy, lambda a, b: kl_with_temperature(a, b, 1.0)):
        logits = torch.tensor([[0.3, -1.0, 0.2, 0.0, 2.0]], requires_grad=True)
        loss(logits, target).sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_margin_is_about_differences_within_a_query() -> None:
    """Both pins off by the same: the order and the gap are right, so nothing to learn."""
    targets = torch.stack([SURE[1], SURE[3], SURE[0]])
    predicted = torch.stack([SURE[2], SURE[4], SURE[3]]).clamp(min=1e-9).log()
    got = margin_mse(predicted, targets, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(got, torch.zeros(3), atol=1e-4, rtol=0)
    together = margin_mse(predicted, targets, torch.tensor([0, 0, 0]))  # off by 1, 1 and 3
    torch.testing.assert_close(together, torch.tensor([2.0, 2.0, 4.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["soft", "hard", "ordinal", "kl"])
def test_all_are_finite_where_model_and_target_are_sure_and_disagree(name: str) -> None:
    """A teacher's soft labels have zeros; one NaN spoils every weight."""
    logits = (SURE * 200 - 100).requires_grad_()
    losses = loss_of(TrainConfig(loss=name))(logits, SURE.flip(0))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


def test_ordinal_has_a_gradient_however_wrong_the_model_is() -> None:
    """A pair that the model is surest and most wrong about must not be the one that teaches nothing."""
    logits = torch.tensor([[40.0, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    ordinal_cross_entropy(logits, SURE[4:]).sum().backward()
    assert logits.grad[0, 0] > 0.99


def test_grade_weights_lift_rare_grades() -> None:
    targets = np.eye(5)[[0, 0, 0, 0, 0, 0, 0, 0, 4, 4]]
    np.testing.assert_allclose(grade_weights(targets, 1.0), [0.625] * 8 + [2.5] * 2)  # equal sums, mean 1
    np.testing.assert_allclose(grade_weights(targets, 0.0), np.ones(10))
    assert len(grade_weights(np.zeros((0, 5)), 0.5)) == 0
