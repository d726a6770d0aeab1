"""ModelWork.compute: a kill loses no finished block, nothing is computed twice, a failure is one line."""

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.cluster.blocks import actor_chain
from ray_app.cluster.executor import ModelWork, Wanted, check_error_rate
from ray_app.cluster.resources import PoolRequest, start_local
from ray_app.tables.ledger import Ledger

SCHEMA = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),
        pa.field("mean", pa.float64()),
        pa.field("error", pa.string()),
    ]
)


class MeanUDF:
    """The mean of a row's block, so that a row computed in another block has another result; logs what it computes."""

    def __init__(self, log, sleep_sec=0.0, fail=None):
        self.log, self.sleep_sec, self.fail = Path(log), sleep_sec, fail
        if fail == "init":
            raise ValueError("no such model")

    def __call__(self, block):
        numbers = block["number"].to_pylist()
        if 13 in numbers and self.fail == "raise":
            raise RuntimeError("engine is\non fire")
        if 13 in numbers and self.fail == "exit":
            os._exit(1)
        if 13 in numbers and self.fail == "disk":
            raise UserError("cannot write x: the disk is full; free some space and run again")
        if self.fail == "wrong_keys":
            block = block.slice(1)
            numbers = numbers[1:]
        time.sleep(self.sleep_sec)
        with self.log.open("a") as log:  # one write of one line: atomic enough between two actors
            log.write(" ".join(block["content_key"].to_pylist()) + "\n")
        errors = ["negative" if n < 0 else None for n in numbers]
        means = [None if n < 0 else sum(numbers) / len(numbers) for n in numbers]
        return pa.table({"content_key": block["content_key"], "mean": means, "error": errors}, SCHEMA)


def wanted(numbers):
    keys = pa.array([None if n is None else f"k{n:04d}" for n in numbers], pa.string())
    return pa.table({"content_key": keys, "number": pa.array(numbers, pa.int64())})


@pytest.fixture
def ledger(tmp_path):
    return Ledger(Storage(str(tmp_path / "out")), "means", "0123456789abcdef", SCHEMA)


@pytest.fixture
def log(tmp_path):
    (tmp_path / "log").touch()
    return tmp_path / "log"


def logged(log):
    return [key for line in log.read_text().splitlines() for key in line.split()]


def job(ledger, log, rows_per_block=10, num_actors=2, num_cpus=1.0, num_gpus=0.0, max_error_rate=1.0, **udf):
    return ModelWork(
        noun="rows",
        ledger=ledger,
        pool=PoolRequest(section="means", num_actors=num_actors, num_cpus=num_cpus, num_gpus=num_gpus),
        chain=partial(actor_chain, MeanUDF, {"log": log, **udf}),
        rows_per_block=rows_per_block,
        max_error_rate=max_error_rate,
    )


def run(ledger, log, numbers, rows_per_block=10, **more):
    return job(ledger, log, rows_per_block, **more).compute(wanted(numbers))


def message(act):
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what needs no cluster ---


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it raises


def test_ray_is_not_touched_when_nothing_is_missing(ledger, log, no_ray):
    """Else a finished pipeline would take seconds per stage to find out."""
    keys = [f"k{n:04d}" for n in range(3)]
    ledger.commit(pa.table({"content_key": keys, "mean": [1.0, 1.0, None], "error": [None, None, "bad"]}))
    counts = run(ledger, log, [0, 1, 1, 2])
    assert (counts.wanted, counts.unique, counts.already_present, counts.computed) == (4, 3, 3, 0)
    assert (counts.errors, counts.first_error, counts.allocation) == (1, "bad", None)


def test_nothing_wanted_is_nothing_done(ledger, log, no_ray):
    assert run(ledger, log, range(0)).unique == 0


def test_rows_without_a_key_are_refused(ledger, log, no_ray):
    with pytest.raises(ValueError, match="1 wanted rows have no content key"):
        run(ledger, log, [1, None])


def test_too_many_errors_stop_the_job_with_their_count():
    text = message(lambda: check_error_rate(3, 10, "too long", 0.2, "label"))
    assert "label: 3 of 10 rows failed (30.0%, max_error_rate is 20.0%), such as 'too long'" in text


@pytest.mark.parametrize(("errors", "unique"), [(2, 10), (0, 0)])
def test_errors_up_to_the_limit_are_tolerated(errors, unique):
    check_error_rate(errors, unique, "too long", 0.2, "label")


# --- on a cluster ---


