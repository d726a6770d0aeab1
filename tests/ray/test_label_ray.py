"""The label stage on clusters with tiny teachers: each pair once and in its place, whatever happens."""

import random
import time

import numpy as np
import pytest
from label_world import (
    Killer,
    expected,
    labeller,
    ledger_keys,
    num_blocks,
    pairs,
    probs_of,
    save_teacher,
    start_job,
)

from ray_app.base.errors import UserError
from ray_app.base.storage import Storage

ROWS = pairs(16, 5)
MANY = pairs(240, 5)
KILLED = {"rows_per_block": 8, "num_actors": 2}
NUM_BLOCKS = -(-len(MANY) // 8)


def maker_of(folder, base, **label):
    store = Storage(str(folder))
    return labeller(store, save_teacher(store, base), **label)


def assert_each_row_once(maker, rows):
    assert sorted(ledger_keys(maker)) == sorted(rows["content_key"].to_pylist())


def message(act):
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def fault_free(ray_cluster, tmp_path_factory, tiny_decoder):
    """Labels of MANY by a job that nobody kills."""
    maker = maker_of(tmp_path_factory.mktemp("fault-free"), tiny_decoder, **KILLED)
    counts = maker.work().compute(MANY)
    assert (counts.computed, counts.recomputed_rows) == (len(MANY), 0)
    assert num_blocks(maker) < 16, "small files are merged when the job has ended"
    return probs_of(maker, MANY)[0]


# --- invariance ---


def test_sizes_order_and_sharing_change_no_label(ray_cluster, tmp_path, tiny_decoder):
    """Through Ray; all combinations are in tests/unit/stages/label/test_teacher.py."""
    one = maker_of(tmp_path / "one", tiny_decoder, batch_size=64, rows_per_block=64)
    shared = one.work().compute(ROWS)
    other = maker_of(
        tmp_path / "other", tiny_decoder, batch_size=3, rows_per_block=7, num_actors=2, prefix_sharing=False
    )
    alone = other.work().compute(ROWS.take(np.random.default_rng(0).permutation(len(ROWS))))
    found, _ = probs_of(one, ROWS)
    np.testing.assert_allclose(found, probs_of(other, ROWS)[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found, expected(one.store, one.teacher, ROWS)[0], rtol=0, atol=1e-5)
    assert_each_row_once(other, ROWS)
    assert alone.prefix_hit_rate == 0.0
    assert 0.3 < shared.prefix_hit_rate < 0.8  # each pin stands in 5 pairs
    assert shared.tokens == alone.tokens


# --- clusters ---


@pytest.mark.parametrize(("num_cpus", "fitting"), [(1, 1), (2, 2), (4, 3)])
def test_small_clusters_finish(tmp_path, tiny_decoder, num_cpus, fitting):
    """Ray would wait for ever for workers that do not fit."""
    makers = [maker_of(tmp_path / f"{n}", tiny_decoder, num_actors=n) for n in (1, 3)]
    job = start_job(tmp_path / "job", num_cpus, ROWS, *makers)
    done = job.finish()
    for maker, run in zip(makers, done["runs"], strict=True):
        assert run["computed"] == len(ROWS)
        assert_each_row_once(maker, ROWS)
    assert [run["allocation"]["num_actors"] for run in done["runs"]] == [1, fitting]
    note = f"label.num_actors is 3, but only {fitting} fit on the cluster"
    assert (note in job.log) == (fitting < 3)
    alone, together = (probs_of(maker, ROWS)[0] for maker in makers)
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-6)  # fewer threads each: another rounding
    # What a dashboard sees, over HTTP: both runs together.
    assert done["metrics"] == {"soft_labels": 2 * len(ROWS)}


# --- kills ---


def test_kill_9_of_the_whole_job_again_and_again(fault_free, tmp_path, tiny_decoder):
    """Of driver, cluster and workers at once, at block counts drawn at random; then a run that is left alone."""
    maker = maker_of(tmp_path / "run", tiny_decoder, **KILLED)
    rng = random.Random(0)
    kills = 3
    for kill in range(kills):
        goal = num_blocks(maker) + rng.randint(1, 30)
        job = start_job(tmp_path / f"killed{kill}", 2, MANY, maker)
        try:
            deadline = time.monotonic() + 400
            while num_blocks(maker) < goal:
                assert time.monotonic() < deadline, job.log[-2000:]
                assert job.process.poll() is None, "the job ended by itself"
                time.sleep(0.005)
        finally:
            job.kill()
        wait_until_still(maker)
    present = set(ledger_keys(maker))
    assert 0 < len(present) < len(MANY)
    begun = sum(
        int(path.split("-")[1])
        for path in maker.store.list_files(f"claims/soft_labels/{maker.recipe}")
        if "begun" in path
    )

    counts = maker.work().compute(MANY)
    assert (counts.already_present, counts.computed) == (len(present), len(MANY) - len(present))
    assert counts.recomputed_rows == begun - len(present)
    assert counts.recomputed_rows <= kills * 2 * 8  # what two workers had in their hands
    assert_each_row_once(maker, MANY)
    assert probs_of(maker, MANY)[0].tobytes() == fault_free.tobytes()


def wait_until_still(maker):
    """A worker that Ray put into another process group may still commit the block in its hands."""
    before = -1
    while (now := num_blocks(maker)) != before:
        before = now
        time.sleep(2)


def test_kill_9_of_one_worker_costs_no_more_than_its_block(fault_free, tmp_path, tiny_decoder):
    maker = maker_of(tmp_path, tiny_decoder, **KILLED)
    killer = Killer(maker, 20, "MapWorker(MapBatches(CommitBlockUDF))")
    counts = maker.work().compute(MANY)
    assert killer.killed
    assert (counts.computed, counts.errors) == (len(MANY), 0)
    assert killer.at_block < NUM_BLOCKS
    assert counts.recomputed_rows in (0, 8)  # 0: between two blocks
    assert_each_row_once(maker, MANY)
    assert probs_of(maker, MANY)[0].tobytes() == fault_free.tobytes()


# --- errors ---


def test_too_many_errors_stop_the_job_until_they_are_fixed(ray_cluster, tmp_path, tiny_decoder):
    bad = [("", "red mug"), ("cup", ""), ("cup " * 47, "red mug")]
    rows = pairs(3, 4, first=bad)
    maker = maker_of(tmp_path, tiny_decoder, max_error_rate=0.1)
    text = message(lambda: maker.work().compute(rows))
    assert (
        "soft_labels: stopped after 15 of 15 rows: 3 failed (20.0%, max_error_rate is 10.0%), such as 'empty_" in text
    )

    kept = maker.work().compute(rows)  # the stage refuses these: it counts all errors, old ones too
    assert (kept.computed, kept.errors) == (0, 3)

    assert maker.ledger.drop_errors() == 3
    healthy = maker.work().compute(rows.slice(3))
    assert (healthy.already_present, healthy.computed, healthy.errors) == (12, 0, 0)
