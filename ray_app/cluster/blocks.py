"""Blocks of rows: computed by one actor in one call, and committed by that call."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.cluster.failures import BlockFailedError, fatal_line, line
from ray_app.cluster.resources import Plan
from ray_app.tables.ledger import Ledger

BlockFn = Callable[[pa.Table], pa.Table]

TOKENS = "tokens"  # optional columns of results: tokens of the row by itself,
COMPUTED_TOKENS = "computed_tokens"  # and those that the model computed; together over the block
BLOCK_ROWS = "__block_rows__"  # internal column: how many rows the block had when it was cut

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
        "rows": results.num_rows, "errors": len(errors), "first_error": line(str(errors[0])) if len(errors) else None,
        "started": started, "finished": finished, "tokens": 0, "computed_tokens": 0,
    }  # fmt: skip
    for name in (TOKENS, COMPUTED_TOKENS):
        if name in results.column_names:
            row[name] = pc.sum(results[name]).as_py() or 0
    return pa.Table.from_pylist([row], schema=STATS)
