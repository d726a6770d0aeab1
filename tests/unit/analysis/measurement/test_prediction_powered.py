"""Means from few human labels: against hand-computed cases, and with teachers that are wrong."""

import numpy as np
import pytest
from scipy import stats

from ray_app.analysis.measurement.prediction_powered import QueryMetrics, merge_small_strata, ppi_mean, summarize
from ray_app.base.errors import UserError

NAN = float("nan")


def metrics(human, teacher=None, stratum=None):
    human = np.array(human, np.float64)
    return QueryMetrics(
        teacher=np.zeros(len(human)) if teacher is None else np.array(teacher, np.float64),
        human=human,
        stratum=np.zeros(len(human), np.int64) if stratum is None else np.array(stratum),
    )


@pytest.mark.parametrize("unlabelled", [0, 7])
def test_without_a_teacher_it_is_students_interval_of_the_mean(unlabelled):
    labelled = [0.2, 0.5, 0.9, 0.4, 0.7]
    found = ppi_mean(metrics(labelled + [NAN] * unlabelled), confidence_level=0.9)
    low, high = stats.t.interval(0.9, 4, loc=np.mean(labelled), scale=stats.sem(labelled))
    assert found.interval == pytest.approx((np.mean(labelled), low, high))
    assert (found.power_tuning_weight, found.num_labelled, found.num_queries) == (0.0, 5, 5 + unlabelled)


def test_a_teacher_that_is_off_by_a_constant_leaves_only_the_error_of_the_queries_themselves():
    teacher = np.array([0.1, 0.3, 0.5, 0.7, 0.2, 0.6, 0.4, 0.9])
    human = np.where(np.arange(8) < 4, teacher + 0.05, NAN)
    found = ppi_mean(metrics(human, teacher))
    assert found.interval.value == pytest.approx(teacher.mean() + 0.05)
    assert found.power_tuning_weight == pytest.approx(1.0)
    # Of the human figures 0.15, 0.35, 0.55, 0.75 the variance is 0.2 / 3; eight queries stand for the traffic.
    assert found.std_error == pytest.approx((0.2 / 3 / 8) ** 0.5)
    assert found.std_error == pytest.approx(found.std_error_floor)


def test_by_hand_with_a_half_right_teacher():
    # Labelled: teacher 0, 1, 2, human 0, 1, 1: slope 1/2, residual about 1/6. All six: teacher mean 2.
    found = ppi_mean(metrics([0, 1, 1, NAN, NAN, NAN], [0, 1, 2, 3, 3, 3]))
    assert found.power_tuning_weight == pytest.approx(0.5)
    assert found.interval.value == pytest.approx(2 / 3 + 0.5 * (2 - 1))
    # Residuals -1/6, 1/3, -1/6: variance 1/6 over one degree of freedom (two numbers fitted).
    drawn, floor = 1 / 6 * (1 / 3 - 1 / 6), 1 / 3 / 6
    slope = 1 / 6 * 1 / 2 * 1**2
    assert found.std_error**2 == pytest.approx(drawn + floor + slope)


def test_strata_by_hand():
    """Shares of strata are only seen in the sample, which costs width."""
    found = ppi_mean(metrics([0.0, 1.0, NAN, NAN, 4.0, 6.0], stratum=[0, 0, 0, 0, 1, 1]))
    assert found.interval.value == pytest.approx(4 / 6 * 0.5 + 2 / 6 * 5.0)
    among = (4 / 6 * (0.5 - 2) ** 2 + 2 / 6 * (5 - 2) ** 2) / 6
    assert found.std_error**2 == pytest.approx((4 / 6) ** 2 * 0.5 / 2 + (2 / 6) ** 2 * 2.0 / 2 + among)


def world(rng, num=400, labelled=60):
    stratum = rng.integers(0, 3, num)
    truth = np.clip(0.3 + 0.2 * stratum + rng.normal(0, 0.15, num), 0, 1)
    human = np.full(num, NAN)
    chosen = rng.choice(num, labelled, replace=False)
    human[chosen] = truth[chosen]
    return truth, human, stratum


@pytest.mark.parametrize(
    "wrong",
    [lambda f: f + 3.0, lambda f: 0.1 * f, lambda f: -f, lambda f: 5.0 - 2.0 * f],
    ids=["shifted", "shrunk", "upside down", "both"],
)
def test_a_teacher_on_another_scale_changes_nothing(wrong):
    rng = np.random.default_rng(1)
    truth, human, stratum = world(rng)
    teacher = truth + rng.normal(0, 0.05, len(truth))
    right = ppi_mean(metrics(human, teacher, stratum))
    other = ppi_mean(metrics(human, wrong(teacher), stratum))
    assert other.interval == pytest.approx(right.interval)


