"""The part of the log that a daily run samples."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import SampleConfig
from ray_app.base.errors import UserError

_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The time from `since` up to, but not including, `until`; None: open on that side. In UTC."""

    since: datetime | None
    until: datetime | None

    @classmethod
    def of(cls, cfg: SampleConfig, newest: datetime | None, now: datetime) -> "Window | None":
        """The window that the config asks for; None: the whole log.

        The last days of a log are whole days, so that the window stands still while the newest day fills.

        Args:
            cfg: Which part of the log.
            newest: Time of the log's last event; None: it is empty.
            now: The present when the log was read. Ingest lets events be a day ahead of it; one such would else have the last
                day for itself.

        Raises:
            UserError: the last days of an empty log.
        """
        if cfg.days is None:
            return cls(since=cfg.since, until=cfg.until) if cfg.since or cfg.until else None
        until = cfg.until
        if until is None:
            if newest is None:
                raise UserError("sample.days: the search log is empty, so it has no last days; leave sample.days out")
            until = datetime.combine(min(newest, now).astimezone(UTC), time(), UTC) + timedelta(days=1)
        return cls(since=until - timedelta(days=cfg.days), until=until)

    def split(self, log: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Rows of the log (schema SEARCH_LOG) in the window, and those before it."""
        at = log["timestamp"].cast(_TIME)
        is_before = pc.less(at, pa.scalar(self.since, _TIME)) if self.since else pa.array([False] * log.num_rows)
        inside = log.filter(pc.and_(pc.invert(is_before), pc.less(at, pa.scalar(self.until or datetime.max, _TIME))))
        return inside, log.filter(is_before)

    def no_event(self, oldest: datetime | None, newest: datetime | None) -> UserError:
        """The error of a window without events, of which nothing would be sampled.

        Args:
            oldest, newest: Of the log; None: it is empty.
        """
        has = "it is empty" if oldest is None else f"its events are from {oldest} to {newest}"
        return UserError(f"sample.since, until, days: no event of the search log is in {self}; {has}")

    def seed(self, seed: int) -> int:
        """A seed of this window's own, so that the runs of two days do not draw the same pairs."""
        return int.from_bytes(hashlib.blake2b(f"{seed} {self}".encode(), digest_size=8).digest(), "little")

    def __str__(self) -> str:
        return f"[{_shown(self.since)}, {_shown(self.until)})"


def _shown(at: datetime | None) -> str:
    return at.isoformat() if at else "…"
