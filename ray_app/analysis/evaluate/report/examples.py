"""Queries and pairs to look at: figures say how good a system is, these say how it fails."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ray_app.analysis.metrics.evaluation import Evaluation
from ray_app.analysis.metrics.protocol import NDCG, rank_rows, ranking_ideal


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamplePair:
    """One judged pair, as the report shows it."""

    query: str
    locale: str
    pin_id: str
    title: str | None  # None: the pin has none
    grade: int
    scores: dict[str, float | None]  # system -> expected grade; None: no score


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleQuery:
    """A query with a system's best pins among the judged ones."""

    query: str
    locale: str
    ndcg: float
    num_judged: int
    pairs: list[ExamplePair]


def example_queries(
    evaluation: Evaluation, system: str, titles: Mapping[str, str], num_queries: int = 6, num_pins: int = 5
) -> list[ExampleQuery]:
    """Queries evenly spaced from the system's best to its worst nDCG@20: a fair sample, not a shop window.

    Queries without a relevant pin, where nDCG says nothing, are left out if there are others.
    """
    ndcg = evaluation.per_query[system][NDCG]
    by_ndcg = np.argsort(-ndcg, kind="stable")
    fertile = by_ndcg[ranking_ideal(evaluation.pairs)[by_ndcg] > 0]
    by_ndcg = fertile if fertile.size else by_ndcg
    picks = np.unique(np.linspace(0, len(by_ndcg) - 1, min(num_queries, len(by_ndcg))).round().astype(int))
    rows = rank_rows(evaluation.pairs, evaluation.systems[system])
    ranked_query = evaluation.pairs.query_index[rows]
    sizes = np.bincount(evaluation.pairs.query_index)
    out = []
    for query in by_ndcg[picks]:
        top = rows[ranked_query == query][:num_pins]
        text, locale = evaluation.pairs.queries[query]
        pairs = [_pair(evaluation, int(row), titles) for row in top]
        judged = int(sizes[query])
        out.append(ExampleQuery(query=text, locale=locale, ndcg=float(ndcg[query]), num_judged=judged, pairs=pairs))
    return out


def worst_disagreements(
    evaluation: Evaluation, system: str, titles: Mapping[str, str], num_pairs: int = 12, per_query: int = 2,
    within: np.ndarray | None = None,
) -> list[ExamplePair]:  # fmt: skip
    """Pairs whose expected grade is farthest from the human one, at most `per_query` of each query.

    Args:
        system: Whose grades; without probabilities its likeliest grade counts, and without grades there are no pairs.
        within: (num_pairs,) bool, pairs to choose from; None: all.
    """
    scores = evaluation.systems[system]
    if scores.probs is not None:
        said = scores.probs @ np.arange(1.0, 6.0)
    elif scores.grades is not None:
        said = np.where(scores.missing, np.nan, scores.grades)
    else:
        return []
    distance = np.abs(said - evaluation.pairs.grade)
    if within is not None:
        distance = np.where(within, distance, np.nan)
    order = np.argsort(-np.nan_to_num(distance, nan=-1.0), kind="stable")
    used: Counter[int] = Counter()
    out: list[ExamplePair] = []
    for row in order.tolist():
        query = int(evaluation.pairs.query_index[row])
        if np.isnan(distance[row]) or len(out) == num_pairs:
            break
        if used[query] < per_query:
            used[query] += 1
            out.append(_pair(evaluation, row, titles))
    return out


def query_changes(
    evaluation: Evaluation, system: str, baseline: str, num_queries: int = 5
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Queries whose nDCG@20 gained and lost most against a rival: (query, difference), most first, none unchanged."""
    difference = evaluation.per_query[system][NDCG] - evaluation.per_query[baseline][NDCG]
    order = np.argsort(-difference, kind="stable")
    named = [(evaluation.pairs.queries[i][0], float(difference[i])) for i in order.tolist()]
    lost = [item for item in named[::-1][:num_queries] if item[1] < 0]
    return [item for item in named[:num_queries] if item[1] > 0], lost


def _pair(evaluation: Evaluation, row: int, titles: Mapping[str, str]) -> ExamplePair:
    table = evaluation.pairs.table
    pin_id = table["pin_id"][row].as_py()
    scores: dict[str, float | None] = {}
    for name, system in evaluation.systems.items():
        if system.probs is not None:
            expected = float(system.probs[row] @ np.arange(1.0, 6.0))
            scores[name] = None if np.isnan(expected) else expected
    return ExamplePair(
        query=table["query"][row].as_py(), locale=table["locale"][row].as_py(), pin_id=pin_id,
        title=titles.get(pin_id) or None, grade=int(evaluation.pairs.grade[row]), scores=scores,
    )  # fmt: skip
