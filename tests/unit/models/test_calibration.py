"""Temperatures: an overconfident model becomes modest, locale by locale, and a rare locale borrows."""

import numpy as np

from ray_app.models.calibration import ALL, MIN_PAIRS, Calibration, expected_calibration_error, fit_calibration


def pairs(n: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too sure by `temperature`, and grades drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 5)) * 1.5
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    said = honest**temperature / (honest**temperature).sum(1, keepdims=True)
    grades = np.array([rng.choice(5, p=row) for row in honest])
    return said, np.eye(5)[grades]


def test_each_locale_gets_its_own_temperature_and_a_rare_one_its_languages() -> None:
    parts = {"en-US": (2_000, 2.0), "de-DE": (2_000, 0.7), "de-AT": (MIN_PAIRS - 1, 0.7), "fi-FI": (20, 1.0)}
    made = [pairs(n, t, i) for i, (n, t) in enumerate(parts.values())]
    probs, targets = (np.concatenate(arrays) for arrays in zip(*made, strict=True))
    locales = [locale for locale, (n, _) in parts.items() for _ in range(n)]
    queries = [f"query {i % 300}" for i in range(len(probs))]
    found = fit_calibration(probs, targets, np.ones(len(probs)), locales, queries)
    assert found is not None
    assert abs(found.temperature("en-US") - 2.0) < 0.2
    assert abs(found.temperature("de-DE") - 0.7) < 0.1
    assert found.temperature("de-AT") == found.temperatures["de"]
    assert found.temperature("fi-FI") == found.temperatures[ALL]
    assert found.ece_after < 0.5 * found.ece_before
    assert Calibration.from_json(found.to_json()) == found


def test_calibrated_probabilities_sum_to_one_and_keep_their_order() -> None:
    said, _ = pairs(50, 3.0, 0)
    said[0] = [1.0, 0.0, 0.0, 0.0, 0.0]  # certain
    calibration = Calibration(temperatures={ALL: 2.0}, pairs={ALL: 50}, ece_before=0.0, ece_after=0.0)
    calm = calibration.apply(said, ["xx"] * 50)
    np.testing.assert_allclose(calm.sum(1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(calm.argmax(1), said.argmax(1))
    assert (calm.max(1) <= said.max(1) + 1e-6).all()


def test_an_error_row_stays_one() -> None:
    calibration = Calibration(temperatures={ALL: 2.0}, pairs={ALL: 1}, ece_before=0.0, ece_after=0.0)
    assert np.isnan(calibration.apply(np.full((1, 5), np.nan), ["en-US"])).all()


def test_a_perfect_model_has_no_error_and_a_sure_wrong_one_all_of_it() -> None:
    grades = np.eye(5)[[0, 1, 2, 3]]
    assert expected_calibration_error(grades, grades, np.ones(4)) == 0.0
    assert expected_calibration_error(grades, np.roll(grades, 1, axis=1), np.ones(4)) == 1.0


def test_no_pair_no_calibration() -> None:
    assert fit_calibration(np.zeros((0, 5)), np.zeros((0, 5)), np.zeros(0), [], []) is None
