"""Progress of model work that a person can follow for days: a line now and then, and the same as Ray metrics.

Ray exports the metrics to Prometheus with the prefix `ray_`, such as `ray_relevance_rows_total{stage="soft_labels"}`.
"""

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ray_app.cluster.cost_estimate import show_duration

logger = logging.getLogger(__name__)


class Progress:
    """Counts finished rows.

    Args:
        stage: Name, also the metrics' tag.
        total: Rows to compute.
        every_sec: Between two lines.
        prefix_hits: The engine's own share of prompt tokens that it found cached, if it counts them; None: unknown.
    """

    def __init__(
        self, stage: str, total: int, every_sec: float, prefix_hits: Callable[[], float | None] | None = None
    ) -> None:
        self.stage, self.total, self.every_sec = stage, total, every_sec
        self.rows = self.errors = self.tokens = self.computed_tokens = 0
        self._prefix_hits = prefix_hits
        self._first_start: float | None = None
        self._said = time.time()

    def add(self, rows: int, errors: int, tokens: int, computed_tokens: int, started: float) -> None:
        """One block is done; `started` is when an engine began with it, Unix seconds."""
        self.rows += rows
        self.errors += errors
        self.tokens += tokens
        self.computed_tokens += computed_tokens
        self._first_start = min(started, self._first_start or started)
        metrics, tags = _metrics(), {"stage": self.stage}
        for name, amount in (("rows", rows), ("errors", errors), ("tokens", tokens)):
            if amount:
                metrics[name].inc(amount, tags)
        metrics["remaining_rows"].set(self.total - self.rows, tags)
        metrics["rows_per_sec"].set(self.rows_per_sec, tags)
        metrics["eta_sec"].set(self.eta_sec, tags)
        if time.time() - self._said >= self.every_sec:
            self._said = time.time()
            if (hits := self.prefix_hit_rate) is not None:
                metrics["prefix_hit_rate"].set(hits, tags)
            logger.info("%s: %s", self.stage, self, extra={"progress": True})  # see ray_app.console

    @property
    def rows_per_sec(self) -> float:
        """Since the first engine began."""
        return self.rows / self._elapsed

    @property
    def eta_sec(self) -> float:
        """Seconds until the last row, at this rate."""
        return (self.total - self.rows) / self.rows_per_sec if self.rows else float("inf")

    @property
    def prefix_hit_rate(self) -> float | None:
        """Share of the pairs' tokens that the model did not have to compute again; None: unknown."""
        if self._prefix_hits is not None:
            return self._prefix_hits()
        return 1 - self.computed_tokens / self.tokens if self.tokens else None

    def __str__(self) -> str:
        share = self.rows / self.total if self.total else 1.0
        parts = [f"{self.rows:,} of {self.total:,} rows ({share:.1%})", f"{self.rows_per_sec:,.1f} rows/s"]
        if self.tokens:
            parts.append(f"{self.tokens / self._elapsed:,.0f} tokens/s")
        if (hits := self.prefix_hit_rate) is not None:
            parts.append(f"prefix hits {hits:.0%}")
        return ", ".join([*parts, f"{self.errors:,} errors", f"ETA {show_duration(self.eta_sec)}"])

    @property
    def _elapsed(self) -> float:
        return max(time.time() - (self._first_start or time.time()), 1e-3)


@lru_cache(maxsize=1)
def _metrics() -> dict[str, Any]:
    from ray.util.metrics import Counter, Gauge

    counters = {
        "rows": "Rows with a new result, errors included",
        "errors": "Rows whose result is an error",
        "tokens": "Tokens of those rows, each row for itself",
    }
    gauges = {
        "remaining_rows": "Rows without a result",
        "rows_per_sec": "Mean rate of this job",
        "eta_sec": "Seconds until the last row at that rate",
        "prefix_hit_rate": "Share of tokens that were shared with another row and not computed again",
    }
    made: dict[str, Any] = {
        name: Counter(f"relevance_{name}_total", text, ("stage",)) for name, text in counters.items()
    }
    return made | {name: Gauge(f"relevance_{name}", text, ("stage",)) for name, text in gauges.items()}
