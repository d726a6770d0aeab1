"""Work on tables in buckets, by Ray Data: a function of each bucket, and rows brought together by a key.

Rows pass from task to task, never through the driver, which gets one small result per bucket. One bucket is the same work
in this process, without Ray.
"""

import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.base.errors import UserError
from ray_app.cluster.failures import BlockFailedError, line
from ray_app.cluster.resources import connect

Result = TypeVar("Result")
Split = Callable[[Any], tuple[pa.Table, NDArray[np.int64]]]
"""Item -> rows, and the part of each, (num_rows,) int64. All items give rows of one schema."""

_PART = "__part__"  # internal column
# Of rows that a task of a shuffle cuts at a time. With Ray's 1 GiB a worker took 1.9 GB for 10 million rows of a log and the whole
# twice as long; with this 330 MB, and as long as tasks written for it (benchmarks/results/bench_shuffle.json).
_SHUFFLE_BATCH_BYTES = 64_000_000


def map_buckets(function: Callable[[int], Result], numbers: Sequence[int]) -> list[Result]:
    """`function(number)` of each bucket, in the order of `numbers`.

    Args:
        function: Reads a bucket, writes what follows from it, and returns something small. Runs in a Ray task, or here for
            one bucket; again if its process died.
        numbers: Of the buckets.

    Raises:
        UserError: of `function`, or the tasks died.
    """
    if len(numbers) <= 1:
        return [function(number) for number in numbers]
    rows = [{"place": place, "number": number} for place, number in enumerate(numbers)]

    def call(batch: dict[str, Any]) -> dict[str, Any]:
        with _told():
            results = [function(int(number)) for number in batch["number"]]
        return {"place": batch["place"], "result": _pickled(results)}

    dataset = _items(rows).map_batches(call, batch_size=1, num_cpus=1)
    found = dict(_results(dataset, "place"))
    return [found[place] for place in range(len(numbers))]


def shuffle(
    items: Sequence[Any], split: Split, reduce: Callable[[int, pa.Table], Result], num_parts: int, schema: pa.Schema,
    items_in_tasks: bool = False,
) -> list[Result]:  # fmt: skip
    """Bring rows of many items together by part.

    Which rows meet depends on `split` and the number of parts alone, and `reduce` has to bring them into an order, so that the
    result does not depend on the cluster.

    Args:
        items: What `split` takes, such as paths of files.
        split: See `Split`. Runs in a Ray task.
        reduce: (number of a part, all its rows in any order) -> a small result. Runs in a Ray task.
        num_parts: With one, all of this runs in this process.
        schema: Of the rows.
        items_in_tasks: With one part too: the items are many, though what is made of them is small.

    Returns:
        One result per part.

    Raises:
        UserError: of `split` or `reduce`, or the tasks died.
    """
    if num_parts == 1 and not (items_in_tasks and len(items) > 1):
        return [reduce(0, pa.concat_tables([schema.empty_table(), *(split(item)[0] for item in items)]))]
    rows = [{"item": pickle.dumps(item)} for item in items]

    def split_one(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for item in batch["item"]:
            with _told():
                rows, parts = split(pickle.loads(item))
                # Without metadata, which would differ from file to file.
                rows = pa.concat_tables([schema.empty_table(), rows.replace_schema_metadata()])
            yield rows.append_column(_PART, pa.array(parts, pa.int64()))

    def reduce_part(rows: pa.Table) -> pa.Table:
        number = rows[_PART][0].as_py()
        with _told():
            result = reduce(number, rows.drop_columns([_PART]).cast(schema))
        return pa.table({"number": [number], "result": pa.array([pickle.dumps(result)], pa.binary())})

    def reduce_nothing(number: int) -> Result:
        return reduce(number, schema.empty_table())

    if not rows:
        return map_buckets(reduce_nothing, range(num_parts))
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.shuffle_input_batch_bytes = _SHUFFLE_BATCH_BYTES
    with ray.data.DataContext.current(context):
        groups = _items(rows).map_batches(split_one, batch_size=1, num_cpus=1).groupby(_PART, num_partitions=num_parts)
        found = dict(_results(groups.map_groups(reduce_part, batch_format="pyarrow"), "number"))
    absent = [number for number in range(num_parts) if number not in found]
    found |= dict(zip(absent, map_buckets(reduce_nothing, absent), strict=True))
    return [found[number] for number in range(num_parts)]


def _items(rows: list[dict[str, Any]]) -> Any:
    import ray.data

    connect()
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _results(dataset: Any, key: str) -> Iterator[tuple[int, Any]]:
    import ray

    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                yield row[key], pickle.loads(row["result"])
    except ray.exceptions.RayError as error:
        # Ray ships the traceback as text, and the exception's own object not at all.
        if told := re.search(rf"{BlockFailedError.__name__}: (.*)", str(error)):
            raise UserError(told.group(1)) from None
        if isinstance(error, ray.exceptions.RayTaskError):
            raise
        raise UserError(
            "a task that reads or writes a bucket of a table died repeatedly, usually for lack of memory: lower "
            f"tables.bucket_bytes, or run fewer tasks at a time, and run again ({line(str(error))[:300]})"
        ) from error


@contextmanager
def _told() -> Iterator[None]:
    """A `UserError` of a task reaches the driver as the one line that it is."""
    try:
        yield
    except UserError as error:
        raise BlockFailedError(" ".join(str(error).split())) from error


def _pickled(results: Sequence[Any]) -> NDArray[Any]:
    column = np.empty(len(results), object)
    column[:] = [pickle.dumps(result) for result in results]
    return column
