"""What every benchmark shares: timing, the machine it ran on, and the JSON line it ends with."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.tables.provenance import git_commit, package_versions

ROOT = Path(__file__).resolve().parents[1]
CHORUS = ROOT.parent / "shared" / "data" / "chorus"


def time_calls(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    median, p95 = np.percentile(seconds, [50, 95])
    return {"median_sec": round(float(median), 6), "p95_sec": round(float(p95), 6), "repeats": len(seconds)}


def hardware() -> dict[str, Any]:
    """The machine, in the words that decide a timing."""
    info: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        info["cpu"] = names[0] if names else info["cpu"]
    if hasattr(os, "sched_getaffinity"):
        info["cores"] = len(os.sched_getaffinity(0))
    if hasattr(os, "getloadavg"):
        info["load_1min"] = round(os.getloadavg()[0], 2)  # other work on the machine makes timings worse
    return info


def finish(bench: str, ratio: float, **figures: Any) -> None:
    """Print the result as the last line of stdout and keep it in results/."""
    result = {
        "bench": bench,
        "ratio": round(ratio, 2),
        **figures,
        "hardware": hardware(),
        "versions": package_versions(),
        "commit": git_commit(),
        "uncommitted_changes": _is_dirty(),
    }
    line = json.dumps(result)
    path = ROOT / "benchmarks" / "results" / f"{bench}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(line + "\n", encoding="utf-8")
    except OSError as error:
        print(f"{path} was not written: {error.strerror}", file=sys.stderr)
    print(line)


def skip(bench: str, reason: str) -> None:
    """Say why the benchmark did not run; the results of an earlier run stay."""
    print(f"{bench}: skipped: {reason}", file=sys.stderr)
    print(json.dumps({"bench": bench, "ratio": None, "skipped": reason}))


def _is_dirty() -> bool | None:
    """Whether the measured code differs from the commit; None outside a checkout."""
    try:
        out = subprocess.run(
            ["git", "status", "--porcelain", "--", "ray_app", "benchmarks/*.py"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return bool(out.stdout.strip())
