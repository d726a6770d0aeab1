"""Rows of many files brought together by key, in parts that fit one process: an all-to-all exchange over Ray's object store.

Stages that compare rows of different files (duplicates, references, what a pin's users did) cut them by a hash of the key:
each file is read and cut by one task, and each part is put together by another. No process holds more than a file or a
part, and rows pass from task to task without the driver. Which rows meet depends on their keys and the number of parts
alone, so the result does not depend on the cluster. One part is the same work without an exchange.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from ray_app.base.errors import UserError
from ray_app.cluster.resources import connect
from ray_app.cluster.tasks import results_of
from ray_app.tables.partitions import Parts

Result = TypeVar("Result")


def shuffle(
    items: Sequence[Any],
    split: Callable[[Any], Parts],
    join: Callable[[int, Parts, Any], Result],
    num_parts: int,
    shared: Any = None,
) -> list[Result]:
    """Cut each item into parts, and put each part together.

    Args:
        items: Whatever `split` takes, such as files; in the order in which `join` shall see them.
        split: Item -> its rows of each part. Runs in a Ray task, or here if there is one part and one item, or no cluster.
        join: Number of a part, its tables, one per item, and `shared` -> a small result. Runs in a Ray task if there are
            several parts.
        num_parts: Parts.
        shared: What all of `join` read; in memory once per machine, as far as it is arrays.

    Returns:
        One result per part.

    Raises:
        UserError: of `split` or `join`; any of several. Or the tasks died.
    """
    import ray

    if num_parts > 1:
        connect()
    if not ray.is_initialized() or (num_parts == 1 and len(items) == 1):
        return [join(0, [split(item)[0] for item in items], shared)]

    def split_one(item: Any) -> Any:
        found = split(item)
        return found if num_parts > 1 else found[0]

    def join_one(number: int, shared: Any, *tables: pa.Table) -> Result:
        return join(number, list(tables), shared)

    on_ray = ray.remote(num_cpus=1, num_returns=num_parts)(split_one)
    cuts: list[Any] = [on_ray.remote(item) for item in items]  # of one part its reference, of several a list
    try:
        if num_parts == 1:
            return [join(0, results_of(cuts), shared)]
        join_on_ray, everywhere = ray.remote(num_cpus=1)(join_one), ray.put(shared)
        joined = [join_on_ray.remote(i, everywhere, *(parts[i] for parts in cuts)) for i in range(num_parts)]
        del cuts  # so that Ray may free each part as soon as it is joined
        return results_of(joined)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise UserError(
            "a task that reads or joins a part of the tables died repeatedly, usually for lack of memory: lower "
            f"ingest.partition_bytes, or run fewer tasks concurrently, and run again ({' '.join(str(error).split())[:300]})"
        ) from error
