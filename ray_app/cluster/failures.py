"""Failures of Ray jobs as one line for the user."""

import re

from ray_app.base.errors import UserError


class BlockFailedError(Exception):
    """Carries the one line that the user should read from an actor to the driver, through Ray's tracebacks."""


def explain_failure(what: str, error: Exception, max_restarts: int) -> UserError:
    """The one line that a user should read of a failed Ray Data job.

    Args:
        what: Name of the job.
        error: Of Ray.
        max_restarts: Of an actor.
    """
    # Ray ships the traceback as text, and the exception's own object not at all.
    if told := re.search(rf"{BlockFailedError.__name__}: (.*)", str(error)):
        return UserError(told.group(1))
    if "error raised in its creation task" in str(error):
        last = str(error).strip().splitlines()[-1]
        return UserError(f"{what}: a worker could not start: {line(last)}; fix the cause and run again")
    return UserError(
        f"{what}: a worker process died {max_restarts + 1} times, most often for lack of memory: lower "
        f"batch_size or num_actors and run again, finished blocks are kept ({line(str(error))})"
    )


def fatal_line(what: str, error: Exception) -> str:
    """Message of a `BlockFailedError`: one line for the user."""
    if isinstance(error, UserError):
        return line(str(error))
    told = line(f"{type(error).__name__}: {error}")
    return f"{what}: {told}; fix the cause and run again, finished blocks are kept"


def line(text: str) -> str:
    """Text on one line, at most 500 characters."""
    return " ".join(text.split())[:500]