def test_a_good_teacher_narrows_and_a_useless_one_hardly_widens():
    rng = np.random.default_rng(2)
    truth, human, stratum = world(rng)
    alone = ppi_mean(metrics(human, truth, stratum).without_teacher()).std_error
    good = ppi_mean(metrics(human, truth + rng.normal(0, 0.03, len(truth)), stratum)).std_error
    useless = ppi_mean(metrics(human, rng.normal(0, 1, len(truth)), stratum)).std_error
    assert good < 0.6 * alone
    assert useless < 1.03 * alone


def test_order_of_queries_and_names_of_strata_do_not_matter():
    rng = np.random.default_rng(3)
    truth, human, stratum = world(rng)
    teacher = truth + rng.normal(0, 0.1, len(truth))
    order = rng.permutation(len(truth))
    one = ppi_mean(metrics(human, teacher, stratum))
    other = ppi_mean(metrics(human[order], teacher[order], np.array([5, 0, 9])[stratum][order]))
    assert other.interval == pytest.approx(one.interval)


def test_strata_with_one_label_are_taken_together_and_a_lone_one_joins_the_next_smallest():
    stratum = [0, 0, 0, 1, 1, 2, 2, 3]
    kept, merged = merge_small_strata(metrics([1, 2, 3, 1, NAN, 2, NAN, NAN], stratum=stratum))
    assert (merged, kept.stratum.tolist()) == (3, [0, 0, 0, 1, 1, 1, 1, 1])
    kept, merged = merge_small_strata(metrics([1, 2, 3, 1, 2, NAN], stratum=[0, 0, 0, 1, 1, 2]))
    assert (merged, kept.stratum.tolist()) == (2, [0, 0, 0, 1, 1, 1])


def test_no_variation_gives_no_interval_instead_of_certainty():
    assert ppi_mean(metrics([0.0] * 9)).interval == (0.0, None, None)


def test_one_label_is_refused():
    with pytest.raises(UserError, match="1 queries with human labels"):
        ppi_mean(metrics([0.5, NAN]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"human": [1.0, 2.0], "teacher": [NAN, 1.0]},
        {"human": [1.0, 2.0], "teacher": [1.0]},
        {"human": [1.0, np.inf], "teacher": [1.0, 1.0]},
    ],
)
def test_wrong_figures_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        metrics(**wrong)


def test_of_many_studies_nearly_all_intervals_hold_the_truth():
    """With a teacher whose error differs by stratum and a design that labels strata at different rates."""
    rng = np.random.default_rng(4)
    rates, inside, repeats = np.array([0.5, 0.2, 0.1]), 0, 400
    shares, means = np.array([0.2, 0.3, 0.5]), np.array([0.3, 0.5, 0.8])
    drawn = np.clip(means + rng.normal(0, 0.1, (100_000, 3)), 0, 1)
    true_mean = shares @ drawn.mean(axis=0)
    for _ in range(repeats):
        stratum = rng.choice(3, 400, p=shares)
        truth = np.clip(means[stratum] + rng.normal(0, 0.1, 400), 0, 1)
        teacher = truth + np.array([0.3, 0.0, -0.2])[stratum] + rng.normal(0, 0.05, 400)
        human = np.full(400, NAN)
        for h in range(3):
            members = np.flatnonzero(stratum == h)
            chosen = rng.choice(members, int(len(members) * rates[h]), replace=False)
            human[chosen] = truth[chosen]
        interval = ppi_mean(metrics(human, teacher, stratum)).interval
        inside += interval.lo <= true_mean <= interval.hi
    assert 0.92 <= inside / repeats <= 0.975


def test_summary_counts_what_is_there():
    strata = summarize(metrics([1, 3, NAN, 5, 5], [1, 3, 2, 0, 0], stratum=[0, 0, 0, 1, 1]))
    assert strata.num_queries.tolist() == [3, 2]
    assert strata.num_labelled.tolist() == [2, 2]
    assert strata.share.tolist() == [0.6, 0.4]
    assert strata.deviation == pytest.approx([2**0.5, 0.0])
    assert strata.residual_deviation == pytest.approx([0.0, 0.0])
