"""Compute what a ledger lacks on Ray Data: the one place where label and embed meet Ray.

A block is cut once, computed by one actor in one call, and committed by that same call. So a kill at any moment loses
only blocks that are not finished, and since blocks are cut from the missing rows in a fixed order, and all but the last
are full, the blocks of a second run are those that the first would have computed: equal batches, equal rounding.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from ray_app.base.errors import UserError
from ray_app.cluster.blocks import BLOCK_ROWS, Chain
from ray_app.cluster.cost_estimate import Timing, timing
from ray_app.cluster.failures import explain_failure, line
from ray_app.cluster.progress import Progress
from ray_app.cluster.resources import Plan, Pool, cluster_nodes, connect, plan_pool
from ray_app.tables.keys import KeySet, key_numbers
from ray_app.tables.ledger import Ledger, missing_rows

logger = logging.getLogger(__name__)

_LEAST_ROWS = 1000  # before a job gives up for its share of errors


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerCounts:
    """What `run_missing` found and did. unique = already_present + computed."""

    wanted: int  # rows asked for
    unique: int  # content keys among them
    already_present: int  # keys that had a result
    computed: int  # keys that have one now
    errors: int  # keys whose result is an error, old ones included, so that a second run does not hide them
    blocks: int  # computed now
    repeated_rows: int  # rows of blocks that were begun again after a kill, since the last run that ended well
    torn_files: int  # ledger files that were ignored
    first_error: str | None  # one of `errors`, to show
    tokens: int = 0  # of the computed rows, each by itself; 0: not counted
    prefix_hit_rate: float | None = None  # share of them that the model did not have to compute again
    device_sec: float = 0.0  # model work, summed over the workers
    timing: Timing = field(default_factory=lambda: timing(0, (), 0.0, 0.0))
    plan: Plan | None = None  # None: nothing was computed


def run_missing(
    ledger: Ledger,
    wanted: pa.Table,
    chain: Chain,
    pool: Pool,
    *,
    rows_per_block: int,
    max_error_rate: float = 1.0,
    progress_sec: float = 30.0,
    prefix_hits: Callable[[], float | None] | None = None,
) -> LedgerCounts:
    """Compute and commit the rows of `wanted` that the ledger lacks. Ray is not touched when none is missing.

    The missing rows pass through the driver, and the keys present are read by it: 16 bytes each.

    Args:
        ledger: Where results are looked up and committed.
        wanted: `content_key` and the chain's input columns, in the order that blocks are to be cut from. Must be the
            same in each run, or so are not the results.
        chain: What computes and commits blocks, such as `actor_chain`.
        pool: What its workers ask for.
        rows_per_block: Rows that are computed and committed together: what a crash can cost.
        max_error_rate: Of the rows done so far (at least 1,000, or all): over it the job stops.
        progress_sec: Between two lines of progress.
        prefix_hits: See `Progress`.

    Raises:
        UserError: the cluster is too small, a worker failed or died too often, or too many rows failed; one line.
            Finished blocks are kept.
    """
    if wanted["content_key"].null_count:
        raise ValueError(f"{ledger.table}: {wanted['content_key'].null_count} wanted rows have no content key")
    before = ledger.keys()
    todo, unique = missing_rows(wanted, before.keys)
    num_blocks = -(-todo.num_rows // rows_per_block)
    logger.info(
        "%s: %d rows, %d distinct; %d have a result, %d to compute in %d blocks",
        ledger.table, wanted.num_rows, unique, unique - todo.num_rows, todo.num_rows, num_blocks,
    )  # fmt: skip
    progress = Progress(ledger.table, todo.num_rows, progress_sec, prefix_hits)
    plan, stats = None, []
    began = ended = time.time()
    if num_blocks:
        plan = start_plan(pool, num_blocks)
        logger.info("%s: plan: %s", ledger.table, plan)
        ledger.open_claims(len(before.keys))
        for row in _compute(ledger, todo, chain, plan, rows_per_block):
            stats.append(row)
            ended = time.time()  # what Ray does to stop its workers afterwards is no labelling
            progress.add(row["rows"], row["errors"], row["tokens"], row["computed_tokens"], row["started"])
            _give_up_over(max_error_rate, progress, row["first_error"])
        logger.info("%s: done: %s", ledger.table, progress)
    spans = [(row["started"], row["finished"]) for row in stats]
    old = before.errors["error"]
    if len(old):
        asked = KeySet(key_numbers(wanted["content_key"]))
        old = old.filter(pa.array(asked.contains(key_numbers(before.errors["content_key"]))))
    shown = [*old.slice(0, 1).to_pylist(), *(row["first_error"] for row in stats if row["errors"])]
    return LedgerCounts(
        wanted=wanted.num_rows,
        unique=unique,
        already_present=unique - todo.num_rows,
        computed=progress.rows,
        errors=len(old) + progress.errors,
        blocks=len(stats),
        repeated_rows=ledger.settle_claims(len(before.keys) + progress.rows) if num_blocks else 0,
        torn_files=len(before.torn_files),
        first_error=shown[0] if shown else None,
        tokens=progress.tokens,
        prefix_hit_rate=progress.prefix_hit_rate,
        device_sec=sum(end - start for start, end in spans),
        timing=timing(progress.rows, spans, began, ended),
        plan=plan,
    )


def start_plan(pool: Pool, num_blocks: int) -> Plan:
    """Connect to Ray if need be and fit the pool to the cluster; never more workers than blocks.

    Raises:
        UserError: not one worker fits.
    """
    connect()
    most = min(pool.max_actors or pool.num_actors, num_blocks)
    pool = replace(pool, num_actors=min(pool.num_actors, num_blocks), max_actors=most)
    return plan_pool(pool, *cluster_nodes())


def _give_up_over(max_rate: float, progress: Progress, first_error: str | None) -> None:
    enough = progress.rows >= min(_LEAST_ROWS, progress.total)
    if enough and progress.errors > max_rate * progress.rows:
        raise UserError(
            f"{progress.stage}: stopped after {progress.rows} of {progress.total} rows: {progress.errors} failed "
            f"({progress.errors / progress.rows:.1%}, max_error_rate is {max_rate:.1%}), such as "
            f"{line(first_error or 'unknown')!r}; mend the cause or raise max_error_rate; finished rows are kept"
        )


def check_error_rate(counts: LedgerCounts, max_rate: float, what: str) -> None:
    """Refuse to go on with too many failed rows. Call it when the counts are written.

    Raises:
        UserError: more than `max_rate` of the distinct rows failed.
    """
    if counts.errors > max_rate * counts.unique:
        share = counts.errors / counts.unique
        raise UserError(
            f"{what}: {counts.errors} of {counts.unique} rows failed ({share:.1%}, max_error_rate is {max_rate:.1%}), "
            f"such as {line(counts.first_error or 'unknown')!r}; mend the cause or raise max_error_rate"
        )


def _compute(ledger: Ledger, todo: pa.Table, chain: Chain, plan: Plan, rows_per_block: int) -> Iterator[dict[str, Any]]:
    """One row of STATS per block, as they are committed. Only the last block is shorter than `rows_per_block`."""
    import ray
    import ray.data

    size = min(rows_per_block, todo.num_rows)
    slices = (todo.slice(start, size).combine_chunks() for start in range(0, todo.num_rows, size))
    # Put one by one: a list of tables would be in memory twice.
    blocks: Any = [
        ray.put(b.append_column(BLOCK_ROWS, pa.array([b.num_rows] * b.num_rows, pa.int64()))) for b in slices
    ]
    dataset = chain(ray.data.from_arrow_refs(blocks), ledger, plan, size)
    dataset.set_name(ledger.table)
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()
    except ray.exceptions.RayError as error:
        raise explain_failure(ledger.table, error, plan.pool.max_restarts) from error
