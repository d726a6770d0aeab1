"""A program's console: results and warnings only, everything in the log file, and nothing lost."""

import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ray_app.base.storage import Storage
from ray_app.cli import errors_in_one_line
from ray_app.console import quiet_console

logger = logging.getLogger("ray_app.stages.some.stage")


@pytest.fixture
def store(tmp_path):
    return Storage(str(tmp_path))


def log_of(err):
    """Text of the log file that the last line of stderr names."""
    path = err.splitlines()[-1].removeprefix("log: ")
    return Path(path).read_text()


def test_details_are_in_the_log_only_and_warnings_in_both(store, capsys):
    with quiet_console(store, "label", verbose=False):
        print("a result")
        logger.info("a detail")
        logger.warning("something to know")
        logger.info("5 of 9 rows", extra={"progress": True})
        logger.info("label ...", extra={"progress": "terminal"})
    out, err = capsys.readouterr()
    assert out == "a result\n"
    assert err.splitlines()[:-1] == ["something to know", "5 of 9 rows"]
    log = log_of(err)
    for text in ("a result", "a detail", "something to know", "5 of 9 rows"):
        assert text in log
    assert re.search(r"INFO +ray_app\.stages\.some\.stage: a detail", log)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("(MapWorker(MapBatches(Caption)) pid=123) loading the model", False),
        ("\x1b[36m(pid=123)\x1b[0m Reporting training result 2", False),
        ("\x1b[36m(RayTrainWorker pid=12, ip=10.0.0.2)\x1b[0m RuntimeError: CUDA out of memory", True),
        ("(raylet) [2026-11-30 17:00:09,096 E 4300 4300] file_system_monitor.cc: /tmp is over 95% full", True),
        ("(MapWorker pid=1) x.py:3: FutureWarning: the default will change", False),
    ],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_workers_reach_the_console_with_alarms_only(store, capsys, line, shown, stream):
    with quiet_console(store, "label", verbose=False):
        print(line, file=getattr(sys, stream))
        logger.info("a detail")
    captured = capsys.readouterr()
    assert (line in {"stdout": captured.out, "stderr": captured.err}[stream]) == shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", line) in log_of(captured.err)


def test_libraries_warnings_are_in_the_log(store, capsys):
    with quiet_console(store, "label", verbose=False):
        warnings.simplefilter("always")
        warnings.warn_explicit("will change", FutureWarning, "/site-packages/torch/x.py", 3)
        warnings.warn_explicit("mind this", UserWarning, "/site-packages/ray_app/x.py", 3)
    err = capsys.readouterr().err
    assert "mind this" in err and "will change" not in err and "will change" in log_of(err)


def test_a_program_whose_console_has_all_leaves_no_log(store, capsys, tmp_path):
    with quiet_console(store, "release", verbose=False):
        print("all", end="")
    out, err = capsys.readouterr()
    assert (out, err) == ("all\n", "")
    assert not list((tmp_path / "logs").iterdir())


def test_an_error_leaves_the_streams_as_they_were(store, capsys):
    before = (sys.stdout, sys.stderr, logging.getLogger().level, list(logging.getLogger().handlers))
    with pytest.raises(RuntimeError), quiet_console(store, "label", verbose=False):
        print("half a line", end="")
        raise RuntimeError
    assert before == (sys.stdout, sys.stderr, logging.getLogger().level, list(logging.getLogger().handlers))
    out, err = capsys.readouterr()
    assert out == "half a line\n"
    assert "RuntimeError" in log_of(err)


def test_verbose_shows_all_and_writes_no_file(store, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: seen.append(settings["level"]))
    with quiet_console(store, "label", verbose=True):
        logger.info("a detail")
    assert seen == [logging.INFO] and not (tmp_path / "logs").exists()


def test_an_interrupt_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop, errors_in_one_line():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


NATIVE = """
import os, sys
from ray_app.base.storage import Storage
from ray_app.console import quiet_console
with quiet_console(Storage(sys.argv[1]), "label", verbose=False):
    os.write(2, b"core_worker.cc: a note\\n")
    print("a warning: WARNING", file=sys.stderr)
    os.write(2, b"core_worker.cc: another\\n")
os.write(2, b"after\\n")
"""


def test_native_codes_stderr_is_in_the_log(tmp_path):
    done = subprocess.run([sys.executable, "-c", NATIVE, str(tmp_path)], capture_output=True, text=True, check=True)
    shown, path, after = done.stderr.splitlines()
    assert (shown, after) == ("a warning: WARNING", "after")
    log = Path(path.removeprefix("log: ")).read_text().splitlines()
    assert log == ["core_worker.cc: a note", "a warning: WARNING", "core_worker.cc: another"]
