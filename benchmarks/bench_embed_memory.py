"""The embed stage's memory from 10,000 to 1,000,000 pins: what the driver and the actor hold at their peak.

    python benchmarks/bench_embed_memory.py [--pins 10000 100000 1000000]

The whole stage (`ray_app.stages.embed.stage.run`: key, embed, publish a release of 384 numbers per pin) on texts of some
100 characters, with the demo's small tower so that a million pins take minutes. Memory is what a process has allocated
(RssAnon of Linux: no program files, no shared memory), sampled five times a second; Ray's object store is counted apart.
Each size runs in a new process.

"ratio" is the driver's peak at the largest size over that at the smallest.
"""

import argparse
import json
import logging
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from _bench import finish

from ray_app.base.config import Config, DistillConfig, load_config
from ray_app.base.schemas import PIN_TEXTS
from ray_app.base.storage import Storage
from ray_app.cluster.resources import start_local
from ray_app.models.checkpoint import save_model
from ray_app.models.head import FeatureScaler
from ray_app.stages.embed.stage import run as embed
from ray_app.tables.model_files import model_files
from ray_app.tables.stage_run import StageRun

DIM = 384
WORDS = "red blue green ceramic oak steel small large cup mug shoe lamp chair table for home garden office gift".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pins", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with tempfile.TemporaryDirectory() as temp:
            cfg = load_config("configs/demo.yaml", [f"output={temp}", "embed.dtype=float32", "embed.nice=0"])
            distill = cfg.distill.model_copy(update={"dim": DIM})
            cfg = cfg.model_copy(update={"distill": distill, "engagement": None, "graph": None})
            # Elsewhere: the stage's driver loads no model, and should not carry the memory of one.
            writer = multiprocessing.get_context("spawn").Process(target=_write_inputs, args=(cfg, args.one))
            writer.start()
            writer.join()
            print(json.dumps(_measure(cfg, args.one)))
        return
    found = {}
    for pins in args.pins:
        command = [sys.executable, __file__, "--one", str(pins)]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[str(pins)] = json.loads(told.splitlines()[-1])
        print(pins, found[str(pins)], flush=True)
    first, last = found[str(args.pins[0])], found[str(args.pins[-1])]
    more = args.pins[-1] - args.pins[0]
    finish(
        "bench_embed_memory", last["driver_mb"] / first["driver_mb"], dim=DIM, pins=found,
        driver_bytes_per_more_pin=round((last["driver_mb"] - first["driver_mb"]) * 1e6 / more, 1),
        actor_ratio=round(last["actor_mb"] / first["actor_mb"], 2),
    )  # fmt: skip


def _measure(cfg: Config, num_pins: int) -> dict[str, Any]:
    logging.disable(logging.INFO)
    import ray

    start_local(num_cpus=6, log_to_driver=False, object_store_memory=1_000_000_000)
    started = time.perf_counter()
    with _peaks() as peaks:
        manifest = embed(cfg, Storage(cfg.output))
    seconds = time.perf_counter() - started
    assert manifest.counts["rows_out"] == num_pins
    ray.shutdown()
    return {name: round(peak / 1e6, 1) for name, peak in peaks.items()} | {"seconds": round(seconds, 1)}


def _write_inputs(cfg: Config, num_pins: int) -> None:
    """What the stages before would have left: texts, and a student that learnt nothing."""
    store = Storage(cfg.output)
    from ray_app.models.bi_encoder import BiEncoder

    base = cfg.distill.base_model
    student = BiEncoder.from_base(
        DistillConfig(base_model=base, dim=DIM, max_pin_tokens=32), FeatureScaler(np.zeros(1), np.ones(1))
    ).eval()
    run = StageRun("distill", cfg, store, 1, [], [])
    for name in ("student", "feature_only_student"):
        save_model(student, store, f"models/{name}/bench", [], {})
        files = model_files(store, f"models/{name}/bench")
        assert files is not None
        run.add_output(name, f"models/{name}/bench", files)
    run.finish({})
    pins = StageRun("ingest", cfg, store, 1, [], [])
    pins.write_table("pins", pa.table({"pin_id": ["p"]}))
    pins.finish({})
    texts = StageRun("enrich", cfg, store, 1, [], [])
    rows = cfg.tables.rows_per_file
    folder = f"tables/pin_texts/{texts.fingerprint}"
    files = []
    for start in range(0, num_pins, rows):
        rng = np.random.default_rng(start)
        ids = range(start, min(start + rows, num_pins))
        words = rng.choice(WORDS, (len(ids), 16))
        columns: dict[str, Any] = {
            "pin_id": [f"{i * 2654435761 % 2**32:010d}" for i in ids],  # in no order
            "title": [f"{i} " + " ".join(some) for i, some in zip(ids, words, strict=True)],
        }
        columns |= {name: pa.nulls(len(ids)) for name in PIN_TEXTS.names if name not in columns}
        table = pa.table(columns).select(PIN_TEXTS.names).cast(PIN_TEXTS)
        files.append(store.write_table(f"{folder}/part-{start:08d}.parquet", table))
    texts.add_output("pin_texts", folder, files, rows=num_pins)
    texts.finish({})


@contextmanager
def _peaks() -> Iterator[dict[str, float]]:
    """Highest bytes of the driver, of the largest Ray worker, and of shared memory, until the context ends."""
    peaks = {"driver_mb": 0.0, "actor_mb": 0.0, "object_store_mb": 0.0}
    driver, ended = psutil.Process(), threading.Event()
    shared_before = shutil.disk_usage("/dev/shm").used

    def sample() -> None:
        while not ended.wait(0.2):
            peaks["driver_mb"] = max(peaks["driver_mb"], _allocated(driver))
            shared = shutil.disk_usage("/dev/shm").used - shared_before
            peaks["object_store_mb"] = max(peaks["object_store_mb"], shared)
            for child in driver.children(recursive=True):
                with suppress(psutil.Error, OSError):
                    if "ray::" in " ".join(child.cmdline()):
                        peaks["actor_mb"] = max(peaks["actor_mb"], _allocated(child))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield peaks
    ended.set()
    thread.join()


def _allocated(process: psutil.Process) -> float:
    """Bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
