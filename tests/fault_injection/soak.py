"""Days of work against an app that serves: what a replica holds, what lies on disk and how requests fare must stay flat.

    python tests/fault_injection/soak.py --minutes 30 --seed 1

Each cycle is one day: the log moves on by a day, some pins say something new (on every third day enough of them for new
models), `run_all` and `collect_garbage` run on the cluster that serves, the new release is served, rolled back, promoted
again. Requests come all the while. Ends with a table of the cycles and one JSON line with the slopes; exit code 1 if
one of them is not flat, or a request failed.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import paths  # noqa: F401
from _bench import finish
from cluster import Cluster, Node, wait_until
from drivers import run_fault_free, start_forkserver
from serve_load import copied_run
from soak_world import Traffic, advance, slope
from world import make_world

from ray_app.base.storage import Storage
from ray_app.cluster.resources import local_environment
from ray_app.tables.current import current_release, promote, rollback
from serve.local import free_port, serving

_WARM = 2  # cycles before caches, pools and the number of kept releases are full
# Name of a figure -> how much a cycle may add, as a share of its mean, beyond what its scatter explains.
_FLAT = {"replica_mb": 0.01, "other_mb": 0.01, "handles": 0.01, "output_mb": 0.01, "local_mb": 0.01, "driver_mb": 0.01}

SETTINGS = [
    "embed.num_releases_to_keep=2", "label.rows_per_block=64", "embed.rows_per_block=64", "evaluate.num_resamples=10",
    "train_teacher.train.epochs=1", "train_teacher.train.checkpoint_interval_sec=60", "distill.train.epochs=1", "distill.train.checkpoint_interval_sec=60",
    "distill.feature_train.epochs=1", "distill.feature_train.checkpoint_interval_sec=60",
]  # fmt: skip  # short days: many of them show a slope, long ones do not


def main() -> None:
    """Parse, make a run, serve it, live through days, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of cycles; no cycle begins later")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="a folder for what is written, and for the first run of a next time")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped then, too
    os.environ.update(local_environment(os.environ))  # one token for the app's cluster and the jobs that join it
    folder = Path(args.keep or tempfile.mkdtemp(prefix="soak-"))
    started = time.monotonic()
    try:
        cycles, traffic = _live(folder, args.minutes, args.seed)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if len(cycles) < _WARM + 3:
        print(f"only {len(cycles)} cycles: a slope takes {_WARM + 3}; give it more --minutes", flush=True)
        os._exit(1)
    slopes = {name: slope([cycle[name] for cycle in cycles[_WARM:]]) for name in _FLAT}
    growing = [
        name for name, found in slopes.items() if found["per_cycle"] - 2 * found["error"] > _FLAT[name] * found["mean"]
    ]
    print()
    print("figure        mean    per cycle  +-")
    for name, found in slopes.items():
        grows = "  GROWS" * (name in growing)
        print(f"{name:12} {found['mean']:8.1f} {found['per_cycle']:9.3f} {found['error']:7.3f}{grows}")
    print(f"requests: {traffic.total}, failed: {traffic.failed} {traffic.shown}")
    good = not growing and not traffic.failed
    about = {"seed": args.seed, "minutes": round((time.monotonic() - started) / 60, 1), "warm_cycles": _WARM}
    finish(
        "soak", float(good), **about, cycles=len(cycles), requests=traffic.total, failed=traffic.failed, growing=growing,
        slopes=slopes, series={name: [cycle[name] for cycle in cycles] for name in (*_FLAT, "p50_ms", "p99_ms", "sec")},
    )  # fmt: skip
    sys.stdout.flush()
    os._exit(0 if good else 1)


def _live(folder: Path, minutes: float, seed: int) -> tuple[list[dict[str, Any]], Traffic]:
    context = start_forkserver()
    with Cluster() as cluster:

        def fault_free(stage: str, overrides: list[str]) -> None:
            config = folder / "world/config.yaml"
            run_fault_free(context, stage, config, overrides, folder / "log" / stage, cluster.env)

        world = make_world(folder / "world", fault_free)
    for old in ("run", "local", *(path.name for path in folder.glob("day-*"))):
        shutil.rmtree(folder / old, ignore_errors=True)
    config = copied_run(folder, str(world.reference), world.folder, limits={"deadline_ms": 10_000})
    store = Storage(str(folder / "run"))
    options = {"autoscaling_config": None, "num_replicas": 2}
    rng, cycles = random.Random(seed), []
    with serving(str(config), [], free_port(), **options) as (url, process), Traffic(url, seed) as traffic:
        env = {"RAY_ADDRESS": _address(process.pid)}
        limit = time.monotonic() + 60 * minutes
        while time.monotonic() < limit:
            began, day = time.monotonic(), len(cycles) + 1
            traffic.next_cycle()
            advance(world.folder, day, rng)
            peak = 0.0
            for program in ("run_all", "collect_garbage"):
                log = folder / f"day-{day}-{program}"
                driver = run_fault_free(context, program, config, SETTINGS, log, env, timeout_sec=900)
                peak = max(peak, driver.peak_mb)
            swaps = _swap(store, traffic)
            figures = _measure(folder, Node(process.pid)) | traffic.figures()
            cycles.append(figures | {"driver_mb": round(peak, 1), "sec": round(time.monotonic() - began, 1)})
            print(f"day {day}: {cycles[-1]}, releases seen: {swaps}", flush=True)
    return cycles, traffic


def _swap(store: Storage, traffic: Traffic) -> int:
    """Serve the new release, the one before, and the new one again; returns how many of these were met."""
    new = current_release(store)
    assert new is not None
    met = 0
    for step in (lambda: new, lambda: rollback(store), lambda: promote(store, new.id)):
        release = step()
        traffic.release = ""
        if not wait_until(lambda wanted=release.id: traffic.release == wanted, 120, 0.1):  # type: ignore[misc]
            raise RuntimeError(f"release {release.id} is not served after 120 s")
        met += 1
    return met


def _measure(folder: Path, node: Node) -> dict[str, Any]:
    """Memory (private to the process) and open files of the replicas and of the cluster's other daemons; disk."""
    replicas = node.named("ServeReplica:relevance")
    rest = [p for name in ("gcs_server", "/raylet/raylet", "ServeController", "haproxy -") for p in node.named(name)]
    return {
        "replica_mb": round(sum(p.memory_full_info().uss for p in replicas) / 1e6, 1),
        "other_mb": round(sum(p.memory_full_info().uss for p in rest) / 1e6, 1),
        "handles": sum(p.num_fds() for p in (*replicas, *rest)),
        "output_mb": _disk_mb(folder / "run"),
        "local_mb": _disk_mb(folder / "local"),
    }


def _disk_mb(folder: Path) -> float:
    return round(sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / 1e6, 2)


def _address(session: int) -> str:
    """Of the Ray cluster that the app's process started."""
    for process in Node(session).named("--gcs-address="):
        for part in process.cmdline():
            if part.startswith("--gcs-address="):
                return part.partition("=")[2]
    raise RuntimeError("the app has no cluster")


if __name__ == "__main__":
    main()