@pytest.mark.usefixtures("ray_cluster")
class TestOnACluster:
    def test_each_row_is_computed_in_its_own_block(self, ledger, log):
        """A merged or split block has other neighbours, so other padding and other rounding."""
        counts = run(ledger, log, range(35))
        found = ledger.lookup(wanted(range(35))["content_key"])["mean"].to_pylist()
        assert found == [4.5] * 10 + [14.5] * 10 + [24.5] * 10 + [32.0] * 5
        assert (counts.computed, counts.errors) == (35, 0)
        assert len(ledger.store.list_files(ledger.folder)) == 4

    def test_buckets_are_compared_and_read_by_tasks_and_end_like_one(self, ledger, log):
        """Blocks of a bucket are its own, whatever others lack; the program holds none of the rows."""
        numbers = {bucket: list(range(100 * bucket, 100 * bucket + size)) for bucket, size in enumerate((25, 0, 10, 7))}
        here, tasks = ray.get_runtime_context().get_worker_id(), log.parent / "tasks"
        tasks.mkdir()

        def of_bucket(bucket, numbers):
            """Keys in the range of the bucket: its number is their leading bits."""
            keys = pa.array([f"{4 * bucket:x}{number:031x}" for number in numbers], pa.string())
            return wanted(numbers).set_column(0, "content_key", keys)

        def keyed(bucket):
            (tasks / ray.get_runtime_context().get_worker_id()).touch()
            return of_bucket(bucket, numbers[bucket])

        rows = Wanted(num_buckets=4, keyed=keyed, columns=lambda _, missing: missing)
        counts = job(ledger, log).compute(rows)
        assert (counts.wanted, counts.unique, counts.computed, counts.errors) == (42, 42, 42, 0)
        assert not (tasks / here).exists() and any(tasks.iterdir())
        cut = replace(ledger, num_buckets=4)
        for bucket, some in numbers.items():
            found = cut.lookup(of_bucket(bucket, some)["content_key"], bucket)["mean"].to_pylist()
            blocks = [some[start : start + 10] for start in range(0, len(some), 10)]
            assert found == [sum(block) / len(block) for block in blocks for _ in block]
        assert not ledger.store.list_files("tmp"), "plans are deleted"
        numbers[1] = [150]
        again = job(ledger, log).compute(rows)
        assert (again.unique, again.already_present, again.computed) == (43, 42, 1)
        assert job(ledger, log).compute(rows).computed == 0

    def test_rows_are_computed_where_their_inputs_are_and_kept_where_their_keys_say(self, ledger, log):
        """Else each bucket would read inputs of all others."""

        def keyed(bucket):
            """Of 40 numbers, every fourth; the inputs of ten in a row are together."""
            numbers = range(bucket, 40, 4)
            keys = pa.array([f"{4 * bucket:x}{number:031x}" for number in numbers], pa.string())
            return wanted(numbers).set_column(0, "content_key", keys)

        def columns(place, missing):
            assert set(missing["number"].to_pylist()) <= set(range(10 * place, 10 * place + 10))
            return missing

        rows = Wanted(
            num_buckets=4, keyed=keyed, columns=columns, place=lambda missing: missing["number"].to_numpy() // 10
        )
        some = job(ledger, log).compute(rows, max_rows=10)
        assert some.computed == 10
        cut = replace(ledger, num_buckets=4)
        assert cut.lookup(keyed(0)["content_key"], 0)["mean"].to_pylist() == [4, 4, 4, 14, 14, 24, 24, 24, 34, 34]
        assert job(ledger, log).compute(rows).computed == 30
        for bucket in range(1, 4):
            assert not cut.lookup(keyed(bucket)["content_key"], bucket)["error"].drop_null()
        assert not ledger.store.list_files("tmp")

    def test_only_what_is_missing_is_computed(self, ledger, log):
        run(ledger, log, range(10))
        counts = run(ledger, log, range(25))
        assert sorted(logged(log)) == wanted(range(25))["content_key"].to_pylist()
        assert (counts.already_present, counts.computed) == (10, 15)

    def test_repeated_keys_are_computed_once(self, ledger, log):
        counts = run(ledger, log, [3, 1, 3, 2, 1])
        assert sorted(logged(log)) == ["k0001", "k0002", "k0003"]
        assert (counts.wanted, counts.unique, counts.computed) == (5, 3, 3)

    def test_a_torn_block_is_computed_again_and_counted(self, ledger, log):
        run(ledger, log, range(20))
        ledger.store.write_bytes(ledger.store.list_files(ledger.folder)[0], b"PAR1")
        counts = run(ledger, log, range(20))
        assert (counts.corrupt_files, counts.computed) == (1, 10)
        assert sorted(ledger.present_keys().to_pylist()) == wanted(range(20))["content_key"].to_pylist()

    def test_work_that_was_begun_and_lost_is_counted_once(self, ledger, log):
        """As a kill leaves it: a claim without a result."""
        ledger.claim(10)
        assert [run(ledger, log, range(20)).recomputed_rows for _ in range(2)] == [10, 0]

    def test_a_job_full_of_errors_stops_early_and_keeps_what_it_has(self, ledger, log):
        text = message(
            lambda: run(ledger, log, [*range(-1500, 0), *range(4500)], 100, num_actors=1, max_error_rate=0.3)
        )
        assert "means: stopped after 1000 of 6000 rows: 1000 failed (100.0%, max_error_rate is 30.0%), such as" in text
        assert 1000 <= len(ledger.present_keys()) < 6000

    def test_bad_rows_are_counted_now_and_in_the_next_run(self, ledger, log):
        """Else a job that failed for its error rate would pass when it is run again."""
        first, second = run(ledger, log, [1, -1, -2]), run(ledger, log, [1, -1, -2])
        assert (first.errors, second.errors, second.computed) == (2, 2, 0)
        assert first.first_error == second.first_error == "negative"

    @pytest.mark.parametrize(
        ("fail", "what"),
        [
            ("raise", "means: RuntimeError: engine is on fire; fix the cause"),
            ("disk", "cannot write x: the disk is full"),
            ("exit", "means: a worker process died 4 times"),
            ("init", "means: ValueError: no such model"),
            ("wrong_keys", "not one row for each content key"),
        ],
    )
    def test_a_failure_is_one_line_and_not_retried_for_ever(self, ledger, log, fail, what):
        assert what in message(lambda: run(ledger, log, range(30), num_actors=1, fail=fail))

    def test_blocks_finished_before_a_failure_are_kept(self, ledger, log):
        message(lambda: run(ledger, log, range(30), num_actors=1, fail="raise"))
        run(ledger, log, range(30))
        assert sorted(logged(log)) == wanted(range(30))["content_key"].to_pylist()

    @pytest.mark.parametrize(
        ("resource", "name"), [({"num_gpus": 64.0}, "num_gpus"), ({"num_cpus": 640.0}, "num_cpus")]
    )
    def test_an_actor_that_fits_on_no_cluster_is_refused(self, ledger, log, resource, name):
        """Ray would wait for such a node for ever."""
        assert f"means: {name} is 64" in message(lambda: run(ledger, log, range(3), **resource))


