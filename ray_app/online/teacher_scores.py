"""Teacher scores of pairs by hash: 10 bytes per pair, so that millions fit next to the models."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from ray_app.base.columns import matrix_or_zero
from ray_app.base.hashing import Keys, text_keys
from ray_app.base.storage import Storage
from ray_app.base.text import normalize_query
from ray_app.models.head import expected_grade
from ray_app.tables.manifest import Output, read_output

logger = logging.getLogger(__name__)

MAX_PAIRS = 5_000_000  # beyond it the page goes without: a table of a billion labels does not belong into a replica


@dataclass(frozen=True)
class TeacherScores:
    """Expected grades by pair."""

    keys: np.ndarray  # (n,) uint64, sorted hashes of (query, locale, pin id)
    values: np.ndarray  # (n,) float16
    queries: list[str]  # frequent queries of the labels that others may be shown, as examples

    @classmethod
    def none(cls) -> "TeacherScores":
        """Knows nothing."""
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.float16), [])

    @classmethod
    def load(cls, store: Storage, soft_labels: Output, public: Output | None) -> "TeacherScores":
        """Read table `soft_labels`, unless it is too large.

        Args:
            public: PUBLIC_QUERIES; None: it is not known which queries may be shown, so none is.
        """
        if soft_labels.rows > MAX_PAIRS:
            logger.info("%d soft labels are too many to show the teacher's scores", soft_labels.rows)
            return cls.none()
        table = read_output(store, soft_labels, ["query", "locale", "pin_id", "probs", "error"])
        table = table.filter(pc.is_null(table["error"]))
        queries = [normalize_query(query) for query in table["query"].to_pylist()]
        keys = _keys(queries, table["locale"].to_pylist(), table["pin_id"].to_pylist())
        order = np.argsort(keys, kind="stable")
        values = expected_grade(matrix_or_zero(table["probs"])).astype(np.float16)
        may_be_shown = set(read_output(store, public, ["query"])["query"].to_pylist()) if public else set()
        frequent = Counter(query for query in queries if query in may_be_shown)
        return cls(keys[order], values[order], [query for query, _ in frequent.most_common(200)])

    def score(self, query: str, locale: str, pin_id: str) -> float | None:
        """The teacher's expected grade of a pair, 1..5; None: it never read it."""
        (key,) = _keys([query], [locale], [pin_id])
        at = int(np.searchsorted(self.keys, key))
        return round(float(self.values[at]), 2) if at < len(self.keys) and self.keys[at] == key else None

    def examples(self, num: int) -> list[str]:
        """Some queries, spread over the frequent ones."""
        step = max(1, len(self.queries) // num) if num else 1
        return self.queries[::step][:num]


def _keys(queries: Sequence[str], locales: Sequence[str], pin_ids: Sequence[str]) -> Keys:
    return text_keys(["\x1f".join(pair) for pair in zip(queries, locales, pin_ids, strict=True)], "pair")
