"""Throughput and cost of captioning: what a run was, and what another one would be."""

from collections.abc import Iterable
from dataclasses import dataclass

from ray_app.config import CaptionConfig, PriceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """How long a job took.

    The rate is that of the whole chain at work: pictures over the time in which at least one of them was in an engine.
    """

    rows: int  # pictures that an engine answered
    wall_sec: float  # from asking for workers to the last caption
    startup_sec: float  # until an engine began with the first picture
    engine_sec: float  # at least one picture was in an engine
    decode_sec: float  # of one worker for one picture, reading included

    @property
    def images_per_sec(self) -> float:
        """Of all engines together; 0 if none had anything to do."""
        return self.rows / self.engine_sec if self.engine_sec else 0.0


def timing(spans: Iterable[tuple[float, float]], decode_sec: Iterable[float], began: float, ended: float) -> Timing:
    """Args: (started, finished) of each answered picture, Unix seconds; seconds per decoded one; the job's span."""
    ordered = sorted(spans)
    decoded = list(decode_sec)
    busy, reached = 0.0, 0.0
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return Timing(
        rows=len(ordered),
        wall_sec=ended - began,
        startup_sec=max(0.0, ordered[0][0] - began) if ordered else 0.0,
        engine_sec=busy,
        decode_sec=sum(decoded) / len(decoded) if decoded else 0.0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What engines and decoders are held for; `money` is None without the prices that it takes."""

    gpu_hours: float
    cpu_hours: float
    money: float | None
    currency: str


def cost_of(wall_sec: float, cfg: CaptionConfig, prices: PriceConfig) -> Cost:
    """Resources are paid for from start to end, whether they compute or wait."""
    hours = wall_sec / 3600
    gpu_hours = hours * cfg.num_actors * cfg.num_gpus
    cpu_hours = hours * (cfg.num_actors * cfg.num_cpus + cfg.num_decoders)
    known = (prices.gpu_hour if gpu_hours else prices.cpu_hour) is not None  # a GPU's price often includes CPUs
    money = gpu_hours * (prices.gpu_hour or 0.0) + cpu_hours * (prices.cpu_hour or 0.0) if known else None
    return Cost(gpu_hours=gpu_hours, cpu_hours=cpu_hours, money=money, currency=prices.currency)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quote:
    """What captioning the rest of the table would take."""

    measured: int  # pictures of the sample; their captions are kept
    failed: int  # of them
    remaining: int  # distinct pictures without a caption
    images_per_sec: float  # the slower of engines and decoders
    limited_by: str  # engine or decoding
    startup_sec: float
    wall_sec: float  # for the remaining, start-up included
    cost: Cost


def make_quote(measured: Timing, failed: int, remaining: int, cfg: CaptionConfig, prices: PriceConfig) -> Quote:
    """Quote the remaining pictures. During the sample decoders may have run ahead while the engine started."""
    decoders = cfg.num_decoders / measured.decode_sec if measured.decode_sec else float("inf")
    rate = min(measured.images_per_sec, decoders)
    wall = measured.startup_sec + remaining / rate if rate and remaining else 0.0
    return Quote(
        measured=measured.rows,
        failed=failed,
        remaining=remaining,
        images_per_sec=rate,
        limited_by="decoding" if decoders < measured.images_per_sec else "engine",
        startup_sec=measured.startup_sec,
        wall_sec=wall,
        cost=cost_of(wall, cfg, prices),
    )


def render_quote(quote: Quote) -> str:
    """The quote for people."""
    if not quote.remaining:
        return f"measured {quote.measured} pictures; no other is left to caption"
    if not quote.images_per_sec:
        return (
            f"none of the sampled pictures reached the engine ({quote.failed} failed): no quote for {quote.remaining:,}"
        )
    cost = quote.cost
    money = f"{cost.money:,.2f} {cost.currency}" if cost.money is not None else "set `prices` to have it quoted"
    lines = [
        f"measured        {quote.measured} random pictures ({quote.failed} failed); their captions are kept",
        f"steady rate     {quote.images_per_sec:,.1f} images/s, limited by {quote.limited_by}",
        f"start-up        {quote.startup_sec:,.0f} s, paid once per run",
        f"remaining       {quote.remaining:,} distinct pictures",
        f"wall time       {_duration(quote.wall_sec)}",
        f"device hours    {cost.gpu_hours:,.2f} GPU, {cost.cpu_hours:,.2f} CPU",
        f"cost            {money}",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
