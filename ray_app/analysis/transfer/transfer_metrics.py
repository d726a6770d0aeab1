"""Ranks -> figures per board -> intervals and differences over resampled boards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_app.analysis.metrics.bootstrap import Interval, percentile_interval, ratio, resample_queries
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.dcg import dcg, ideal_dcg, ndcg
from ray_app.analysis.transfer.systems import System
from ray_app.analysis.transfer.tasks import Task

NDCG_CUTOFF = 20
NOT_FOUND = np.iinfo(np.int64).max
METRICS_SCHEMA = pa.schema(
    [
        pa.field("system", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64()),  # 0..1; null: the task has no query
        pa.field("lo", pa.float64()),
        pa.field("hi", pa.float64()),
        pa.field("num_queries", pa.int64(), nullable=False),
        pa.field("num_boards", pa.int64(), nullable=False),
        pa.field("mark", pa.string()),  # what is to be said of the system
    ]
)
_MAX_SCORES = 8_000_000  # of a block of queries with all pins: 32 MB


def ranks_of_wanted(task: Task, system: System) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the relevant pins in each query's order; ties are broken by the pin's place in the catalogue.

    Returns:
        (query, rank), each (num_wanted,) int64, query after query; rank 1 is the top, NOT_FOUND: not in the order.
    """
    block = max(1, _MAX_SCORES // max(task.wanted.shape[1], 1))
    queries, ranks = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(task), block):
        scores = system.scores(task, start, min(start + block, len(task)))
        rows, pins = task.wanted[start : start + block].nonzero()
        found = np.full(len(rows), NOT_FOUND)
        for i, (row, pin) in enumerate(zip(rows, pins, strict=True)):
            line, own = scores[row], scores[row, pin]
            if np.isfinite(own):
                found[i] = 1 + np.count_nonzero(line > own) + np.count_nonzero(line[:pin] == own)
        queries.append(rows + start)
        ranks.append(found)
    return np.concatenate(queries), np.concatenate(ranks)


def query_metrics(query: np.ndarray, rank: np.ndarray, num_queries: int, recall_at: int) -> dict[str, np.ndarray]:
    """Recall, nDCG@20 and reciprocal rank of each query, as ir_measures defines them (tested); each (num_queries,).

    `query` and `rank` are (num_wanted,), of each wanted pin; each query wants one.
    """
    num_wanted = np.bincount(query, minlength=num_queries)
    if (num_wanted == 0).any():
        raise ValueError("query_figures: a query wants nothing, so no system could be right")
    hits = np.bincount(query, weights=rank <= recall_at, minlength=num_queries)
    gain = np.ones(len(rank))
    found = dcg(gain, rank - 1, query, num_queries, NDCG_CUTOFF)
    best = np.full(num_queries, NOT_FOUND)
    np.minimum.at(best, query, rank)
    return {
        f"recall@{recall_at}": hits / num_wanted,
        f"nDCG@{NDCG_CUTOFF}": ndcg(found, ideal_dcg(gain, query, num_queries, NDCG_CUTOFF)),
        "MRR": np.where(best == NOT_FOUND, 0.0, 1.0 / best),
    }


@dataclass(frozen=True, kw_only=True)
class TransferMetrics:
    """All systems on all tasks."""

    num_queries: dict[str, int]  # task -> queries
    num_boards: dict[str, int]  # task -> boards with a query
    points: dict[tuple[str, str, str], float]  # (system, task, metric) -> figure; NaN: the task has no query
    samples: dict[tuple[str, str, str], np.ndarray]  # the same over resamples of the held-out boards, (samples,)
    confidence_level: float  # of intervals

    def interval(self, system: str, task: str, metric: str) -> Interval:
        """A figure."""
        key = (system, task, metric)
        return percentile_interval(self.points[key], self.samples[key], self.confidence_level)

    def difference(self, system: str, base: str, task: str, metric: str) -> Interval:
        """One system minus another, on the same resamples."""
        a, b = (system, task, metric), (base, task, metric)
        return percentile_interval(
            self.points[a] - self.points[b], self.samples[a] - self.samples[b], self.confidence_level
        )


def measure(
    tasks: Sequence[Task], systems: Sequence[System], num_boards: int, recall_at: int, settings: EvaluationSettings
) -> TransferMetrics:
    """Measure all systems, of distinct names, on all tasks, with one set of resampled held-out boards for all."""
    by_board: dict[tuple[str, str, str], np.ndarray] = {}
    for task in tasks:
        for system in systems:
            results = query_metrics(*ranks_of_wanted(task, system), len(task), recall_at)
            for metric, values in results.items():
                sums, counts = (np.bincount(task.board, each, num_boards) for each in (values, None))
                by_board[system.name, task.name, metric] = ratio(sums, counts)  # NaN for a board without a query
    points = {key: float(_mean(np.ones((1, num_boards)), values)[0]) for key, values in by_board.items()}
    counts = np.concatenate(list(resample_queries(num_boards, settings.samples, settings.seed, num_boards)))
    return TransferMetrics(
        num_queries={task.name: len(task) for task in tasks}, points=points, confidence_level=settings.confidence_level,
        num_boards={task.name: len(np.unique(task.board)) for task in tasks},
        samples={key: _mean(counts, values) for key, values in by_board.items()},
    )  # fmt: skip


def _mean(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means of the defined values under each row of counts, (len(counts),); NaN where there are none."""
    return ratio(counts @ np.nan_to_num(values), counts @ np.isfinite(values).astype(np.float64))


def metrics_table(results: TransferMetrics, marks: Mapping[str, str]) -> pa.Table:
    """METRICS_SCHEMA, one row per system, task and metric; `marks`: system -> what is to be said of it."""
    rows = []
    for system, task, metric in results.points:
        value, lo, hi = results.interval(system, task, metric)
        rows.append(
            {
                "system": system, "task": task, "metric": metric, "value": value, "lo": lo, "hi": hi,
                "num_queries": results.num_queries[task], "num_boards": results.num_boards[task],
                "mark": marks.get(system),
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)
