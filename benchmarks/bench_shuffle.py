"""Ray Data's hash shuffle beside plain Ray tasks, as ray_app had it once: rows of a search log brought together by pin.

    python benchmarks/bench_shuffle.py --rows 1000000 10000000

Each way in a process and on a cluster of its own, over the same Parquet files of 100,000 rows: read, give each row the
bucket of its pin, bring a bucket's rows together, sort them by (pin_id, event_id) and write one file per bucket.

    tasks        Ray tasks that cut each file, others that put a bucket together; rows pass through Ray's object store
    plain        Ray Data: groupby(bucket).map_groups
    batches      the same with map tasks that take 64 MB of rows at a time (`shuffle_input_batch_bytes`) in place of 1 GiB
    disk         the same with `use_disk_based_hash_shuffle`
    partitioned  Ray Data: repartition(keys=[bucket]), then each block is cut into its buckets

"sec" is by the clock, without the start of Ray; "cpu_sec" is that of all processes of the cluster and the driver. Memory is what a
process has allocated (RssAnon of Linux), looked at 10 times a second. "object_store_mb" is the most that Ray's object store held,
"spilled_mb" what it wrote to disk.
"ratio" is seconds of the best of Ray Data's ways over those of the tasks, at the largest size.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_scale
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _bench import finish

from ray_app.base.hashing import hash_pin_ids
from ray_app.cluster.resources import start_local

WAYS = ("tasks", "plain", "batches", "disk", "partitioned")
BUCKET_ROWS = 250_000
STORE_BYTES = 500_000_000
BUCKET = "bucket"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--store-bytes", type=int, default=STORE_BYTES)
    parser.add_argument("--one", nargs=4, metavar=("WAY", "BUCKETS", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        way, buckets, source, target = args.one
        _measure_one(way, int(buckets), Path(source), Path(target), args.store_bytes)
        return
    found: dict[str, dict[str, Any]] = {}
    for rows in args.rows:
        found[str(rows)] = {}
        with tempfile.TemporaryDirectory() as temp:
            source = Path(temp) / "log"
            _write_source(source, rows)
            for way in args.ways:
                buckets = 2 ** int(np.ceil(np.log2(max(rows / BUCKET_ROWS, 1))))
                command = [sys.executable, __file__, "--one", way, str(buckets), str(source), f"{temp}/{way}"]
                told = subprocess.run(
                    [*command, "--store-bytes", str(args.store_bytes)], capture_output=True, text=True, timeout=3000
                )
                if told.returncode:
                    found[str(rows)][way] = {"failed": told.stderr.strip().splitlines()[-1][:300]}
                else:
                    found[str(rows)][way] = json.loads(told.stdout.splitlines()[-1])
                print(rows, way, json.dumps(found[str(rows)][way]), flush=True)
    last = found[str(args.rows[-1])]
    theirs = [one["sec"] for way, one in last.items() if way != "tasks" and "sec" in one]
    finish("bench_shuffle", min(theirs) / last["tasks"]["sec"], rows=found, bucket_rows=BUCKET_ROWS,
           object_store_bytes=args.store_bytes, file_rows=bench_scale.FILE_ROWS)  # fmt: skip


def _write_source(folder: Path, rows: int) -> None:
    folder.mkdir(parents=True)
    for i, (start, num) in enumerate(bench_scale._chunks(rows)):
        pq.write_table(bench_scale._log(start, num, rows // 10, rows // 20), folder / f"part-{i:05d}.parquet")


def _bucketed(table: pa.Table, num_buckets: int) -> pa.Table:
    bits = np.uint64(64 - int(np.log2(num_buckets)))
    keys = hash_pin_ids(table["pin_id"].to_pylist())
    number = keys >> bits if num_buckets > 1 else keys * np.uint64(0)
    return table.append_column(BUCKET, pa.array(number.astype(np.int32)))


def _write(table: pa.Table, number: int, target: str) -> int:
    rows = table.sort_by([("pin_id", "ascending"), ("event_id", "ascending")])
    pq.write_table(rows, f"{target}/bucket={number:04d}.parquet", compression="zstd")
    return rows.num_rows


def tasks(files: list[str], num_buckets: int, target: str) -> int:
    import ray

    from ray_app.tables.buckets import split_rows

    @ray.remote(num_cpus=1, num_returns=num_buckets)
    def split(path: str) -> Any:
        table = _bucketed(pq.read_table(path), num_buckets)
        cut = split_rows(table.drop_columns([BUCKET]), table[BUCKET].to_numpy().astype(np.int64), num_buckets)
        return cut if num_buckets > 1 else cut[0]

    @ray.remote(num_cpus=1)
    def join(number: int, *parts: pa.Table) -> int:
        return _write(pa.concat_tables(parts), number, target)

    cuts: Any = [split.remote(path) for path in files]
    parts = [[cut[i] if num_buckets > 1 else cut for cut in cuts] for i in range(num_buckets)]
    joined = [join.remote(i, *some) for i, some in enumerate(parts)]
    del cuts, parts  # so that Ray may free each part as soon as it is joined
    return int(sum(ray.get(joined)))


def _dataset(files: list[str], num_buckets: int) -> Any:
    import ray.data

    read = ray.data.from_items([{"path": path} for path in files], override_num_blocks=len(files))

    def load(batch: dict[str, Any]) -> pa.Table:
        return _bucketed(pq.read_table(batch["path"][0]), num_buckets)

    return read.map_batches(load, batch_size=1)


def plain(files: list[str], num_buckets: int, target: str) -> int:
    def reduce(table: pa.Table) -> pa.Table:
        number = table[BUCKET][0].as_py()
        return pa.table({"rows": [_write(table.drop_columns([BUCKET]), number, target)]})

    groups = _dataset(files, num_buckets).groupby(BUCKET, num_partitions=num_buckets)
    return int(groups.map_groups(reduce, batch_format="pyarrow").sum("rows"))


def batches(files: list[str], num_buckets: int, target: str) -> int:
    import ray.data

    ray.data.DataContext.get_current().shuffle_input_batch_bytes = 64_000_000
    return plain(files, num_buckets, target)


def disk(files: list[str], num_buckets: int, target: str) -> int:
    import ray.data

    ray.data.DataContext.get_current().use_disk_based_hash_shuffle = True
    return plain(files, num_buckets, target)


def partitioned(files: list[str], num_buckets: int, target: str) -> int:
    def reduce(table: pa.Table) -> Iterator[pa.Table]:
        numbers = table[BUCKET].to_numpy()
        for number in np.unique(numbers).tolist():
            rows = table.filter(pa.array(numbers == number)).drop_columns([BUCKET])
            yield pa.table({"rows": [_write(rows, number, target)]})

    blocks = _dataset(files, num_buckets).repartition(num_buckets, keys=[BUCKET])
    return int(blocks.map_batches(reduce, batch_size=None, batch_format="pyarrow").sum("rows"))


def _measure_one(way: str, buckets: int, source: Path, target: Path, store_bytes: int) -> None:
    import ray
    import ray.data

    logging.disable(logging.WARNING)
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    target.mkdir()
    start_local(num_cpus=6, include_dashboard=False, object_store_memory=store_bytes, log_to_driver=False)
    ray.get(ray.remote(lambda: None).remote())  # a worker is there
    watch = _Watch()
    started = time.perf_counter()
    files = sorted(map(str, source.glob("*.parquet")))
    rows = globals()[way](files, buckets, str(target))
    sec = time.perf_counter() - started
    told = watch.stop()
    assert rows == sum(pq.read_metadata(path).num_rows for path in files), rows
    written = list(target.glob("*.parquet"))
    assert len(written) == buckets and sum(pq.read_metadata(path).num_rows for path in written) == rows
    print(json.dumps({"sec": round(sec, 1), "buckets": buckets, **told}))
    ray.shutdown()


class _Watch:
    """Looks at the processes of this driver and at Ray's object store while something runs."""

    def __init__(self) -> None:
        import psutil

        self.driver = self.worker = 0.0
        self.store = self.spilled = 0
        self._stop = threading.Event()
        self._cpu: dict[int, float] = {}
        self._process = psutil.Process()
        self._before = sum(self._process.cpu_times()[:2])
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        import psutil
        import ray
        from ray._private.internal_api import node_stats

        count, node = 0, ray.nodes()[0]
        while not self._stop.wait(0.1):
            self.driver = max(self.driver, bench_scale._allocated(os.getpid()))
            for child in self._process.children(recursive=True):
                try:
                    if bench_scale._command(child).startswith("ray::"):
                        self.worker = max(self.worker, bench_scale._allocated(child.pid))
                        self._cpu[child.pid] = sum(child.cpu_times()[:2])
                except psutil.Error:
                    continue
            count += 1
            if count % 5 == 0:
                stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats
                self.store = max(self.store, stats.object_store_bytes_used)
                self.spilled = max(self.spilled, stats.spilled_bytes_total)

    def stop(self) -> dict[str, Any]:
        self._stop.set()
        self._thread.join()
        cpu = sum(self._cpu.values()) + sum(self._process.cpu_times()[:2]) - self._before
        return {
            "cpu_sec": round(cpu, 1), "driver_mb": round(self.driver / 1e6), "worker_mb": round(self.worker / 1e6),
            "object_store_mb": round(self.store / 1e6), "spilled_mb": round(self.spilled / 1e6),
        }  # fmt: skip


if __name__ == "__main__":
    main()
