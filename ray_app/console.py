"""Output of a program: results and warnings on the console, everything else in a log file.

with quiet_console(store, "label", verbose=False):
    print("a result")                      # console and log file
    logging.info("a detail")               # log file
    logging.warning("something to know")   # console and log file

Ray, its workers, transformers and others write to stdout and stderr as they like. Their lines go to the log file; those that
report a warning or an error reach the console too, unless they are known to be harmless (`_NOISE`).
"""

import io
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.umask import make_folders

logger = logging.getLogger(__name__)

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FROM_WORKER = re.compile(r"^\((raylet|autoscaler|.*?\bpid=\d+[^)]*)\)")
_ALARM = re.compile(
    r"\b(WARN|WARNING|ERROR|CRITICAL|FATAL|Error|Exception|Traceback)\b|\b[EF] \d+ \d+\] |OutOfMemory|out of memory"
)
# Written by libraries in runs in which nothing is wrong.
_NOISE = re.compile(
    "|".join(
        (
            "Progress bars disabled",
            "FutureWarning|DeprecationWarning|UserWarning|ResourceWarning",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
            "metrics exporter agent|metrics_agent|event_aggregator|dashboard_agent",
            "Tip: ",
        )
    )
)


class _Log:
    """The log file."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._shown_bytes = file, 0

    def write_line(self, line: str, shown: bool) -> None:
        if not self._file.closed:  # a thread of Ray's may be late
            self._file.write(line + "\n")
            self._file.flush()
            self._shown_bytes += shown * len(f"{line}\n".encode(errors="backslashreplace"))

    @property
    def has_more(self) -> bool:
        """True if it has lines that the console has not, such as those that native code writes into it."""
        return os.fstat(self._file.fileno()).st_size > self._shown_bytes


class _Status:
    """The line of a terminal that shows how far the present stage is, until the next line is written over it."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal, self._shown = terminal, False
        self.is_possible = terminal.isatty()

    def show(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._terminal.write(f"\r\x1b[K{text[:width]}")
        self._terminal.flush()
        self._shown = True

    def clear(self) -> None:
        if self._shown:
            self._terminal.write("\r\x1b[K")
            self._terminal.flush()
            self._shown = False


class _Stream(io.TextIOBase):
    """In place of stdout or stderr: whole lines to the log, and those that `_shows` chooses to the console."""

    def __init__(self, console: TextIO, log: _Log, status: _Status, is_stdout: bool) -> None:
        self.console, self._log, self._status, self._is_stdout = console, log, status, is_stdout
        self._rest, self._lock = "", threading.Lock()  # Ray prints what workers write from a thread of its own

    def fileno(self) -> int:
        return self.console.fileno()

    def isatty(self) -> bool:
        return False  # no progress bars of libraries

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text.replace("\r\n", "\n")).split("\n")
            for line in lines:
                self._write_line(line)
        return len(text)

    def _write_line(self, line: str) -> None:
        plain = _ANSI.sub("", line).rpartition("\r")[2]
        shown = self._shows(plain)
        self._log.write_line(plain, shown)
        if shown:
            self._status.clear()
            self.console.write(line + "\n")
            self.console.flush()

    def _shows(self, line: str) -> bool:
        if self._is_stdout and not _FROM_WORKER.match(line):
            return True
        return bool(_ALARM.search(line)) and not _NOISE.search(line)

    def flush(self) -> None:
        self.console.flush()

    def finish(self) -> None:
        """Write the last line, if it has no end."""
        if self._rest:
            self.write("\n")


class _Handler(logging.Handler):
    """All records to the log. Warnings to the console, and records with `extra={"progress": True}`.

    On a terminal progress is a line that the next one replaces; `"terminal"` instead of True is for a terminal only.
    """

    def __init__(self, console: TextIO, log: _Log, status: _Status) -> None:
        super().__init__()
        self.console, self._log, self._status = console, log, status
        self.setFormatter(logging.Formatter(_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        progress = getattr(record, "progress", None)
        shown = record.levelno >= logging.WARNING and not self._is_of_a_library(record)
        if progress and self._status.is_possible:
            self._status.show(record.getMessage())
        elif progress is True or shown:
            self._status.clear()
            self.console.write(record.getMessage() + "\n")
            self.console.flush()
        self._log.write_line(self.format(record), shown or bool(progress))

    @staticmethod
    def _is_of_a_library(record: logging.LogRecord) -> bool:
        return record.name == "py.warnings" and "ray_app" not in record.getMessage().partition("\n")[0]


@contextmanager
def _native_stderr_in(file: TextIO, stderr: TextIO) -> Iterator[TextIO]:
    """Let native code, such as Ray's core, write its stderr into the file; gives another stream of the console."""
    try:
        descriptor = stderr.fileno()
    except (OSError, ValueError):  # a notebook, or a test that captures
        yield stderr
        return
    stderr.flush()
    kept = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        with os.fdopen(os.dup(kept), "w", buffering=1, encoding=stderr.encoding, errors="backslashreplace") as console:
            yield console
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


@contextmanager
def quiet_console(store: Storage, program: str, verbose: bool) -> Iterator[None]:
    """Redirect stdout, stderr and logging of this process until the block ends.

    The last line names the log file, which is deleted if the console has all of it.

    Args:
        store: Of the run: the log file is in `logs/` of its folder, or in the temporary folder if the run is not on a local disk.
        program: Name in the file's name.
        verbose: Show everything on the console, and write no file.
    """
    root = logging.getLogger()
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
        yield
        return
    folder = Path(store.full_path("logs")) if store.is_local else Path(tempfile.gettempdir()) / f"ray_app-{os.getuid()}"
    make_folders(folder)
    path = folder / f"{program}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    stdout, stderr, level = sys.stdout, sys.stderr, root.level
    with (
        path.open("a", encoding="utf-8", errors="backslashreplace") as file,
        _native_stderr_in(file, stderr) as console,
    ):
        log, status = _Log(file), _Status(console)
        handler = _Handler(console, log, status)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        logging.captureWarnings(True)
        sys.stdout = _Stream(stdout, log, status, is_stdout=True)
        sys.stderr = errors = _Stream(console, log, status, is_stdout=False)
        try:
            yield
        except Exception as error:
            if not isinstance(error, UserError):
                logger.info("the program ended early", exc_info=True)
            raise
        finally:
            sys.stdout.finish()
            errors.finish()
            status.clear()
            sys.stdout, sys.stderr = stdout, stderr
            errors.console = stderr  # Ray keeps the stream, and writes to it when the process ends
            logging.captureWarnings(False)
            root.removeHandler(handler)
            root.setLevel(level)
            if log.has_more:
                print(f"log: {path}", file=console)
            else:
                path.unlink()
