"""Files of a release on this machine: sizes and hashes, garbage."""

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from ray_app.base.cache_folder import lock_path, remove
from ray_app.base.filesystem import TEMP_PREFIX
from ray_app.base.hashing import sha256_of

_OF_A_RELEASE = re.compile(r"([0-9a-f]{16})-.+")


def collect_local(local_cache_dir: Path, keep: set[str]) -> list[str]:
    """Delete what this machine has made of releases that are not served any more; returns the folders' names.

    These are all folders named `<release id>-...`, indexes too. Stores that are open go on: their files live until they
    are unmapped.
    """
    dropped = []
    for path in sorted(Path(local_cache_dir).glob("*-*")):
        match = _OF_A_RELEASE.fullmatch(path.name)
        if match and match[1] not in keep and path.is_dir():
            remove(path)
            lock_path(path).unlink(missing_ok=True)
            dropped.append(path.name)
    for path in Path(local_cache_dir).glob(f"{TEMP_PREFIX}*"):  # of builders that were killed
        if path.is_dir() and path.stat().st_mtime < time.time() - 3600:
            shutil.rmtree(path, ignore_errors=True)
    return dropped


def write_meta(folder: Path, about: dict[str, Any]) -> None:
    """Write meta.json: what the folder was made from, and the size and hash of each of its files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256_of(path)] for path in paths}
    (folder / "meta.json").write_text(json.dumps(about | {"files": files}, indent=2))
    for path in (*paths, folder / "meta.json"):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut can leave files of the right size with no content


def check_files(folder: Path, files: dict[str, tuple[int, str]], verify: bool) -> None:
    """Compare sizes, and with `verify` hashes, with those in meta.json.

    Raises:
        ValueError: which file is missing, cut short or changed.
    """
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.exists():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{name} is {path.stat().st_size} bytes long, not {size}")
        if verify and sha256_of(path) != sha256:
            raise ValueError(f"{name} was changed")
