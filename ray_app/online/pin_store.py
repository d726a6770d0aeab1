"""The vectors of a release, looked up by pin id, in memory-mapped files that all replicas on a machine share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.hashing import hash_pin_ids
from ray_app.base.storage import Storage
from ray_app.online.pin_files import HashIds, Kind, MappedFiles, Shard, StoreKey, open_files
from ray_app.tables.release import Release


@dataclass(frozen=True, kw_only=True, eq=False)
class PinStore:
    """Vectors and ids of a release's pins, or of one shard of them. Any number of threads may read.

    Vectors come back as float32, as long as the release's (1) within 1e-3, and hardly turned. The lowest cosine between
    a vector and what comes back, measured on 19,406 Chorus pins of 384 numbers: float16 1 - 5e-8, int8 1 - 8e-5.
    """

    num_pins: int  # in this shard
    folder: Path
    _files: MappedFiles
    _hash_ids: HashIds

    @classmethod
    def open(
        cls, store: Storage, release: Release, local_cache_dir: Path, vectors: Kind = "float16", *,
        shard: Shard | None = None, verify: bool = False, hash_ids: HashIds = hash_pin_ids,
    ) -> "PinStore":  # fmt: skip
        """Map the local copy of a release, after making it if it is not there or not whole.

        Args:
            vectors: How numbers are kept; `int8` takes half the memory of `float16`, and its errors are above.
            shard: (i, n) holds only the pins of which `shards_of` n shards says i; None: all.
            verify: Also read every local file and compare its hash: seconds per GB. Otherwise sizes, types and shapes
                are checked, which finds files that are cut short, but not flipped bits.
            hash_ids: Must be the same for all that share `local_cache_dir`.

        Raises:
            UserError: the release is damaged, holds NaN or is not what it says (then nothing of it is left behind); or
                `local_cache_dir` cannot be written.
            ValueError: a shard that cannot be.
        """
        if shard is not None and not 0 <= shard[0] < shard[1]:
            raise ValueError(f"shard {shard[0]} of {shard[1]}: shards are numbered from 0")
        key = StoreKey.of(release, vectors, shard, hash_ids)
        folder = Path(local_cache_dir) / key.folder_name
        files = open_files(store, release, folder, key, hash_ids, verify)
        return cls(num_pins=files.num_pins, folder=folder, _files=files, _hash_ids=hash_ids)

    @property
    def matrix(self) -> NDArray[Any]:
        """All vectors as they are stored, mapped and read-only: (num_pins, dim) float16, or int8 without `scales`."""
        return self._files.vectors

    @property
    def scales(self) -> NDArray[np.float32] | None:
        """(num_pins,) what each row of an int8 `matrix` is multiplied by; None: float16."""
        return self._files.scales

    def all_pin_ids(self) -> list[str]:
        """Ids of all rows, in order."""
        return [pin_id.decode() for pin_id in self._files.pin_ids.to_pylist()]

    def rows(self, pin_ids: Sequence[str]) -> NDArray[np.int64]:
        """Row of each pin; -1 where this store does not hold it. Shape (num_ids,); an id may come twice."""
        wanted = pa.array([text.encode("utf-8", "surrogatepass") for text in pin_ids], pa.large_binary())
        keys = self._hash_ids(pin_ids)
        found = np.full(len(wanted), -1, np.int64)
        place = np.searchsorted(self._files.hashes, keys)
        left = np.arange(len(wanted))  # ids that are not found yet; ids with equal hashes stand side by side
        while left.size:
            at = place[left]
            left = left[at < self.num_pins]
            left = left[self._files.hashes[place[left]] == keys[left]]
            rows = self._files.rows[place[left]].astype(np.int64)
            same = pc.equal(self._files.pin_ids.take(pa.array(rows)), wanted.take(pa.array(left)))
            same = same.to_numpy(zero_copy_only=False).astype(bool)
            found[left[same]] = rows[same]
            left = left[~same]
            place[left] += 1
        return found

    def vectors(self, rows: NDArray[np.integer] | Sequence[int]) -> NDArray[np.float32]:
        """Vectors of rows. Shape (num_rows, dim).

        Raises:
            IndexError: a row is not there. -1 is none, and would silently be the last pin.
        """
        rows = self._checked(rows)
        values = self._files.vectors[rows].astype(np.float32)
        if self._files.scales is not None:
            values *= self._files.scales[rows][:, None]
        return values

    def pin_ids(self, rows: NDArray[np.integer] | Sequence[int]) -> list[str]:
        """Ids of rows.

        Raises:
            IndexError: a row is not there.
        """
        return [pin_id.decode() for pin_id in self._files.pin_ids.take(pa.array(self._checked(rows))).to_pylist()]

    def _checked(self, rows: NDArray[np.integer] | Sequence[int]) -> NDArray[np.int64]:
        checked = np.asarray(rows, np.int64).reshape(-1)
        if checked.size and not 0 <= checked.min() <= checked.max() < self.num_pins:
            raise IndexError(f"rows are 0..{self.num_pins - 1}; leave out the -1 of unknown pins")
        return checked