# --- killed ---


def main(out, log, sleep_sec):
    """The job that is killed: 12 blocks of 5 rows, on actors that ask for a (logical) GPU."""
    start_local(
        num_cpus=6,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    ledger = Ledger(Storage(out), "means", "0123456789abcdef", SCHEMA)
    run(ledger, Path(log), range(60), rows_per_block=5, num_gpus=0.5, sleep_sec=float(sleep_sec))


def start(out, log, sleep_sec):
    """Run `main` in a process group of its own, which Ray's processes join."""
    return subprocess.Popen([sys.executable, __file__, str(out), str(log), str(sleep_sec)], start_new_session=True)


def kill_all(process):
    """SIGKILL the driver, its raylet and its workers at once, as a dying machine would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_job_resumes_and_ends_like_a_fault_free_one(tmp_path, ledger, log, ray_cluster):
    killed = start(tmp_path / "out", log, sleep_sec=0.7)
    try:
        deadline = time.monotonic() + 400
        while len(ledger.store.list_files(ledger.folder)) < 3:
            assert time.monotonic() < deadline, "no block was committed within 120 s"
            assert killed.poll() is None, "the job ended by itself"
            time.sleep(0.05)
    finally:
        kill_all(killed)
    # A worker that Ray put into another process group may still commit the block in its hands.
    before: list[str] = []
    while (now := ledger.store.list_files(ledger.folder)) != before:
        before = now
        time.sleep(2.5)
    kept = {path: (tmp_path / "out" / path).stat().st_mtime_ns for path in ledger.store.list_files(ledger.folder)}
    finished = set(ledger.present_keys().to_pylist())
    assert 0 < len(finished) < 60

    resumed_log = tmp_path / "resumed.log"
    resumed_log.touch()
    counts = run(ledger, resumed_log, range(60), rows_per_block=5)
    assert (counts.already_present, counts.computed) == (len(finished), 60 - len(finished))

    assert 0 <= counts.recomputed_rows <= 2 * 5  # what the two actors had in their hands
    every_key = wanted(range(60))["content_key"]
    rows = [
        key
        for path in ledger.store.list_files(ledger.folder)
        for key in ledger.store.read_table(path)["content_key"].to_pylist()
    ]
    assert sorted(rows) == every_key.to_pylist()
    assert finished.isdisjoint(logged(resumed_log))
    assert {path: (tmp_path / "out" / path).stat().st_mtime_ns for path in kept} == kept
    fault_free = [sum(range(start, start + 5)) / 5 for start in range(0, 60, 5) for _ in range(5)]
    assert ledger.lookup(every_key)["mean"].to_pylist() == fault_free


if __name__ == "__main__":
    main(*sys.argv[1:])
