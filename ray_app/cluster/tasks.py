"""Pure functions as Ray tasks of one CPU, with their errors as the driver should see them."""

from collections.abc import Callable, Sequence
from typing import Any

from ray_app.base.errors import UserError
from ray_app.cluster.resources import connect

Reference = Any  # ray.ObjectRef of a value


def start_task(function: Callable[..., Any], *args: Any, torch_threads: int | None = None) -> Reference:
    """Start `function(*args)` on some machine of the cluster; `results_of` waits for it.

    Args:
        function: Its name is the title of the process while it runs.
        args: References among them reach the function as their values.
        torch_threads: Threads of torch; None: torch is not imported for it.
    """
    import ray

    connect()

    def call(*args: Any) -> Any:
        if torch_threads is not None:
            import torch

            torch.set_num_threads(torch_threads)
        return function(*args)

    return ray.remote(num_cpus=1)(call).options(name=function.__name__).remote(*args)


def run_task(function: Callable[..., Any], *args: Any, torch_threads: int | None = None) -> Any:
    """The result of `start_task`.

    Raises:
        UserError: of the function.
    """
    return results_of([start_task(function, *args, torch_threads=torch_threads)])[0]


def shared(value: Any) -> Reference:
    """A reference to a value that many tasks read: in memory once per machine, as far as it is arrays."""
    import ray

    connect()
    return ray.put(value)


def results_of(references: Sequence[Reference]) -> list[Any]:
    """The values, when all of them are there.

    Raises:
        UserError: of a task, without Ray's traceback around it.
        ray.exceptions.RayError: another error of a task, or its worker died.
    """
    import ray

    try:
        return list(ray.get(list(references)))
    except ray.exceptions.RayTaskError as error:
        cause = error
        while isinstance(cause, ray.exceptions.RayTaskError):
            cause = cause.cause
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from None
        raise
