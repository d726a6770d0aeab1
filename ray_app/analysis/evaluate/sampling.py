"""The report's section on the sample: which pairs the teacher labelled, and for how many others they speak."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_app.stages.sample.effective_size import pooled_effective_size
from ray_app.stages.sample.population import TRENDING
from ray_app.tables.manifest import Manifest

MAX_TRENDING, MAX_SEEN, MAX_OTHERS = 10, 20, 10  # strata shown; guessed: a screen together


@dataclass(frozen=True, kw_only=True, slots=True)
class StratumRow:
    """One line of the strata table; None: the run does not say."""

    name: str
    num_pairs: int  # in the population
    num_sampled: int
    estimated_pairs: float | None  # sum of 1 / inclusion_prob
    effective_size: float | None

    @property
    def rate(self) -> float:
        """Share of the pairs that was drawn; 0 where there are none."""
        return self.num_sampled / self.num_pairs if self.num_pairs else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StrataTable:
    """The largest strata of a kind."""

    title: str
    rows: list[StratumRow]  # largest first
    rest: StratumRow | None  # the others together; None: there are none


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSummary:
    """The report's statements about the sample; None or empty: a run from before the manifest had it."""

    num_pairs: int
    num_queries: int | None
    num_by_source: dict[str, int]
    effective_size: float | None
    effective_size_log: float | None  # of the pairs that users saw: the others stand for nearly all of the catalogue
    allocation: str | None
    window: str | None
    num_trending: int
    trending: list[str]  # the strongest
    notes: list[str]
    tables: list[StrataTable]  # of trending queries, of what else users saw, and the rest: one would be crowded out


def summarize_sample(manifest: Manifest) -> SampleSummary:
    """Read the manifest of the stage `sample`, of this or an earlier version."""
    info = manifest.info
    rows = [_stratum(found) for found in info.get("strata", [])]
    rows.sort(key=lambda row: (-row.num_pairs, row.name))
    seen = [row for row in rows if not row.name.endswith("/retrieved")]
    others = [row for row in rows if row.name.endswith("/retrieved")]
    window = info.get("window")
    return SampleSummary(
        num_pairs=manifest.counts.get("rows_out", 0),
        num_queries=info.get("num_queries"),
        num_by_source=info.get("num_by_source", {}),
        effective_size=info.get("effective_size"),
        effective_size_log=_together("", seen).effective_size if seen else None,
        allocation=info.get("allocation"),
        window=_span(window) if window else None,
        num_trending=info.get("num_trending", 0),
        trending=[found["query"] for found in info.get("trending", [])[:5]],
        notes=[info[key] for key in ("source_note", "allocation_note", "window_note") if key in info],
        tables=[
            _table("Pairs that users saw for trending queries", [row for row in seen if _trends(row)], MAX_TRENDING),
            _table("Pairs that users saw", [row for row in seen if not _trends(row)], MAX_SEEN),
            _table("All other pairs of these queries with the catalogue", others, MAX_OTHERS),
        ],
    )


def _trends(row: StratumRow) -> bool:
    return f"/{TRENDING}/" in row.name


def _span(window: Mapping[str, Any]) -> str:
    """Such as `2024-01-01 to 2024-01-02 06:30 UTC`."""
    ends = [window["since"] or "the first event", window["until"] or "the last event"]
    return " to ".join(end.removesuffix("+00:00").removesuffix("T00:00:00").replace("T", " ") for end in ends) + " UTC"


def _table(title: str, rows: list[StratumRow], most: int) -> StrataTable:
    rest = rows[most:]
    together = _together(f"{len(rest):,} smaller strata", rest) if rest else None
    return StrataTable(title=title, rows=rows[:most], rest=together)


def _stratum(found: Mapping[str, Any]) -> StratumRow:
    known = {"num_pairs": found["num_pairs"], "num_sampled": found["num_sampled"]}
    of_later_versions: dict[str, Any] = {name: found.get(name) for name in ("estimated_pairs", "effective_size")}
    return StratumRow(name=found["stratum"], **known, **of_later_versions)


def _together(name: str, rows: Sequence[StratumRow]) -> StratumRow:
    """Several strata in one line; what one of them lacks, the line lacks."""
    estimated = [row.estimated_pairs for row in rows if row.estimated_pairs is not None]
    effective = [row.effective_size for row in rows if row.effective_size is not None]
    known = len(estimated) == len(effective) == len(rows)
    return StratumRow(
        name=name,
        num_pairs=sum(row.num_pairs for row in rows),
        num_sampled=sum(row.num_sampled for row in rows),
        estimated_pairs=sum(estimated) if len(estimated) == len(rows) else None,
        effective_size=pooled_effective_size(estimated, effective) if known else None,
    )
