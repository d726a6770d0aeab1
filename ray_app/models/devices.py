"""Device, CPU threads and dtype of a model."""

import os
from typing import Any


def pick_device(cpu_threads: int = 0) -> str:
    """`cuda` when this process may use a GPU, else `cpu`, then with `cpu_threads` threads (0: as torch chose)."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if cpu_threads:
        torch.set_num_threads(cpu_threads)
    return "cpu"


def use_cpu_threads() -> None:
    """Let the calling thread use the number of threads set in torch.

    Call it where the model runs. Ray calls an actor's methods outside of its main thread, and there matrix products take
    one core until this is set in that very thread, regardless of what `get_num_threads` reports (measured: half the speed of 2).
    """
    import torch

    torch.set_num_threads(torch.get_num_threads())


def actor_threads(num_actors: int, num_cpus: float) -> int:
    """Threads per model actor, with `num_actors` on this machine.

    Ray sets OMP_NUM_THREADS to an actor's logical CPUs. An actor that asks for 1, the default, means "a model actor"
    rather than "one core", so it gets its share of the machine.
    """
    return int(num_cpus) if num_cpus > 1 else max(1, (os.cpu_count() or 1) // num_actors)


def pick_dtype(dtype: str, device: str) -> str:
    """Resolve `auto`: bfloat16 where this machine has it in hardware, else float32."""
    if dtype != "auto":
        return dtype
    if device == "cuda":
        return "bfloat16"
    import torch

    return "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16") else "float32"


def autocast(device: str, dtype: str) -> Any:
    """Context in which matrix products run in `dtype`; weights and sums stay float32."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
