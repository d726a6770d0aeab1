"""CURRENT, the alias of the release in service: read, promote, roll back."""

from typing import NamedTuple

from ray_app.base.errors import UserError
from ray_app.base.storage import CorruptFileError, Storage
from ray_app.tables.release import Release, describe_releases, find_release, missing_files, read_parts, read_release

CURRENT = "releases/CURRENT"


class Current(NamedTuple):
    """Content of the file CURRENT."""

    id: str
    previous: str | None  # served before; None: nothing was


def promote(store: Storage, release_id: str) -> Release:
    """Serve a release from now on, after checking that it is whole and that all it needs is there.

    It stays until somebody promotes another one or `embed` publishes a new one; an `embed` that has nothing to do
    leaves it alone.

    Args:
        release_id: Its id, or the beginning of it if no other id begins so.

    Raises:
        UserError: there is no such release, it is damaged, or a file that it needs is gone. CURRENT is untouched then.
    """
    release = find_release(store, release_id)
    for _ in read_parts(store, release):
        pass
    if gone := missing_files(store, release):
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise UserError(
            f"release {release.id} cannot be served, files of its sources are missing: {gone[0]}{more}; "
            "promote another one, or run the stages and embed again"
        )
    move_current(store, release.id)
    return release


def rollback(store: Storage) -> Release:
    """Serve the release again that was served before the current one. Twice is where it started.

    Raises:
        UserError: nothing was served before, it is gone, or it cannot be served. CURRENT is untouched then.
    """
    now = read_current(store)
    if now is None or now.previous is None:
        raise UserError(
            f"no release was served before the current one, so there is none to go back to; {describe_releases(store)}"
        )
    if read_release(store, now.previous) is None:
        raise UserError(
            f"release {now.previous}, which was served before, was collected as garbage or is of another version of "
            f"this code; promote another one; {describe_releases(store)}"
        )
    return promote(store, now.previous)


def read_current(store: Storage) -> Current | None:
    """Ids that CURRENT holds, without looking at the releases; None if nothing was ever published.

    Raises:
        CorruptFileError: CURRENT is not what this module writes.
    """
    if not store.exists(CURRENT):
        return None
    raw = store.read_json(CURRENT)
    if not isinstance(raw, dict) or not isinstance(raw.get("id"), str):
        raise CorruptFileError(f"{store.shown}/{CURRENT} names no release; delete it and promote one")
    return Current(raw["id"], raw.get("previous"))


def current_release(store: Storage) -> Release | None:
    """The release that CURRENT names; None if nothing was ever published.

    Raises:
        UserError: CURRENT names a release that is not there.
    """
    now = read_current(store)
    if now is None:
        return None
    release = read_release(store, now.id)
    if release is None:
        raise UserError(
            f"{store.shown}/{CURRENT} names release {now.id}, which does not exist or was written by another version of this code; "
            "run embed again"
        )
    return release


def move_current(store: Storage, release_id: str) -> None:
    """Let CURRENT name another release; the last step of a release, of `promote` and of `rollback`."""
    now = read_current(store)
    if now is None or now.id != release_id:
        store.write_json(CURRENT, Current(release_id, now.id if now else None)._asdict())
