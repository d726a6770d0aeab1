"""nDCG0@k and P@k of each query, from what one source (the teacher, or humans) says of its pins.

One function for both sources, so that their difference is one of grades and nothing else. It equals ir_measures where that
can compute it (whole grades; tested); the teacher's gains are expectations, which trec_eval's whole numbers cannot hold.

- The gain of a pin is 2^rating - 1, as in `ray_app.analysis.metrics.protocol`; by the teacher its expected value over the five
  probabilities. The teacher's nDCG is therefore a ratio of expected DCGs, not the expected ratio.
- P@k is over k places even if fewer pins are shown; by the teacher each pin counts with the probability that it is relevant.
- A pin that the source has not judged brings no gain. How many of those shown are judged is `judged`.
- The ideal DCG is that of the best order of all pins that the source has judged for the query, wherever it met them: in
  either ranking, or elsewhere. It is the same for both rankings, so it cannot favour one. What it is not is the best order of
  the catalogue: a relevant pin that nobody judged is missed by both without a penalty, and the more pins are judged, the
  lower nDCG gets. So the pool must be made in the same way for all queries that are compared.
- A query with nothing relevant in its pool is 0 in every order and stays in the mean, as in trec_eval; hence nDCG0: the mean
  that reports call nDCG leaves such queries out. Here they must stay. Which they are is known only where humans labelled, so
  without them humans' figures would be of other queries than the teacher's, which cannot then correct one another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from ray_app.analysis.measurement.rankings import QueryKey, Ranking
from ray_app.analysis.metrics.dcg import dcg, ideal_dcg, ndcg
from ray_app.base.schemas import NUM_GRADES


class PinJudgment(NamedTuple):
    """A source's judgment of a pin."""

    gain: float  # 2^rating - 1, expected
    relevant: float  # probability of the relevant grade or better


Judgments = dict[QueryKey, dict[str, PinJudgment]]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A measure with its cutoff."""

    kind: Literal["ndcg", "p"]
    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    @property
    def name(self) -> str:
        """Such as `nDCG0@20`."""
        return f"{'nDCG0' if self.kind == 'ndcg' else 'P'}@{self.k}"


def judge_by_probs(
    queries: Sequence[QueryKey], pin_ids: Sequence[str], probs: np.ndarray, rating_of_grade: Mapping[int, int],
    relevant_grade: int,
) -> Judgments:  # fmt: skip
    """Judgments from probabilities of the five grades.

    Args:
        queries, pin_ids: (num_pairs,).
        probs: (num_pairs, 5), rows sum to 1; a row with NaN is not judged.
        rating_of_grade: grade -> rating of nDCG's gain.
        relevant_grade: P counts this grade or better.
    """
    gain_of = np.array([2.0 ** rating_of_grade[grade] - 1.0 for grade in range(1, NUM_GRADES + 1)])
    gains, relevant = probs @ gain_of, probs[:, relevant_grade - 1 :].sum(axis=1)
    judgments: Judgments = {}
    for query, pin, gain, share in zip(queries, pin_ids, gains.tolist(), relevant.tolist(), strict=True):
        if not np.isnan(gain):
            judgments.setdefault(query, {})[pin] = PinJudgment(gain, share)
    return judgments


def judge_by_grades(grades: pa.Table, rating_of_grade: Mapping[int, int], relevant_grade: int) -> Judgments:
    """Judgments from one grade per pair: columns query (normalised), locale, pin_id, grade (1..5)."""
    queries = list(zip(grades["query"].to_pylist(), grades["locale"].to_pylist(), strict=True))
    probs = np.eye(NUM_GRADES)[grades["grade"].to_numpy().astype(np.int64) - 1]
    return judge_by_probs(queries, grades["pin_id"].to_pylist(), probs, rating_of_grade, relevant_grade)


def measure_query(metric: Metric, shown: Sequence[str], judged: Mapping[str, PinJudgment]) -> float:
    """The figure of one query: of the pins `shown`, best first, by all that the source has judged for the query."""
    if metric.kind == "p":
        return float(sum(judged[pin].relevant for pin in shown[: metric.k] if pin in judged)) / metric.k
    gains = [judged[pin].gain if pin in judged else 0.0 for pin in shown]
    found = dcg(gains, np.arange(len(gains)), np.zeros(len(gains), np.int64), 1, metric.k)
    ideal = ideal_dcg([found.gain for found in judged.values()], np.zeros(len(judged), np.int64), 1, metric.k)
    return float(np.nan_to_num(ndcg(found, ideal))[0])


def measure_ranking(metric: Metric, ranking: Ranking, judgments: Judgments, queries: Sequence[QueryKey]) -> np.ndarray:
    """The figure of each query, (num_queries,) float64; a query that the ranking lacks shows nothing."""
    return np.array(
        [measure_query(metric, ranking.pins.get(query, []), judgments.get(query, {})) for query in queries], np.float64
    )


def judged_share(k: int, ranking: Ranking, judgments: Judgments, queries: Sequence[QueryKey]) -> np.ndarray:
    """judged@k: the share of the top k shown that the source has judged, (num_queries,); 1 where nothing is shown."""
    shares = []
    for query in queries:
        top, judged = ranking.pins.get(query, [])[:k], judgments.get(query, {})
        shares.append(sum(pin in judged for pin in top) / len(top) if top else 1.0)
    return np.array(shares, np.float64)
