"""The line that a person follows for days says what is true."""

import pytest

import ray_app.cluster.progress as progress_module
from ray_app.cluster.progress import Progress


class FakeMetric:
    def __init__(self):
        self.values = []

    def inc(self, value, tags):
        self.values.append((value, tags["stage"]))

    set = inc


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "time", lambda: now[0])
    return now


@pytest.fixture
def metrics(monkeypatch):
    names = ("rows", "errors", "tokens", "remaining_rows", "rows_per_sec", "eta_sec", "prefix_hit_rate")
    made = {name: FakeMetric() for name in names}
    monkeypatch.setattr(progress_module, "_metrics", lambda: made)
    return made


def test_rates_hold_no_start_up(clock, metrics):
    """Workers take a minute to load a model: it must not make the ETA of a day wrong."""
    progress = Progress("soft_labels", 5000, every_sec=30)
    clock[0] = 1080.0  # the first block began at 1060
    progress.add(rows=1000, errors=2, tokens=40_000, computed_tokens=10_000, started=1060.0)
    assert str(progress) == (
        "1,000 of 5,000 rows (20.0%), 50.0 rows/s, 2,000 tokens/s, prefix hits 75%, 2 errors, ETA 80 s"
    )
    assert metrics["rows"].values == [(1000, "soft_labels")]
    assert metrics["eta_sec"].values == [(80.0, "soft_labels")]
    assert metrics["remaining_rows"].values == [(4000, "soft_labels")]


def test_a_line_now_and_then(clock, metrics, caplog):
    caplog.set_level("INFO")
    progress = Progress("captions", 100, every_sec=30, prefix_hits=lambda: 0.25)
    for second in range(1, 70):
        clock[0] = 1000.0 + second
        progress.add(rows=1, errors=0, tokens=0, computed_tokens=0, started=1000.0)
    assert [record.message for record in caplog.records] == [
        "captions: 30 of 100 rows (30.0%), 1.0 rows/s, prefix hits 25%, 0 errors, ETA 70 s",
        "captions: 60 of 100 rows (60.0%), 1.0 rows/s, prefix hits 25%, 0 errors, ETA 40 s",
    ]


def test_before_the_first_block_nothing_is_known():
    progress = Progress("soft_labels", 10, every_sec=30)
    assert progress.prefix_hit_rate is None
    assert progress.eta_sec == float("inf")


def test_the_rate_counts_from_the_first_engine_and_over_all_blocks(clock, metrics):
    """1,500 of 9,000 rows in the 10 s since the first of three began, though another was done before it."""
    progress = Progress("soft_labels", 9000, every_sec=30)
    clock[0] = 1050.0
    progress.add(rows=500, errors=2, tokens=20_000, computed_tokens=5_000, started=1041.0)
    progress.add(rows=500, errors=0, tokens=20_000, computed_tokens=10_000, started=1040.0)
    progress.add(rows=500, errors=1, tokens=20_000, computed_tokens=15_000, started=1045.0)
    assert str(progress) == (
        "1,500 of 9,000 rows (16.7%), 150.0 rows/s, 6,000 tokens/s, prefix hits 50%, 3 errors, ETA 50 s"
    )
    clock[0] = 1100.0
    progress.add(rows=7500, errors=0, tokens=0, computed_tokens=0, started=1050.0)
    assert (progress.rows_per_sec, progress.eta_sec) == (150.0, 0.0)


@pytest.mark.parametrize(
    ("hits", "rate"),
    [(None, 0.25), (lambda: 0.5, 0.5), (lambda: 0.0, 0.0), (lambda: None, None)],
    ids=["counted by the rows", "counted by the engine", "the engine had none", "the engine says nothing yet"],
)
def test_the_engines_own_count_of_hits_goes_first(clock, metrics, hits, rate):
    """With vllm each row reports all of its tokens as computed: that would show as 0%."""
    progress = Progress("soft_labels", 10, every_sec=30, prefix_hits=hits)
    progress.add(rows=1, errors=0, tokens=40, computed_tokens=30, started=999.0)
    assert progress.prefix_hit_rate == rate
    assert ("prefix hits" in str(progress)) == (rate is not None)


def test_tokens_that_nobody_counted_are_not_a_rate_of_zero(clock, metrics):
    progress = Progress("embeddings", 10, every_sec=30)
    progress.add(rows=1, errors=0, tokens=0, computed_tokens=0, started=999.0)
    assert "tokens" not in str(progress)
    assert "prefix" not in str(progress)


def test_the_metrics_add_up_to_the_line(clock, metrics):
    """A dashboard and the log must not disagree."""
    progress = Progress("soft_labels", 100, every_sec=15)
    clock[0] = 1010.0
    progress.add(rows=20, errors=3, tokens=200, computed_tokens=50, started=1000.0)
    clock[0] = 1020.0
    progress.add(rows=20, errors=0, tokens=200, computed_tokens=50, started=1010.0)
    assert {name: [value for value, _ in metric.values] for name, metric in metrics.items()} == {
        "rows": [20, 20],
        "errors": [3],
        "tokens": [200, 200],
        "remaining_rows": [80, 60],
        "rows_per_sec": [2.0, 2.0],
        "eta_sec": [40.0, 30.0],
        "prefix_hit_rate": [0.75],
    }
