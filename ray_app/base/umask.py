"""File permissions of our output: readable by its owner only, unless RELEVANCE_UMASK says otherwise.

A run holds what people searched for, in logs, quarantine and reports. `RELEVANCE_UMASK=027` lets the group read, 007 lets it
write too, as a cluster needs whose nodes run under different users; set it on every node and wherever programs start.
"""

import logging
import os
import stat
from functools import cache
from pathlib import Path

from ray_app.base.errors import UserError

logger = logging.getLogger(__name__)

VARIABLE = "RELEVANCE_UMASK"


def umask() -> int:
    """The bits that no file or folder of ours has; 077 by default.

    Raises:
        UserError: the variable is no umask.
    """
    text = os.environ.get(VARIABLE) or "077"
    try:
        found = int(text, 8)
    except ValueError:
        found = -1
    if not 0 <= found <= 0o077:
        raise UserError(f"the environment variable {VARIABLE} is {text!r}; write three octal digits that leave you all, such as 077 or 027")  # fmt: skip
    return found


def keep_private() -> None:
    """Let this process and those that it starts write no file that others may read. First in every entry point."""
    os.umask(umask())


def make_folders(folder: Path) -> None:
    """`mkdir -p` with our umask, whatever the process has: Ray starts workers with that of its node."""
    for part in (*reversed(folder.parents), folder):
        try:
            part.mkdir()
        except OSError:  # it is there, or lies where only its owner makes folders
            if part.is_dir():
                continue
            raise
        inherited = part.stat().st_mode & stat.S_ISGID  # by which files below belong to the group of the folder above
        set_mode(part, inherited | (0o777 & ~umask()))


def set_mode(target: Path | int, mode: int) -> None:
    """`chmod` of a path or descriptor of ours; a disk that knows no modes (vfat, some CIFS) is said once."""
    try:
        os.chmod(target, mode)  # noqa: PTH101 - takes descriptors too
    except PermissionError:
        _warn_of_modes()


@cache
def _warn_of_modes() -> None:
    logger.warning("this disk keeps no file modes: who else may read what is written there is its mount's decision")
