"""How many queries to label: the plan agrees with what the estimate then shows."""

import itertools

import numpy as np
import pytest
from scipy import stats

from ray_app.analysis.measurement.prediction_powered import QueryMetrics, summarize
from ray_app.analysis.measurement.study_design import design_study, required_queries


def pilot(deviations=(0.1, 0.4), sizes=(3000, 1000), seed=0, noise=None):
    """Every query labelled; the teacher is off by `noise`, or knows nothing."""
    rng = np.random.default_rng(seed)
    stratum = np.repeat(np.arange(len(sizes)), sizes)
    human = rng.normal(0, np.array(deviations)[stratum])
    teacher = np.zeros(len(human)) if noise is None else human + rng.normal(0, noise, len(human))
    keep = rng.random(len(human)) < 0.5
    human = np.where(keep, human, np.nan)
    return summarize(QueryMetrics(teacher=teacher, human=human, stratum=stratum))


def test_one_stratum_by_hand():
    found = design_study(pilot((0.2,), (4000,)), 100)
    deviation = pilot((0.2,), (4000,)).deviation[0]
    assert found.num_labelled == 100
    assert found.std_error == pytest.approx(deviation / 10)
    assert found.mde == pytest.approx(found.std_error * (stats.t.ppf(0.975, 99) + stats.t.ppf(0.8, 99)))


def test_neyman_is_the_best_of_all_spreads():
    known = pilot()
    best = design_study(known, 60)
    assert best.num_labelled == 60

    def error(first):
        by = np.array([first, 60 - first])
        drawn = known.share**2 * known.residual_deviation**2 * (1 / by - 1 / known.num_queries)
        return drawn.sum()

    least = min(error(first) for first in range(2, 59))
    assert error(best.by_stratum[0]) == pytest.approx(least, rel=2e-3)


def test_the_number_needed_is_the_smallest_that_does():
    known = pilot()
    found = required_queries(known, 0.05)
    assert found.mde <= 0.05 < design_study(known, found.num_labelled - 2).mde


def test_a_teacher_saves_labels():
    alone, helped = (required_queries(pilot(noise=noise), 0.03).num_labelled for noise in (None, 0.05))
    assert helped < 0.5 * alone


def test_a_change_below_what_the_queries_can_show_is_not_promised():
    assert required_queries(pilot(), 0.0005) is None


def test_more_labels_never_see_less():
    known = pilot()
    seen = [design_study(known, num).mde for num in (10, 50, 200, 1000, 4000)]
    assert all(later < earlier for earlier, later in itertools.pairwise(seen))


def test_every_stratum_gets_labels_even_if_the_pilot_saw_no_variation_there():
    assert design_study(pilot((0.0, 0.4)), 40).by_stratum.min() >= 2


@pytest.mark.parametrize("mde", [0.0, -0.1, float("nan")])
def test_no_change_cannot_be_found(mde):
    with pytest.raises(ValueError, match="above 0"):
        required_queries(pilot(), mde)
