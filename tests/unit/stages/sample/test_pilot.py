import numpy as np
import pytest

from ray_app.stages.sample.pilot import _PRIOR_LABELS, LEAST_DEVIATION, stratum_deviations

WIDE, NARROW = "en/head/engaged", "en/head/deep"


def deviations(strata, grades, weights=None):
    return stratum_deviations(strata, np.array(grades, float), np.ones(len(strata)) if weights is None else weights)


def test_many_labels_speak_for_themselves():
    grades = np.random.default_rng(0).normal(3, np.repeat([1.2, 0.6], 5000))
    found = deviations([WIDE] * 5000 + [NARROW] * 5000, grades)
    assert found.of([WIDE, NARROW]) == pytest.approx([1.2, 0.6], rel=0.03)
    assert found.num_labels == 10_000


def test_a_hand_computed_case():
    """Sums of squares 8 and 2 with 1 degree of freedom each: the overall variance is 5."""
    found = deviations([WIDE, WIDE, NARROW, NARROW], [1, 5, 2, 4])
    k = _PRIOR_LABELS
    assert found.overall == pytest.approx(np.sqrt(5))
    assert found.of([WIDE, NARROW]) == pytest.approx(np.sqrt([(8 + 5 * k) / (1 + k), (2 + 5 * k) / (1 + k)]))


def test_few_labels_are_shrunk_to_the_overall_deviation():
    rng = np.random.default_rng(0)
    found = deviations([NARROW] * 2 + [WIDE] * 1000, [3.0, 3.0, *rng.normal(3, 1, 1000)])
    assert found.by_stratum[NARROW] > 0.9 * found.overall


def test_one_label_and_an_unknown_stratum_have_the_overall_deviation():
    found = deviations([NARROW] + [WIDE] * 3, [3, 1, 3, 5])
    assert found.of([NARROW, "de/trending/engaged"]) == pytest.approx([found.overall] * 2)


def test_a_stratum_of_equal_grades_is_still_sampled():
    found = deviations([NARROW] * 10_000 + [WIDE] * 10_000, [3] * 10_000 + [1, 5] * 5_000)
    assert found.by_stratum[NARROW] == pytest.approx(LEAST_DEVIATION * found.overall)


def test_a_label_counts_for_the_pairs_that_it_stands_for():
    """A rare grade that is drawn half of the time, beside a common one that is drawn rarely."""
    strata, k = [WIDE] * 1000, _PRIOR_LABELS
    found = deviations(strata, [5] * 500 + [1] * 500, np.repeat([1.0, 9.0], 500))
    size, variance = 5000**2 / (500 * 82), 16 * 0.1 * 0.9
    overall = size * variance / (size - 1)
    assert found.of([WIDE]) == pytest.approx(np.sqrt([(size * variance + k * overall) / (size - 1 + k)]))


def test_pairs_that_no_user_saw_say_nothing_about_those_that_users_saw():
    grades = [1, 5] * 50
    assert deviations(["en/head/retrieved"] * 100 + [WIDE] * 100, [3] * 100 + grades).num_labels == 100


@pytest.mark.parametrize(
    ("strata", "grades"), [([], []), ([WIDE], [3]), ([WIDE] * 3, [3, 3, 3]), (["en/head/retrieved"] * 2, [1, 5])]
)
def test_labels_that_tell_no_deviation_give_none(strata, grades):
    assert deviations(strata, grades) is None
