"""Tables between the steps of one job: in files that all tasks see, or in this process if it does all of the work."""

from dataclasses import dataclass, field

import pyarrow as pa

from ray_app.base.storage import Storage


@dataclass
class Scratch:
    """Tables by name.

    Args:
        store: Where the files are.
        folder: Of the files; None: the tables stay in this process.
    """

    store: Storage | None
    folder: str | None
    _kept: dict[str, pa.Table] = field(default_factory=dict)

    def write(self, name: str, table: pa.Table) -> None:
        """Write a table, or another one of that name."""
        if self.folder is None:
            self._kept[name] = table
            return
        assert self.store is not None
        self.store.write_table(f"{self.folder}/{name}.parquet", table)

    def read(self, name: str) -> pa.Table:
        """A table that was written."""
        if self.folder is None:
            return self._kept[name]
        assert self.store is not None
        return self.store.read_table(f"{self.folder}/{name}.parquet")

    def has(self, name: str) -> bool:
        """Return True if a table of that name was written."""
        if self.folder is None:
            return name in self._kept
        assert self.store is not None
        return self.store.exists(f"{self.folder}/{name}.parquet")

    def delete(self) -> None:
        """Delete all of them."""
        self._kept.clear()
        if self.folder is not None and self.store is not None:
            self.store.delete(self.folder)
