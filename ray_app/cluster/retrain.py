"""Whether models and samples stay valid although some pins have changed."""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.cluster.buckets import map_buckets
from ray_app.tables.buckets import read_bucket
from ray_app.tables.manifest import Manifest, Output

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainPolicy:
    """Keeps models and samples valid while few pins have changed since (`retrain` in the config).

    Measured from the pins that the stage saw, so small changes add up. A deleted pin is never tolerated: the
    outputs may still name it.
    """

    pin_texts: Output
    inputs: tuple[str, ...]  # names of the stage's inputs that follow from the pins' texts
    max_changed_fraction: float  # of pins that are new or whose text differs

    @classmethod
    def of(cls, cfg: Config, pin_texts: Output, *inputs: str) -> "RetrainPolicy":
        """The policy of the config, for a stage of which these inputs follow from `pin_texts`."""
        return cls(pin_texts=pin_texts, inputs=inputs, max_changed_fraction=cfg.retrain.max_changed_fraction)

    def tolerates(self, store: Storage, manifest: Manifest, inputs: dict[str, str]) -> bool:
        """Return True if few pins have changed since an earlier run, and nothing else.

        Buckets with the same content are not read; of the others, tasks count the rows that differ.
        """
        steady = {name: content for name, content in inputs.items() if name not in self.inputs}
        before = {name: content for name, content in manifest.inputs.items() if name not in self.inputs}
        old, new = manifest.pin_texts, self.pin_texts
        if steady != before or old is None or old.num_buckets != new.num_buckets:
            return False
        if not all(map(store.exists, old.files)):
            logger.warning("%s: the texts that changes are measured from are gone (%s)", manifest.stage, old.path)
            return False
        hashes = zip(old.bucket_hashes, new.bucket_hashes, strict=True)
        differing = [number for number, (a, b) in enumerate(hashes) if a != b]

        def compare(number: int) -> tuple[int, int]:
            return count_changes(read_bucket(store, old, number), read_bucket(store, new, number))

        counts = map_buckets(compare, differing)
        changed, deleted = sum(some for some, _ in counts), sum(some for _, some in counts)
        kept = not deleted and changed <= self.max_changed_fraction * new.rows
        logger.info(
            "%s: %d of %d pins changed since: %s", manifest.stage, changed, new.rows, "kept" if kept else "again"
        )
        return kept


def count_changes(old: pa.Table, new: pa.Table) -> tuple[int, int]:
    """Rows of `new` that `old` lacks or has otherwise, and pins of `old` that `new` lacks. Both PIN_TEXTS."""
    place = pc.index_in(new["pin_id"], value_set=old["pin_id"])
    num_deleted = old.num_rows - (len(place) - place.null_count)
    known = new.filter(pc.is_valid(place))
    before = old.take(place.drop_null())
    same = np.ones(known.num_rows, bool)
    for name in new.column_names:
        a, b = _comparable(known[name]), _comparable(before[name])
        equal = pc.fill_null(pc.equal(a, b), False)
        both_null = pc.and_(pc.is_null(a), pc.is_null(b))
        same &= pc.or_(equal, both_null).to_numpy(zero_copy_only=False)
    return new.num_rows - int(same.sum()), num_deleted


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists as texts, which Arrow can compare; no text of ours holds the separator."""
    return pc.binary_join(column, "\x1f") if pa.types.is_list(column.type) else column
