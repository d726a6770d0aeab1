"""What the batch embed job costs the serving replica on the same machine and Ray cluster.

    python benchmarks/bench_colocation.py [--config configs/chorus.yaml] [--seconds 30] [--clients 2]

Rerank requests of 100 candidates with new queries, so that encoder and ranking both work, first alone, then while
`pipelines/embed.py` embeds all pins again (a copy of the run without its ledger) on the cluster that serves.
What limits it: both want the same 2 cores; the job's processes step back (`embed.nice`), caches and memory bandwidth do not.

    one_thread    embed.cpu_threads: 1, a core left free for serving; "ratio" is its p99 over that alone
    all_threads   the default, as many as cores
    not_nice      the same with embed.nice: 0
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _bench import ROOT, finish, skip
from _load import Request, load
from bench_serve import Queries

from ray_app.base.config import load_config
from ray_app.base.storage import Storage
from ray_app.cluster.resources import local_environment
from ray_app.tables.current import current_release
from ray_app.tables.manifest import read_output
from ray_app.tables.release import open_release
from serve.local import absolute, serving

PORT = 8124
WAYS = {"one_thread": ["embed.cpu_threads=1"], "all_threads": [], "not_nice": ["embed.nice=0"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/chorus.yaml")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=2)
    args = parser.parse_args()
    os.environ.update(local_environment(os.environ))  # one token for the app's cluster and the jobs that join it
    cfg = load_config(args.config)
    store = Storage(cfg.output)
    release = current_release(store)
    if release is None or not store.is_local:
        skip("bench_colocation", f"no local release in {cfg.output}: make run CONFIG={args.config}")
        return
    titles = read_output(store, release.sources["pins"], ["title"])["title"].to_pylist()
    queries = Queries([title or "" for title in titles], 3)
    pins = open_release(store, release)["pin_id"].to_pylist()
    found = {}
    with tempfile.TemporaryDirectory() as temp:
        copy = Path(temp) / "run"
        shutil.copytree(absolute(cfg.output), copy)
        shutil.rmtree(copy / "ledger/pin_embeddings")
        (copy / "manifests/embed.json").unlink()
        with serving(args.config, [], PORT, autoscaling_config=None, num_replicas=1) as (url, _):
            load(url, _rerank(queries, pins), args.clients, 5)
            found["alone"] = load(url, _rerank(queries, pins), args.clients, args.seconds).summary()
            for name, settings in WAYS.items():
                job = _embed(args.config, copy, settings)
                try:
                    _wait(copy, job)
                    found[name] = load(url, _rerank(queries, pins), args.clients, args.seconds).summary()
                    assert job.poll() is None, "the job ended before the load did: more pins, or fewer seconds"
                finally:
                    job.terminate()
                    job.wait(60)
                    shutil.rmtree(copy / "ledger/pin_embeddings", ignore_errors=True)
    ratio = found["one_thread"]["p99_ms"] / found["alone"]["p99_ms"]
    finish("bench_colocation", ratio, clients=args.clients, **found)


def _rerank(queries: Queries, pins: list[str]) -> Iterator[Request]:
    rng = np.random.default_rng(1)
    for query in queries.new():
        chosen = [pins[i] for i in rng.choice(len(pins), 100, replace=False)]
        yield Request(path="/v1/rerank", body={"query": query, "pin_ids": chosen, "top_k": 10})


def _embed(config: str, output: Path, settings: list[str]) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "pipelines/embed.py"), "--config", config, "--set", f"output={output}"]
    command += [part for setting in [*settings, "embed.rows_per_block=512"] for part in ("--set", setting)]
    env = os.environ | {"RAY_ADDRESS": "auto", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait(output: Path, job: subprocess.Popen) -> None:
    """Until the job has written its first block."""
    for _ in itertools.count():
        if any((output / "ledger/pin_embeddings").rglob("*.parquet")):
            return
        assert job.poll() is None, "the embed job failed"
        time.sleep(0.2)


if __name__ == "__main__":
    main()
