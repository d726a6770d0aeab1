"""Compute what a ledger lacks on Ray Data: the one place where label and embed meet Ray.

A block is cut once, computed by one actor in one call, and committed by that same call. So a kill at any moment loses
only blocks that are not finished, and since blocks are cut from the missing rows in a fixed order, and all but the last
are full, the blocks of a second run are those that the first would have computed: equal batches, equal rounding.
"""

import logging
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import UserError
from ray_app.ledger.ledger import Ledger, anti_join

logger = logging.getLogger(__name__)

BlockFn = Callable[[pa.Table], pa.Table]

MAX_RESTARTS = (
    3  # of one actor, after its process died. A guess; Ray's own default is for ever, which hides a dead engine
)
_BLOCK_ROWS = "__block_rows__"  # internal column: how many rows the block had when it was cut


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerCounts:
    """What `run_missing` found and did. unique = already_present + computed."""

    wanted: int  # rows asked for
    unique: int  # content keys among them
    already_present: int  # keys that had a result
    computed: int  # keys that have one now
    errors: int  # keys whose result is an error, old ones included, so that a second run does not hide them
    blocks: int  # computed now
    device_sec: float  # inside the UDF, summed over the actors
    torn_files: int  # ledger files that were ignored
    first_error: str | None  # one of `errors`, to show


class BlockFailedError(Exception):
    """Carries the one line that the user should read from an actor to the driver, through Ray's tracebacks."""


