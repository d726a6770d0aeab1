"""Figures under a familiar name must be what that name means, and differences must be paired."""

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, R, nDCG
from scipy.sparse import csr_array
from transfer_world import boards_and_vectors, boards_table, tasks_of

from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.transfer import transfer_metrics as metrics_file
from ray_app.analysis.transfer.systems import System, random_vectors
from ray_app.analysis.transfer.tasks import Task
from ray_app.analysis.transfer.transfer_metrics import NOT_FOUND, measure, metrics_table, query_metrics, ranks_of_wanted


def random_task(num_queries=40, num_pins=60, seed=0):
    """Queries with 1 to 30 wanted pins, some set aside, and scores with many ties."""
    rng = np.random.default_rng(seed)
    wanted = rng.random((num_queries, num_pins)) < rng.random((num_queries, 1)) * 0.5
    wanted[:, 7] = True
    aside = (rng.random((num_queries, num_pins)) < 0.2) & ~wanted
    task = Task(
        name="related pins", asks_by="pins", board=np.arange(num_queries) // 4,
        asks=csr_array(np.eye(num_queries, dtype=np.float32)), wanted=csr_array(wanted.astype(np.float32)),
        aside=csr_array(aside.astype(np.float32)),
    )  # fmt: skip
    scores = rng.integers(1, 20, (num_queries, num_pins)).astype(np.float32)
    system = System(name="s", pins=np.eye(num_pins, dtype=np.float32), asking=scores, titles=None)
    return task, system, scores, wanted, aside


def test_figures_equal_ir_measures():
    task, system, scores, wanted, aside = random_task()
    found = query_metrics(*ranks_of_wanted(task, system), len(task), 10)
    qrels = {str(q): {str(p): 1 for p in np.flatnonzero(row)} for q, row in enumerate(wanted)}
    run = {}
    for q, line in enumerate(scores):
        order = [p for p in np.lexsort((np.arange(len(line)), -line)) if not aside[q, p]]
        run[str(q)] = {str(p): float(len(line) - place) for place, p in enumerate(order)}  # ties are broken here
    names = {str(R @ 10): "recall@10", str(nDCG @ 20): "nDCG@20", str(RR): "MRR"}
    theirs = list(ir_measures.iter_calc([R @ 10, nDCG @ 20, RR], qrels, run))
    ours = [found[names[str(metric.measure)]][int(metric.query_id)] for metric in theirs]
    assert len(ours) == 3 * len(task) and ours == pytest.approx([metric.value for metric in theirs], abs=1e-6)


def test_ranks_do_not_depend_on_the_memory_block(monkeypatch):
    task, system, *_ = random_task()
    whole = ranks_of_wanted(task, system)
    monkeypatch.setattr(metrics_file, "_MAX_SCORES", 1)
    single = ranks_of_wanted(task, system)
    assert np.array_equal(whole[0], single[0])
    assert np.array_equal(whole[1], single[1])


def test_a_wanted_pin_that_is_not_found_counts_as_missed():
    found = query_metrics(np.array([0, 0, 1]), np.array([1, NOT_FOUND, NOT_FOUND]), 2, recall_at=10)
    assert found["recall@10"].tolist() == [0.5, 0.0]
    assert found["MRR"].tolist() == [1.0, 0.0]
    assert found["nDCG@20"].tolist() == pytest.approx([1 / (1 + 1 / np.log2(3)), 0.0])


def test_a_query_that_wants_nothing_is_refused():
    with pytest.raises(ValueError, match="wants nothing"):
        query_metrics(np.array([0]), np.array([1]), 2, recall_at=10)


def test_vectors_that_know_the_boards_are_perfect_and_the_gain_is_paired():
    tasks, knows, mixed = boards_and_vectors()
    found = measure(tasks, [knows, mixed], 2, 10, EvaluationSettings(samples=50, confidence_level=0.9, seed=1))
    assert found.interval("knows", "related pins", "nDCG@20") == (1.0, 1.0, 1.0)
    assert found.interval("knows", "board from its title", "MRR") == (1.0, 1.0, 1.0)
    own = found.interval("mixed", "related pins", "nDCG@20")
    gain = found.difference("knows", "mixed", "related pins", "nDCG@20")
    assert gain == pytest.approx((1 - own.value, 1 - own.hi, 1 - own.lo))
    assert found.difference("mixed", "mixed", "next save", "MRR") == (0.0, 0.0, 0.0)


def test_a_board_counts_once_whatever_its_size():
    tasks = tasks_of(boards_table({"b1": "abcdef", "b2": "ab"}), [0, 1])
    system = random_vectors("r", 6, 2, seed=7)
    values = query_metrics(*ranks_of_wanted(tasks[0], system), len(tasks[0]), 10)["MRR"]
    found = measure(tasks[:1], [system], 2, 10, EvaluationSettings(samples=5, confidence_level=0.9, seed=1))
    means = [values[tasks[0].board == board].mean() for board in (0, 1)]
    assert found.points["r", "related pins", "MRR"] == pytest.approx(np.mean(means))


def test_a_task_without_queries_is_undefined_not_zero():
    tasks, knows, _ = boards_and_vectors()
    empty = tasks_of(boards_table({"b1": "a"}, {"b1": None}), [0])
    found = measure([tasks[0], empty[1]], [knows], 2, 10, EvaluationSettings(samples=5, confidence_level=0.9, seed=1))
    assert found.interval("knows", "board from its title", "MRR") == (None, None, None)
    table = metrics_table(found, {})
    assert set(table["num_queries"].to_pylist()) == {0, 6}
    assert table["value"].null_count == 3
