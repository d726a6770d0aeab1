"""Throughput and cost of model work: what a run was, and what another one would be."""

from collections.abc import Iterable
from dataclasses import dataclass

from ray_app.base.config import PriceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Duration of a job.

    The rate is that of the whole chain at work: rows over the time in which at least one of them was in an engine.
    """

    rows: int  # computed, failed ones included
    wall_sec: float  # from asking for workers to the last result
    startup_sec: float  # until an engine began with the first row
    engine_sec: float  # at least one row was in an engine

    @property
    def rows_per_sec(self) -> float:
        """Throughput of all workers together; 0 if nothing was computed."""
        return self.rows / self.engine_sec if self.engine_sec else 0.0


def timing(rows: int, spans: Iterable[tuple[float, float]], began: float, ended: float) -> Timing:
    """Args: answered rows; (started, finished) of each or of their batches, Unix seconds; the job's span."""
    ordered = sorted(spans)
    busy, reached = 0.0, 0.0
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return Timing(
        rows=rows,
        wall_sec=ended - began,
        startup_sec=max(0.0, ordered[0][0] - began) if ordered else 0.0,
        engine_sec=busy,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReservedResources:
    """Resources that a job reserves while it runs."""

    gpus: float
    cpus: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Device hours; `money` is None without the prices that it takes."""

    gpu_hours: float
    cpu_hours: float
    money: float | None
    currency: str


def cost_of(wall_sec: float, reserved: ReservedResources, prices: PriceConfig) -> Cost:
    """Resources are paid for from start to end, whether they compute or wait."""
    gpu_hours, cpu_hours = reserved.gpus * wall_sec / 3600, reserved.cpus * wall_sec / 3600
    known = (prices.gpu_hour if gpu_hours else prices.cpu_hour) is not None  # a GPU's price often includes CPUs
    money = gpu_hours * (prices.gpu_hour or 0.0) + cpu_hours * (prices.cpu_hour or 0.0) if known else None
    return Cost(gpu_hours=gpu_hours, cpu_hours=cpu_hours, money=money, currency=prices.currency)


@dataclass(frozen=True, kw_only=True, slots=True)
class CostEstimate:
    """Estimated time and cost of the remaining rows of a table."""

    noun: str  # plural name of a row: images, pairs
    measured: int  # rows of the sample; their results are kept
    failed: int  # rows of the sample
    remaining: int  # distinct rows without a result
    rows_per_sec: float  # the slower of engines and upstream_tasks
    limited_by: str  # engine, or who feeds it
    startup_sec: float
    wall_sec: float  # for the remaining, start-up included
    cost: Cost


def estimate_cost(
    noun: str, measured: Timing, failed: int, remaining: int, reserved: ReservedResources, prices: PriceConfig,
    feeder: tuple[str, float] = ("feeding", float("inf")),
) -> CostEstimate:  # fmt: skip
    """Quote the remaining rows.

    Args:
        noun: What a row is.
        measured: Of the sample.
        failed: Rows of the sample.
        remaining: Rows.
        reserved: By the job.
        prices: Per hour.
        feeder: Who prepares rows for the engines, and how many rows per second: during the sample they may have run
            ahead while the engine started, so that it alone would not show them.
    """
    rate = min(measured.rows_per_sec, feeder[1])
    wall = measured.startup_sec + remaining / rate if rate and remaining else 0.0
    return CostEstimate(
        noun=noun,
        measured=measured.rows,
        failed=failed,
        remaining=remaining,
        rows_per_sec=rate,
        limited_by=feeder[0] if feeder[1] < measured.rows_per_sec else "engine",
        startup_sec=measured.startup_sec,
        wall_sec=wall,
        cost=cost_of(wall, reserved, prices),
    )


def render_cost_estimate(estimate: CostEstimate) -> str:
    """The quote for people."""
    noun = estimate.noun
    if not estimate.remaining:
        return f"measured {estimate.measured:,} {noun}; no other is left to do"
    if not estimate.rows_per_sec:
        return f"none of the sampled {noun} reached the engine ({estimate.failed} failed): no quote for {estimate.remaining:,}"
    cost = estimate.cost
    money = f"{cost.money:,.2f} {cost.currency}" if cost.money is not None else "set `prices` to include it"
    lines = [
        f"measured        {estimate.measured:,} random {noun} ({estimate.failed} failed); their results are kept",
        f"steady rate     {estimate.rows_per_sec:,.1f} {noun}/s, limited by {estimate.limited_by}",
        f"start-up        {estimate.startup_sec:,.0f} s, paid once per run",
        f"remaining       {estimate.remaining:,} distinct {noun}",
        f"wall time       {show_duration(estimate.wall_sec)}",
        f"device hours    {cost.gpu_hours:,.2f} GPU, {cost.cpu_hours:,.2f} CPU",
        f"cost            {money}",
    ]
    return "\n".join(lines)


def show_duration(seconds: float) -> str:
    """In the unit that a person would use."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
