"""The line that a person follows for days says what is true."""

import pytest

import ray_app.progress as progress_module
from ray_app.progress import Progress


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
