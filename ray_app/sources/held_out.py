"""Data held out from training: the queries that a run is evaluated on, and events after its `sample.until`.

One place for the stages that learn from the log: enrich (engaged queries), engagement (rates, two-tower) and sample.
"""

from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import Config, section_hash
from ray_app.base.text import normalize_query, query_group
from ray_app.sources.source_reader import open_human_labels, read_human_labels
from ray_app.tables.manifest import Output

_KEY = "evaluate.human_labels"


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out queries and events, in addition to the human labels of ingest."""

    queries: frozenset[str] = frozenset()
    """Normalised queries of `evaluate.human_labels`; whoever leaves them out leaves out their near-duplicates
    (`query_group`) too."""
    until: datetime | None = None  # events from then on are the run's future; None: there is none

    @classmethod
    def of(cls, cfg: Config) -> "HeldOut":
        """As the config says. Rows that evaluation will refuse (an unknown pin, a grade off the scale) count too.

        Raises:
            UserError: `evaluate.human_labels` is not there, or is no file of labels.
        """
        queries: frozenset[str] = frozenset()
        if cfg.evaluate.human_labels is not None:
            labels = read_human_labels(open_human_labels(cfg, cfg.evaluate.human_labels, _KEY))
            queries = frozenset(map(normalize_query, pc.unique(labels["query"]).drop_null().to_pylist())) - {""}
        return cls(queries=queries, until=cfg.sample.until)

    @property
    def inputs(self) -> list[Output]:
        """The query groups as an input of a stage: other grades of the same queries make nothing again."""
        if not self.queries:
            return []
        content = section_hash(*sorted(set(map(query_group, self.queries))))
        return [Output(name="judged_queries", path="", files=[], rows=0, content_hash=content)]

    @property
    def settings(self) -> list[str]:
        """The bound on events as settings of a stage; none without a bound."""
        return [] if self.until is None else [f"until {self.until.isoformat()}"]

    def past(self, log: pa.Table) -> pa.Table:
        """Rows of the log (column `timestamp`, as in SEARCH_LOG) before `until`."""
        if self.until is None:
            return log
        time = pa.timestamp("us", tz="UTC")
        return log.filter(pc.less(log["timestamp"].cast(time), pa.scalar(self.until, time)))
