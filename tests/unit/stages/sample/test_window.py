import itertools
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ray_app.base.config import SampleConfig
from ray_app.base.errors import UserError
from ray_app.base.schemas import SEARCH_LOG
from ray_app.stages.sample.window import Window

HOURS = [0, 23, 24, 47, 48, 60]  # after midnight of 1 January
START = datetime(2024, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=365)


def make_log(hours=HOURS):
    times = [START + timedelta(hours=h) for h in hours]
    columns = {
        "event_id": [str(h) for h in hours], "timestamp": times, "query": ["q"] * len(hours),
        "locale": ["en"] * len(hours), "action": ["click"] * len(hours),
    }  # fmt: skip
    return pa.table([columns.get(n, [None] * len(hours)) for n in SEARCH_LOG.names], schema=SEARCH_LOG)


def split(log=None, **window):
    """Hours of the events in the window, and before it."""
    log = make_log() if log is None else log
    found = window_of(SampleConfig(**window), log, NOW)
    return tuple([int(i) for i in part["event_id"].to_pylist()] for part in found.split(log))


def window_of(cfg, log, now):
    return Window.of(cfg, pc.max(log["timestamp"]).as_py(), now)


@pytest.mark.parametrize(
    ("window", "inside", "before"),
    [
        ({"since": "2024-01-02", "until": "2024-01-03"}, [24, 47], [0, 23]),
        ({"since": "2024-01-01T23:00:00Z"}, [23, 24, 47, 48, 60], [0]),
        ({"since": "2024-01-02T00:00:00+01:00", "until": "2024-01-02T00:00:00.001+00:00"}, [23, 24], [0]),
        ({"until": "2024-01-02"}, [0, 23], []),
        ({"days": 1}, [48, 60], [0, 23, 24, 47]),
        ({"days": 2}, [24, 47, 48, 60], [0, 23]),
        ({"days": 99}, HOURS, []),
        ({"days": 1, "until": "2024-01-02T12:00:00"}, [23, 24], [0]),
    ],
)
def test_a_window_holds_its_start_and_not_its_end(window, inside, before):
    assert split(**window) == (inside, before)


def test_without_a_window_there_is_none():
    assert window_of(SampleConfig(), make_log(), NOW) is None


def test_consecutive_days_share_no_event_and_miss_none():
    days = ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"]
    assert [hour for a, b in itertools.pairwise(days) for hour in split(since=a, until=b)[0]] == HOURS


def test_the_last_day_stands_still_while_it_fills():
    """Else each new event would draw another sample, with labels that nobody has paid for yet."""
    cfg = SampleConfig(days=1)
    assert window_of(cfg, make_log([0, 48]), NOW) == window_of(cfg, make_log([0, 48, 71]), NOW)
    assert window_of(cfg, make_log([0, 48]), NOW) != window_of(cfg, make_log([0, 48, 72]), NOW)


def test_the_last_day_is_not_after_the_present():
    """Else one event of tomorrow has the sampled day for itself."""
    now = START + timedelta(hours=50)
    assert window_of(SampleConfig(days=1), make_log([0, 48, 72]), now) == window_of(
        SampleConfig(days=1), make_log([0, 48]), now
    )


def test_each_window_has_its_own_seed():
    windows = [window_of(SampleConfig(since=f"2024-01-{d:02d}"), make_log(), NOW) for d in range(1, 29)]
    assert len({window.seed(s) for window in windows for s in (1, 2)}) == 56
    assert windows[0].seed(1) == Window(since=START, until=None).seed(1)


def test_a_window_without_events_says_when_there_are_some():
    found = window_of(SampleConfig(since="2025-01-01"), make_log(), NOW)
    assert found.split(make_log())[0].num_rows == 0
    assert "no event" in str(found.no_event(START, NOW)) and "from 2024-01-01 00:00" in str(found.no_event(START, NOW))
    assert "it is empty" in str(found.no_event(None, None))


def test_an_empty_log_has_no_last_days():
    with pytest.raises(UserError, match="empty"):
        window_of(SampleConfig(days=3), SEARCH_LOG.empty_table(), NOW)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"since": "2024-01-02", "days": 1}, "not both"),
        ({"since": "2024-01-02", "until": "2024-01-02"}, "later than since"),
        ({"since": 20240102}, "write a date"),
        ({"until": "20240102"}, "write a date"),
        ({"trending_boost": 2.0, "until": "2024-01-02"}, "no time before"),
        ({"pilot": "runs/pilot"}, "would not read it"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SampleConfig(**settings)