def run_missing(
    ledger: Ledger,
    wanted: pa.Table,
    udf_class: Callable[..., BlockFn],
    udf_kwargs: dict[str, Any],
    *,
    rows_per_block: int,
    num_actors: int = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> LedgerCounts:
    """Compute and commit the rows of `wanted` that the ledger lacks. Ray is not touched when none is missing.

    The missing rows pass through the driver and the keys present are read by it: fine for tens of millions of rows. For
    a billion, the anti-join has to become a Ray Data join over partitions of the key space (issue 4).

    Args:
        ledger: Where results are looked up and committed.
        wanted: `content_key` and the UDF's input columns, in the order that blocks are to be cut from (such as by
            length, so that batches hold little padding). Must be the same in each run, or so are not the results.
        udf_class: Callable class, built once per actor: a block (pa.Table, at most rows_per_block rows) to its results
            (pa.Table with the ledger's columns, one row per input row). A bad row is a row with `error`; an exception
            stops the job.
        udf_kwargs: Of its constructor.
        rows_per_block: Rows that are computed and committed together: what a crash can cost.
        num_actors: At most; never more than there are blocks.
        num_cpus: Logical CPUs per actor.
        num_gpus: GPUs per actor.

    Raises:
        UserError: an actor failed or died too often; one line with its message. Finished blocks are kept.
    """
    if wanted["content_key"].null_count:
        raise ValueError(f"{ledger.table}: {wanted['content_key'].null_count} wanted rows have no content key")
    before = ledger.scan(["content_key", "error"])
    unique = pc.count_distinct(wanted["content_key"]).as_py()
    todo = anti_join(wanted, before.table["content_key"])
    blocks = cut_blocks(todo, rows_per_block)
    logger.info(
        "%s: %d rows, %d distinct; %d have a result, %d to compute in %d blocks",
        ledger.table, wanted.num_rows, unique, unique - todo.num_rows, todo.num_rows, len(blocks),
    )  # fmt: skip
    stats = _compute(ledger, blocks, udf_class, udf_kwargs, num_actors, num_cpus, num_gpus) if blocks else []
    old = before.table.filter(pc.is_in(before.table["content_key"], value_set=wanted["content_key"]))[
        "error"
    ].drop_null()
    shown = [*old.slice(0, 1).to_pylist(), *(row["first_error"] for row in stats if row["errors"])]
    return LedgerCounts(
        wanted=wanted.num_rows,
        unique=unique,
        already_present=unique - todo.num_rows,
        computed=sum(row["rows"] for row in stats),
        errors=len(old) + sum(row["errors"] for row in stats),
        blocks=len(stats),
        device_sec=sum(row["seconds"] for row in stats),
        torn_files=len(before.torn_files),
        first_error=shown[0] if shown else None,
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


def cut_blocks(rows: pa.Table, rows_per_block: int) -> list[pa.Table]:
    """Consecutive slices of `rows_per_block` rows; only the last may be shorter."""
    return [rows.slice(start, rows_per_block).combine_chunks() for start in range(0, rows.num_rows, rows_per_block)]


class CommitBlockUDF:
    """Ray actor: computes one block and commits it in the same call; returns one row of statistics."""

    def __init__(self, ledger: Ledger, udf_class: Callable[..., BlockFn], udf_kwargs: dict[str, Any]) -> None:
        self.ledger = ledger
        try:
            self.compute = udf_class(**udf_kwargs)
        except Exception as error:
            raise BlockFailedError(fatal_line(ledger.table, error)) from error

    def __call__(self, block: pa.Table) -> pa.Table:
        """Args: one whole block. Returns: rows, errors, seconds, first_error."""
        try:
            return self._compute_and_commit(block)
        except Exception as error:
            raise BlockFailedError(fatal_line(self.ledger.table, error)) from error

    def _compute_and_commit(self, block: pa.Table) -> pa.Table:
        assert pc.all(pc.equal(block[_BLOCK_ROWS], block.num_rows)).as_py(), "Ray Data merged or split a block"
        block = block.drop_columns([_BLOCK_ROWS])
        started = time.monotonic()
        results = self.compute(block)
        seconds = time.monotonic() - started
        if sorted(results["content_key"].to_pylist()) != sorted(block["content_key"].to_pylist()):
            raise ValueError("the results are not one row for each content key of the block")
        self.ledger.commit(results)
        errors = results["error"].drop_null()
        first = _line(str(errors[0])) if len(errors) else None
        return pa.table(
            {
                "rows": [results.num_rows],
                "errors": [len(errors)],
                "seconds": [seconds],
                "first_error": pa.array([first], pa.string()),
            }
        )


def _compute(
    ledger: Ledger,
    blocks: list[pa.Table],
    udf_class: Callable[..., BlockFn],
    udf_kwargs: dict[str, Any],
    num_actors: int,
    num_cpus: float,
    num_gpus: float,
) -> list[dict[str, Any]]:
    """One statistics row per block."""
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init()
    require_resources(ledger.table, num_cpus, num_gpus)
    marked = [b.append_column(_BLOCK_ROWS, pa.array([b.num_rows] * b.num_rows, pa.int64())) for b in blocks]
    with warnings.catch_warnings():
        # Ray 2.60 announces the end of `**ray_remote_args`, but has no other way yet to bound restarts.
        warnings.filterwarnings("ignore", message=".*ray_remote_args", category=DeprecationWarning)
        dataset = ray.data.from_arrow(marked).map_batches(  # each table of the list becomes a block
            CommitBlockUDF,
            fn_constructor_args=(ledger, udf_class, udf_kwargs),
            batch_format="pyarrow",
            batch_size=blocks[0].num_rows,  # a block is a batch; None would mean the same, but is refused with GPUs
            compute=ray.data.ActorPoolStrategy(size=min(num_actors, len(blocks)), max_tasks_in_flight_per_actor=2),
            num_cpus=num_cpus,
            num_gpus=num_gpus or None,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
        )
    dataset.set_name(ledger.table)
    try:
        return dataset.take_all()
    except ray.exceptions.RayError as error:
        raise explain_failure(ledger.table, error, MAX_RESTARTS) from error


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


def cluster_limit() -> dict[str, float]:
    """What the cluster has, or may grow to."""
    import ray

    # As Ray Data asks for it; None on a fixed cluster.
    most = ray._private.state.state.get_max_resources_from_cluster_config() or ray.cluster_resources()
    return {name: float(amount) for name, amount in most.items()}


def require_resources(what: str, num_cpus: float, num_gpus: float) -> None:
    """Refuse an actor that no node can hold: Ray would wait for such a node for ever."""
    most = cluster_limit()
    for name, need, kind in (("num_cpus", num_cpus, "CPU"), ("num_gpus", num_gpus, "GPU")):
        has = most.get(kind, 0)
        if need > has:
            raise UserError(f"{what}: {name} is {need:g}, but the whole Ray cluster has {has:g}; lower it")


def fatal_line(what: str, error: Exception) -> str:
    """What a `BlockFailedError` carries to the driver."""
    if isinstance(error, UserError):
        return _line(str(error))
    told = _line(f"{type(error).__name__}: {error}")
    return f"{what}: {told}; mend the cause and run again, finished blocks are kept"


def _line(text: str) -> str:
    return " ".join(text.split())[:500]
