"""Blocks of rows on Ray Data: what computes them, and how their results are committed and counted."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.cluster.failures import BlockFailedError, fatal_line, line
from ray_app.cluster.resources import PoolAllocation
from ray_app.tables.ledger import Ledger

BlockFn = Callable[[pa.Table], pa.Table]

TOKENS = "tokens"  # optional columns of results: tokens of the row by itself,
COMPUTED_TOKENS = "computed_tokens"  # and those that the model computed; together over the block;
TRANSIENT = "transient"  # whether an error may be gone next time
BLOCK = (
    "block"  # the only column of a dataset of encoded blocks: one row is one block, which Ray Data cannot cut or merge
)

Chain = Callable[[Any, Ledger, PoolAllocation], Any]
"""(dataset of encoded blocks, ledger, plan) -> dataset of rows of STATS, from `commit_block`. Its first step takes one row at a
time, and calls `decode_block`."""

STATS = pa.schema(
    [
        pa.field("rows", pa.int64()),
        pa.field("errors", pa.int64()),
        pa.field("first_error", pa.string()),
        pa.field("started", pa.float64()),  # Unix seconds, of the model's work; null: no row came to the model
        pa.field("finished", pa.float64()),
        pa.field("tokens", pa.int64()),
        pa.field("computed_tokens", pa.int64()),
        pa.field("transient", pa.map_(pa.string(), pa.string())),  # content key -> error that was not committed
        pa.field("counters", pa.map_(pa.string(), pa.float64())),
    ]
)


def actor_chain(udf_class: Callable[..., BlockFn], udf_kwargs: dict[str, Any]) -> Chain:
    """A chain of one step: actors that hold a model, compute a whole block and commit it in the same call.

    Args:
        udf_class: Callable class, built once per actor: a block (pa.Table, at most rows_per_block rows) to its results
            (pa.Table with the ledger's columns, and TOKENS and COMPUTED_TOKENS if they are to be counted; one row per
            input row). A bad row is a row with `error`; an exception stops the job.
        udf_kwargs: Of its constructor.
    """

    def chain(blocks: Any, ledger: Ledger, allocation: PoolAllocation) -> Any:
        kwargs = {"ledger": ledger, "udf_class": udf_class, "udf_kwargs": udf_kwargs}
        return actors(blocks, CommitBlockUDF, allocation, 1, kwargs)

    return chain


def actors(
    dataset: Any, udf_class: type, allocation: PoolAllocation, batch_size: int, udf_kwargs: dict[str, Any]
) -> Any:
    """Rows through the workers of a plan, each of which builds the class once and is restarted a bounded number of times."""
    import ray.data

    with warnings.catch_warnings():
        # Ray 2.60 announces the end of `**ray_remote_args`, but has no other way yet to bound restarts.
        warnings.filterwarnings("ignore", message=".*ray_remote_args", category=DeprecationWarning)
        return dataset.map_batches(
            udf_class,
            fn_constructor_kwargs=udf_kwargs,
            batch_format="pyarrow",
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(
                min_size=allocation.num_actors, max_size=allocation.max_actors, max_tasks_in_flight_per_actor=2
            ),
            **allocation.actor_options,
        )


def tasks(
    dataset: Any,
    function: Callable[..., Any],
    allocation: PoolAllocation,
    *,
    batch_size: int | None = None,
    size: int | None = None,
    fn_kwargs: dict[str, Any],
) -> Any:
    """Rows through CPU tasks beside the workers of a plan.

    Args:
        dataset: Rows.
        function: Batch (pa.Table) -> table or tables.
        allocation: Of the workers.
        batch_size: Rows per batch; None: the dataset's blocks.
        size: Tasks at a time; None: as many as there is room for.
        fn_kwargs: Of the function.
    """
    import ray.data

    return dataset.map_batches(
        function,
        fn_kwargs=fn_kwargs,
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray.data.TaskPoolStrategy(size=size),
        num_cpus=allocation.task_cpus,
    )


class CommitBlockUDF:
    """Ray actor: computes one block and commits it in the same call; returns one row of STATS."""

    def __init__(self, ledger: Ledger, udf_class: Callable[..., BlockFn], udf_kwargs: dict[str, Any]) -> None:
        self.ledger = ledger
        try:
            self.compute = udf_class(**udf_kwargs)
        except Exception as error:
            raise BlockFailedError(fatal_line(ledger.table, error)) from error

    def __call__(self, block: pa.Table) -> pa.Table:
        """Args: one encoded block. Returns: a table of schema STATS, one row."""
        try:
            block = decode_block(block)
            self.ledger.claim(block.num_rows)
            started = time.time()
            results = self.compute(block)
            return commit_block(self.ledger, results, [(started, time.time())], keys=block["content_key"])
        except Exception as error:
            raise BlockFailedError(fatal_line(self.ledger.table, error)) from error


def encode_block(block: pa.Table) -> bytes:
    """A block as bytes: it is computed as it was cut, for another size would mean other batches, and other rounding."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema) as writer:
        writer.write_table(block.combine_chunks())
    return sink.getvalue().to_pybytes()


def decode_block(row: pa.Table) -> pa.Table:
    """The block of a dataset's row."""
    (data,) = row[BLOCK]
    return pa.ipc.open_stream(data.as_buffer()).read_all()


def commit_block(
    ledger: Ledger,
    results: pa.Table,
    spans: Iterable[tuple[float, float]],
    *,
    keys: pa.ChunkedArray | None = None,
    counters: Mapping[str, float] | None = None,
) -> pa.Table:
    """Commit results, and say so in rows of STATS.

    Args:
        ledger: Of the results.
        results: The ledger's columns, maybe TOKENS, COMPUTED_TOKENS, and TRANSIENT for errors that are not to be kept.
        spans: (started, finished) of the model's work, Unix seconds.
        keys: The block's content keys, where its results must be one row for each.
        counters: What else is to be added up over the job.

    Returns:
        One row per stretch of time without a pause of the model; the counts are in the first.
    """
    if keys is not None and sorted(results["content_key"].to_pylist()) != sorted(keys.to_pylist()):
        raise ValueError("the results are not one row for each content key of the block")
    transient = results.slice(0, 0)
    if TRANSIENT in results.column_names:
        fails = pc.and_(pc.is_valid(results["error"]), pc.coalesce(results[TRANSIENT], False))
        transient, results = results.filter(fails), results.filter(pc.invert(fails))
    if results.num_rows:
        ledger.commit(results)
    errors = pa.chunked_array([*results["error"].drop_null().chunks, *transient["error"].chunks], pa.string())
    nothing: dict[str, Any] = {
        "rows": 0, "errors": 0, "first_error": None, "started": None, "finished": None, "tokens": 0, "computed_tokens": 0,
        "transient": [], "counters": [],
    }  # fmt: skip
    rows = [nothing | {"started": start, "finished": end} for start, end in _merge(spans)] or [nothing]
    rows[0] |= {
        "rows": results.num_rows + transient.num_rows,
        "errors": len(errors),
        "first_error": line(str(errors[0])) if len(errors) else None,
        "transient": list(zip(transient["content_key"].to_pylist(), transient["error"].to_pylist(), strict=True)),
        "counters": [(name, float(value)) for name, value in (counters or {}).items()],
    }
    for name in (TOKENS, COMPUTED_TOKENS):
        if name in results.column_names:
            rows[0][name] = pc.sum(results[name]).as_py() or 0
    return pa.Table.from_pylist(rows, schema=STATS)


def _merge(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same moments in as few spans as can be, in order."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
