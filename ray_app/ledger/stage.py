"""Compute what a ledger lacks on Ray Data: the one place where label and embed meet Ray.

A block is cut once, computed by one actor in one call, and committed by that same call. So a kill at any moment loses
only blocks that are not finished, and since blocks are cut from the missing rows in a fixed order, and all but the last
are full, the blocks of a second run are those that the first would have computed: equal batches, equal rounding.
"""

import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.cluster import Plan, Pool, cluster_nodes, connect, plan_pool
from ray_app.errors import UserError
from ray_app.ledger.keys import KeySet, key_numbers
from ray_app.ledger.ledger import Ledger, missing_rows
from ray_app.progress import Progress
from ray_app.quote import Timing, timing

logger = logging.getLogger(__name__)

BlockFn = Callable[[pa.Table], pa.Table]

TOKENS = "tokens"  # optional columns of results: tokens of the row by itself,
COMPUTED_TOKENS = "computed_tokens"  # and those that the model computed; together over the block
BLOCK_ROWS = "__block_rows__"  # internal column: how many rows the block had when it was cut
_LEAST_ROWS = 1000  # before a job gives up for its share of errors

Chain = Callable[[Any, Ledger, Plan, int], Any]
"""(dataset of blocks, ledger, plan, rows per block) -> dataset of one row of STATS per committed block."""

STATS = pa.schema(
    [
        pa.field("rows", pa.int64()),
        pa.field("errors", pa.int64()),
        pa.field("first_error", pa.string()),
        pa.field("started", pa.float64()),  # Unix seconds, of the model's work
        pa.field("finished", pa.float64()),
        pa.field("tokens", pa.int64()),
        pa.field("computed_tokens", pa.int64()),
    ]
)


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


class BlockFailedError(Exception):
    """Carries the one line that the user should read from an actor to the driver, through Ray's tracebacks."""


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
            f"{_line(first_error or 'unknown')!r}; mend the cause or raise max_error_rate; finished rows are kept"
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
            f"such as {_line(counts.first_error or 'unknown')!r}; mend the cause or raise max_error_rate"
        )


def actor_chain(udf_class: Callable[..., BlockFn], udf_kwargs: dict[str, Any]) -> Chain:
    """A chain of one step: actors that hold a model, compute a whole block and commit it in the same call.

    Args:
        udf_class: Callable class, built once per actor: a block (pa.Table, at most rows_per_block rows) to its results
            (pa.Table with the ledger's columns, and TOKENS and COMPUTED_TOKENS if they are to be counted; one row per
            input row). A bad row is a row with `error`; an exception stops the job.
        udf_kwargs: Of its constructor.
    """

    def chain(blocks: Any, ledger: Ledger, plan: Plan, rows_per_block: int) -> Any:
        import ray.data

        with warnings.catch_warnings():
            # Ray 2.60 announces the end of `**ray_remote_args`, but has no other way yet to bound restarts.
            warnings.filterwarnings("ignore", message=".*ray_remote_args", category=DeprecationWarning)
            return blocks.map_batches(
                CommitBlockUDF,
                fn_constructor_args=(ledger, udf_class, udf_kwargs),
                batch_format="pyarrow",
                batch_size=rows_per_block,  # a block is a batch; None would mean the same, but is refused with GPUs
                compute=ray.data.ActorPoolStrategy(
                    min_size=plan.num_actors, max_size=plan.max_actors, max_tasks_in_flight_per_actor=2
                ),
                **plan.actor_options,
            )

    return chain


class CommitBlockUDF:
    """Ray actor: computes one block and commits it in the same call; returns one row of STATS."""

    def __init__(self, ledger: Ledger, udf_class: Callable[..., BlockFn], udf_kwargs: dict[str, Any]) -> None:
        self.ledger = ledger
        try:
            self.compute = udf_class(**udf_kwargs)
        except Exception as error:
            raise BlockFailedError(fatal_line(ledger.table, error)) from error

    def __call__(self, block: pa.Table) -> pa.Table:
        """Args: one whole block. Returns: a table of schema STATS, one row."""
        try:
            block = whole_block(block)
            self.ledger.claim(block.num_rows)
            started = time.time()
            results = self.compute(block)
            return commit_block(self.ledger, block["content_key"], results, started, time.time())
        except Exception as error:
            raise BlockFailedError(fatal_line(self.ledger.table, error)) from error


def whole_block(block: pa.Table) -> pa.Table:
    """The block as it was cut: another size would mean other batches, and other rounding."""
    assert pc.all(pc.equal(block[BLOCK_ROWS], block.num_rows)).as_py(), "Ray Data merged or split a block"
    return block.drop_columns([BLOCK_ROWS])


def commit_block(ledger: Ledger, keys: pa.ChunkedArray, results: pa.Table, started: float, finished: float) -> pa.Table:
    """Commit the results of a block with these keys; returns its row of STATS."""
    if sorted(results["content_key"].to_pylist()) != sorted(keys.to_pylist()):
        raise ValueError("the results are not one row for each content key of the block")
    ledger.commit(results)
    errors = results["error"].drop_null()
    row = {
        "rows": results.num_rows, "errors": len(errors), "first_error": _line(str(errors[0])) if len(errors) else None,
        "started": started, "finished": finished, "tokens": 0, "computed_tokens": 0,
    }  # fmt: skip
    for name in (TOKENS, COMPUTED_TOKENS):
        if name in results.column_names:
            row[name] = pc.sum(results[name]).as_py() or 0
    return pa.Table.from_pylist([row], schema=STATS)


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


def explain_failure(what: str, error: Exception, max_restarts: int) -> UserError:
    """The one line that a user should read of a failed Ray Data job.

    Args:
        what: Name of the job.
        error: Of Ray.
        max_restarts: Of an actor.
    """
    # Ray ships the traceback as text, and the exception's own object not at all.
    if told := re.search(rf"{BlockFailedError.__name__}: (.*)", str(error)):
        return UserError(told.group(1))
    if "error raised in its creation task" in str(error):
        last = str(error).strip().splitlines()[-1]
        return UserError(f"{what}: a worker could not start: {_line(last)}; mend the cause, run again")
    return UserError(
        f"{what}: a worker process died {max_restarts + 1} times, most often for lack of memory: lower "
        f"batch_size or num_actors and run again, finished blocks are kept ({_line(str(error))})"
    )


def fatal_line(what: str, error: Exception) -> str:
    """What a `BlockFailedError` carries to the driver."""
    if isinstance(error, UserError):
        return _line(str(error))
    told = _line(f"{type(error).__name__}: {error}")
    return f"{what}: {told}; mend the cause and run again, finished blocks are kept"


def _line(text: str) -> str:
    return " ".join(text.split())[:500]
