"""Folders of this machine that nobody else can change, and one writer at a time in them.

Native code, models and indexes are loaded from caches of this machine, so whoever can write there, or put another folder in
their place, runs code as us. A cache is therefore looked at as ssh looks at its keys: from the root of the machine down, each
folder must be ours or root's and not writable by others, except sticky ones such as /tmp, and the last one is ours alone.
"""

import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ray_app.base.errors import UserError, one_line
from ray_app.base.filesystem import TEMP_PREFIX

logger = logging.getLogger(__name__)
T = TypeVar("T")

CACHE_ROOT = "RELEVANCE_CACHE_ROOT"
"""Environment variable: a folder that is trusted as it is, with what lies above it; caches are made in it. For pods, where an
emptyDir belongs to root and is writable by all, but nobody else is there."""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder(name: str) -> Path:
    """A folder of this user for copies and compiled things, made if absent: only they can read or write it.

    It lies in `RELEVANCE_CACHE_ROOT`, or else below `XDG_CACHE_HOME` or `~/.cache`, or else, where the home folder cannot be
    written, in the temporary folder under a name with the user's id.

    Raises:
        UserError: others can write to it or to a folder above; the message names that folder and what to do.
    """
    mine = f"relevance-{os.geteuid()}"
    if root := os.environ.get(CACHE_ROOT):
        return private_folder(Path(root) / mine / name)
    if (root := os.environ.get("XDG_CACHE_HOME", "")).startswith("/"):  # the standard: a relative one is ignored
        return private_folder(Path(root) / "relevance" / name)
    try:
        home = Path.home()
        if not home.is_absolute():
            raise RuntimeError("HOME is a relative path")
        return _private(home / ".cache/relevance" / name)
    except (OSError, RuntimeError):  # the latter: this user has no home
        return private_folder(Path(tempfile.gettempdir()) / mine / name)


def private_folder(path: Path) -> Path:
    """The folder itself, made if absent, after checking that nobody else can write to it or put another in its place.

    Raises:
        UserError: see `cache_folder`.
    """
    try:
        return _private(path.absolute())
    except OSError as error:
        raise UserError(
            f"{path} cannot be used for what this machine keeps ({one_line(error)}); {_OTHERWISE}"
        ) from None


def _private(path: Path) -> Path:
    above = next(part for part in (path, *path.parents) if part.exists())
    if not above.is_dir():  # such as /dev/null, the home of many a service
        raise NotADirectoryError(f"{above} is no folder")
    _check(above)
    for part in (*reversed(path.parents), path):  # pathlib would give those above the default mode
        if not part.exists():
            part.mkdir(mode=0o700, exist_ok=True)
    require_ours(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:  # of an older version: others could read it, but not write
        path.chmod(0o700)
    return path


def require_ours(path: Path) -> None:
    """Refuse a file or folder that somebody else could have written, or could put another in the place of.

    Raises:
        UserError: which part of its path is to blame, and what to do.
        OSError: it is not there, or cannot be looked at.
    """
    path = path.absolute()
    path.stat()  # it is there, and its links go in no circle
    _check(path)
    if (found := path.stat()).st_uid != os.geteuid():
        raise _not_ours(path, path, f"belongs to user {found.st_uid}, not to {os.geteuid()} who runs this", "delete it")
    if found.st_mode & _OTHERS_WRITE:  # sticky or not: what lies in it may be anybody's
        raise _not_ours(
            path, path, "can be written by others", f"delete it, or `chmod go-w {path}` if all in it is yours"
        )


_OTHERWISE = (
    "or keep it elsewhere: set serve.local_cache_dir, XDG_CACHE_HOME or, in a container without other users, "
    f"{CACHE_ROOT} (docs/serving.md)"
)


def _check(path: Path) -> None:
    """Every part of the path from the root on, links and what they point to too."""
    trusted = os.environ.get(CACHE_ROOT)
    for part in (*reversed(path.parents), path):
        if trusted and Path(trusted).absolute().is_relative_to(part):
            continue
        found = part.lstat()
        if found.st_uid not in (0, os.geteuid()):
            raise _not_ours(path, part, f"belongs to user {found.st_uid}", "let its owner be you or root")
        if stat.S_ISLNK(found.st_mode):
            _check(part.parent / part.readlink())
        elif found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
            raise _not_ours(path, part, "can be written by others", f"`chmod go-w {part}`")


def _not_ours(path: Path, part: Path, what: str, remedy: str) -> UserError:
    return UserError(
        f"{path} is not used, since others could change it: {part} {what}; {remedy}, {_OTHERWISE}"
    )  # fmt: skip


# --- one writer at a time ---


def lock_path(folder: Path) -> Path:
    """Path of the file that `one_at_a_time` locks."""
    return folder.with_name(f".lock-{folder.name}")


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[bool]:
    """Wait until no other process or thread of this machine makes the folder.

    Yields:
        Whether that is sure; some network filesystems know no locks, and then the last rename decides.
    """
    with lock_path(folder).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when this process dies
        except OSError as error:
            logger.warning("%s: no locks here (%s), several replicas may do the same work", folder, one_line(error))
            yield False
        else:
            yield True


def found_or_made(folder: Path, find: Callable[[], T | None], make: Callable[[], None]) -> T | None:
    """Load from a folder, or create its content first if it is missing: one process creates it while the others wait."""
    found = find()
    if found is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder) as alone:
            found = find()  # another one may have made it while we waited
            if found is None:
                if alone:  # builders that were killed have left these; a crash loop would fill the disk
                    for path in folder.parent.glob(f"{TEMP_PREFIX}{folder.name}-{'[0-9a-f]' * 32}"):
                        shutil.rmtree(path, ignore_errors=True)
                make()
                found = find()
    return found


@contextmanager
def put_in_place(folder: Path) -> Iterator[Path]:
    """A new folder beside this one, which takes its place after the block; another's that is there by then stays."""
    temp = folder.with_name(f"{TEMP_PREFIX}{folder.name}-{uuid.uuid4().hex}")
    temp.mkdir()
    try:
        yield temp
        try:
            temp.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            logger.info("%s was made by another process meanwhile", folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def remove(folder: Path) -> None:
    """Take a folder away in one step, so that nobody finds half of it, and delete it."""
    gone = folder.with_name(f"{TEMP_PREFIX}{folder.name}-{uuid.uuid4().hex}")
    try:
        folder.rename(gone)
    except FileNotFoundError:  # another process was faster
        return
    shutil.rmtree(gone, ignore_errors=True)
