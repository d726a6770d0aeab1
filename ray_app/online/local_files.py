"""Files of a release on this machine: hashes, locks, garbage."""

import hashlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import IO, Any

from ray_app.base.cache_folder import lock_path, remove
from ray_app.base.filesystem import TEMP_PREFIX

_OF_A_RELEASE = re.compile(r"([0-9a-f]{16})-.+")


def collect_local(local_dir: Path, keep: set[str]) -> list[str]:
    """Delete what this machine has made of releases that are not served any more; returns the folders' names.

    These are all folders named `<release id>-...`, indexes too. Stores that are open go on: their files live until they
    are unmapped.

    Args:
        local_dir: As in `PinStore.open`.
        keep: Ids of releases whose folders stay.
    """
    dropped = []
    for path in sorted(Path(local_dir).glob("*-*")):
        match = _OF_A_RELEASE.fullmatch(path.name)
        if match and match[1] not in keep and path.is_dir():
            remove(path)
            lock_path(path).unlink(missing_ok=True)
            dropped.append(path.name)
    for path in Path(local_dir).glob(f"{TEMP_PREFIX}*"):  # of builders that were killed
        if path.is_dir() and path.stat().st_mtime < time.time() - 3600:
            shutil.rmtree(path, ignore_errors=True)
    return dropped


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(file: IO[Any]) -> None:
    """Flush a file to the disk."""
    file.flush()
    os.fsync(file.fileno())  # else a power cut can leave files of the right size with no content
