"""Who else may read what we write: nobody, unless the operator says so.

A run holds what people searched for, in logs, quarantine and reports. `RELEVANCE_UMASK=027` lets the group read, 007 lets it
write too, as a cluster needs whose nodes run under different users; set it on every node and wherever programs start.
"""

import os
from pathlib import Path

from ray_app.errors import UserError

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
        if not part.exists():
            part.mkdir(exist_ok=True)
            part.chmod(0o777 & ~umask())
