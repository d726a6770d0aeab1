"""Worth of a ranker: the quality of its pages by the ground truth, and what people did with them."""

import numpy as np

from ray_app.analysis.metrics.bootstrap_result import GRADE_AS_RATING, EvaluationSettings
from ray_app.analysis.metrics.dcg import dcg, ideal_dcg, ndcg, places
from ray_app.analysis.metrics.protocol import NDCG_CUTOFF, PRECISION_CUTOFF
from ray_app.analysis.simulate.policies import page, ranked
from ray_app.analysis.simulate.traffic import NO_PIN, Retrieved, Traffic
from ray_app.analysis.simulate.users import Users
from ray_app.base.schemas import NUM_GRADES
from ray_app.demo.facts import Codes, Numbers

SHOWN = NDCG_CUTOFF  # pins of a page: all that nDCG sees
NDCG, PRECISION, FULFILLED = f"ndcg@{NDCG_CUTOFF}", f"p@{PRECISION_CUTOFF}", "fulfilled"
CLICKS, LONG_CLICKS, SAVES, HIDES = "clicks", "long_clicks", "saves", "hides"
# gain of grades 0 (no pin), 1..5, as in the evaluation
_GAINS = np.array([0.0, *(2.0 ** GRADE_AS_RATING[grade] - 1.0 for grade in range(1, NUM_GRADES + 1))])
_RELEVANT = EvaluationSettings().relevant_grade


def page_quality(shown: Codes, found: Codes) -> dict[str, Numbers]:
    """nDCG@20 and P@8 of pages, as `ray_app.analysis.metrics.protocol` defines them; a test compares the two.

    Args:
        shown: (num_queries, num_shown) true grades, best place first; 0: no pin.
        found: (num_queries, num_candidates) true grades of all that could have been shown; 0: no pin.

    Returns:
        metric -> (num_queries,); nDCG is NaN where nothing relevant could be found.
    """
    num_queries = len(shown)
    of_shown, of_found = (np.repeat(np.arange(num_queries), grades.shape[1]) for grades in (shown, found))
    made = dcg(_GAINS[shown].ravel(), places(of_shown), of_shown, num_queries, NDCG_CUTOFF)
    best = ideal_dcg(_GAINS[found].ravel(), of_found, num_queries, NDCG_CUTOFF)
    relevant = (shown[:, :PRECISION_CUTOFF] >= _RELEVANT).sum(axis=1)
    return {NDCG: ndcg(made, best), PRECISION: relevant / PRECISION_CUTOFF}


def outcomes(scores: Numbers, traffic: Traffic, found: Retrieved, users: Users) -> dict[str, Numbers]:
    """Metrics of each search, (num_searches,), when pages are ranked by these scores: page quality, and what people did."""
    chosen = ranked(scores, found.is_pin, SHOWN)
    pins, grades = page(found.pins, chosen, NO_PIN), page(found.grades, chosen, 0)
    rows = traffic.query_of
    user_actions = users.interact(traffic.search, pins[rows], grades[rows])
    counts = dict(zip((CLICKS, LONG_CLICKS, SAVES, HIDES), user_actions, strict=True))
    return {
        **{name: values[rows] for name, values in page_quality(grades, found.grades).items()},
        FULFILLED: user_actions.fulfilled.astype(np.float64),
        **{name: did.sum(axis=1).astype(np.float64) for name, did in counts.items()},
    }
