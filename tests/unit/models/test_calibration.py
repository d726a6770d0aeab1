"""Temperatures: an overconfident model becomes modest, locale by locale, and a rare locale borrows."""

import numpy as np
import pytest

from ray_app.analysis.metrics.grading import log_loss
from ray_app.models.calibration import ALL, MIN_PAIRS, Calibration, expected_calibration_error, fit_calibration
from ray_app.training.targets import balance_shift, grade_weights


def pairs(n: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too sure by `temperature`, and grades drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 5)) * 1.5
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    said = honest**temperature / (honest**temperature).sum(1, keepdims=True)
    grades = np.array([rng.choice(5, p=row) for row in honest])
    return said, np.eye(5)[grades]


def made(temperatures: dict[str, float]) -> Calibration:
    return Calibration(temperatures=temperatures, pairs={}, ece_before=0.0, ece_after=0.0)


def test_each_locale_gets_its_own_temperature_and_a_rare_one_its_languages() -> None:
    parts = {"en-US": (2_000, 2.0), "de-DE": (2_000, 0.7), "de-AT": (MIN_PAIRS - 1, 0.7), "fi-FI": (20, 1.0)}
    drawn = [pairs(n, t, i) for i, (n, t) in enumerate(parts.values())]
    probs, targets = (np.concatenate(arrays) for arrays in zip(*drawn, strict=True))
    locales = [locale for locale, (n, _) in parts.items() for _ in range(n)]
    queries = [f"query {i % 300}" for i in range(len(probs))]
    found = fit_calibration(probs, targets, np.ones(len(probs)), locales, queries)
    assert abs(found.temperature("en-US") - 2.0) < 0.2
    assert abs(found.temperature("de-DE") - 0.7) < 0.1
    assert found.temperature("de-AT") == found.temperatures["de"]
    assert found.temperature("fi-FI") == found.temperatures[ALL]
    assert found.ece_after < 0.5 * found.ece_before
    assert Calibration.from_json(found.to_json()) == found


def test_calibrated_probabilities_sum_to_one_and_keep_their_order() -> None:
    said, _ = pairs(50, 3.0, 0)
    said[0] = [1.0, 0.0, 0.0, 0.0, 0.0]  # certain
    said[1] = np.nan  # an error row stays one
    calm = made({ALL: 2.0}).apply(said, ["xx"] * 50)
    assert np.isnan(calm).any(1).nonzero()[0].tolist() == [1] and np.isnan(calm[1]).all()
    said, calm = np.delete(said, 1, 0), np.delete(calm, 1, 0)
    np.testing.assert_allclose(calm.sum(1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(calm.argmax(1), said.argmax(1))
    assert (calm.max(1) <= said.max(1) + 1e-6).all()


def test_a_perfect_model_has_no_error_and_a_sure_wrong_one_all_of_it() -> None:
    grades = np.eye(5)[[0, 1, 2, 3]]
    assert expected_calibration_error(grades, grades, np.ones(4)) == 0.0
    assert expected_calibration_error(grades, np.roll(grades, 1, axis=1), np.ones(4)) == 1.0


@pytest.mark.parametrize("seed", range(12))
def test_a_temperature_that_does_not_help_other_queries_is_not_kept(seed: int) -> None:
    """Nine queries that a model is honest about: any temperature they are fitted to makes new queries worse."""
    probs, targets = pairs(270, 1.0, seed)
    queries = [f"query {i // 30}" for i in range(270)]
    found = fit_calibration(probs, targets, np.ones(270), ["en-US"] * 270, queries)
    assert found.temperatures == {ALL: 1.0}
    assert set(found.rejected) == {ALL, "en", "en-US"}
    assert (found.ece_after, found.log_loss_after) == (found.ece_before, found.log_loss_before)


@pytest.mark.parametrize("temperature", [0.6, 2.0])
def test_a_temperature_that_helps_is_kept_and_lowers_both_figures_of_new_queries(temperature: float) -> None:
    probs, targets = pairs(1_500, temperature, 1)
    queries = [f"query {i // 15}" for i in range(1_500)]
    found = fit_calibration(probs, targets, np.ones(1_500), ["en-US"] * 1_500, queries)
    assert found.temperatures[ALL] == pytest.approx(temperature, rel=0.15)
    assert found.ece_after < found.ece_before
    assert found.log_loss_after < found.log_loss_before
    new, grades = pairs(3_000, temperature, 2)
    calibrated, ones = found.apply(new, ["en-US"] * 3_000), np.ones(3_000)
    assert log_loss(calibrated, grades.argmax(1) + 1) < log_loss(new, grades.argmax(1) + 1)
    assert expected_calibration_error(calibrated, grades, ones) < expected_calibration_error(new, grades, ones)


def test_one_query_tells_nothing_about_others_and_none_nothing() -> None:
    probs, targets = pairs(300, 3.0, 0)
    assert fit_calibration(probs, targets, np.ones(300), ["en-US"] * 300, ["one"] * 300).temperatures == {ALL: 1.0}
    assert fit_calibration(np.zeros((0, 5)), np.zeros((0, 5)), np.zeros(0), [], []) is None


def test_a_folder_of_an_older_version_is_read() -> None:
    old = Calibration.from_json('{"temperatures": {"*": 1.2}, "pairs": {"*": 9}, "ece_before": 0.1, "ece_after": 0.05}')
    assert old.temperature("fr-FR") == 1.2
    assert old.log_loss_after is None


def test_weights_that_balance_grades_are_taken_out_of_the_logits() -> None:
    """A model of a balanced world says 34% of 8%; no temperature can know better."""
    rng, n = np.random.default_rng(0), 20_000
    logits = rng.normal(size=(n, 5)) + np.log([0.80, 0.10, 0.05, 0.03, 0.02])
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.eye(5)[(honest.cumsum(1) > rng.random((n, 1))).argmax(1)]
    share = targets.mean(0)
    balanced = honest / share / (honest / share).sum(1, keepdims=True)  # what weights of 1 / share make a model learn
    assert grade_weights(targets, 1.0)[targets.argmax(1) == 4].mean() == pytest.approx(0.2 / share[4], rel=1e-5)
    shifted = np.log(balanced) + balance_shift(targets, 1.0)
    shifted = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    np.testing.assert_allclose(shifted, honest, atol=1e-9)
    assert balance_shift(targets, 0.0).tolist() == [0.0] * 5


def test_an_unknown_locale_takes_the_temperature_of_all_and_a_script_that_of_its_language() -> None:
    found = made({ALL: 1.0, "en": 1.4, "en-US": 1.6, "zh": 2.0})
    asked = ("und", "en-US", "en-Latn-GB", "EN-us", "zh-Hant-TW", "ZH")
    assert [found.temperature(locale) for locale in asked] == [1.0, 1.6, 1.4, 1.4, 2.0, 2.0]
