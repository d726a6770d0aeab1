"""The shape of the stages that no model bounds, and of a run on many GPUs.

    python benchmarks/bench_scale.py                              # 10,000 to 1,000,000 rows; 1 to 64 actors
    python benchmarks/bench_scale.py --max-rows 10000000          # the whole range, an hour or two on 2 cores
    python benchmarks/bench_scale.py --only scale --stages release
    python benchmarks/bench_scale.py --only actors

Rows: each stage at each size in a process of its own, after a small run that loads what it loads lazily. Memory is what
the process has allocated (RssAnon of Linux), asked for from outside 20 times a second; "base_mb" is before the stage
begins. "worker_mb" is the same of the largest Ray worker, of stages that work bucket by bucket (all but sample; from two
buckets up); the processor time of workers counts.

    ingest     rows of a search log and a tenth as many pins: read, check, settle, write
    enrich     pins, saves and events, one each of three rows: rank titles and queries, write
    sample     events, over a catalogue of 10,000 pins and 1,000 queries at most: draw 20,000 pairs
    sample_catalogue   pins, with 20,000 events and 200 queries at most: the same
    plan       pairs whose labels are all there, in buckets: keys, the ledger's keys, what is missing (`ModelWork.compute`)
    release    pins of 64 numbers, in buckets: look up, write, publish

Actors: `ModelWork.compute`, the path of labels and embeddings, over engines that sleep as one would compute (3 s a block, 10%
more or less, 12 blocks per actor), on a local cluster with logical CPUs. Two efficiencies:
"efficiency" = sleep / (actors' time from when each was ready to the last commit): start-up excluded;
"efficiency_with_start_up" = sleep / (actors x the whole run's time).

Time per row ("us_per_row") is processor time, summed over threads, so that other work on the machine hardly counts;
"rows_per_sec" is by the clock. "growth" is from the smallest size to the largest, "spread" the highest over the lowest,
"ratio" the worst growth.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _bench import ROOT, finish

from ray_app.base.config import Config, load_config
from ray_app.base.content_key import content_keys, pin_keys
from ray_app.base.hashing import bucket_of
from ray_app.base.schemas import HUMAN_LABELS, PIN_TEXTS, SOFT_LABEL_RESULTS, embedding_results
from ray_app.base.storage import Storage
from ray_app.cluster.resources import start_local
from ray_app.sources.validate import KEYS
from ray_app.tables.buckets import bucketed_output, choose_num_buckets, split_rows, write_bucket, write_by_pin
from ray_app.tables.ledger import Ledger

STAGES = ("ingest", "enrich", "sample", "sample_catalogue", "plan", "release")
ACTORS = (1, 4, 16, 64)
SLEEP_SEC, BLOCKS_PER_ACTOR, ROWS_PER_BLOCK = 3.0, 12, 256
DIM = 64
FILE_ROWS = 100_000
WORDS = np.array([f"word{i}" for i in range(50_000)], object)
ACTIONS = np.array(["impression"] * 8 + ["click", "save"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["scale", "actors"])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--actors", type=int, nargs="+", default=list(ACTORS))
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "ROWS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    if args.one:
        measure_one(args.one[0], int(args.one[1]))
        return
    kept = _earlier()
    stages: dict[str, Any] = kept.get("stages", {})
    actors: dict[str, Any] = kept.get("actors", {})
    if args.only != "actors":
        sizes = [10**k for k in range(4, 8) if 10**k <= args.max_rows]
        for stage in args.stages:
            stages[stage] = measure_stage(stage, sizes)
            print(stage, json.dumps(stages[stage]), flush=True)
    if args.only != "scale":
        actors |= measure_actors(args.actors)
    stages = {name: _shape(measured) for name, measured in stages.items()}
    growths = [stage["growth"] for stage in stages.values()]
    finish(
        "bench_scale", max(growths, default=0.0), goals={"growth": 1.3, "efficiency": 0.9}, stages=stages, actors=actors,
        engine={"sleep_sec": SLEEP_SEC, "rows_per_block": ROWS_PER_BLOCK, "blocks_per_actor": BLOCKS_PER_ACTOR},
        note="on a machine with load_1min well above 0.5 other work was running, and times are too long",
    )  # fmt: skip


def _earlier() -> dict[str, Any]:
    """Results of an earlier run, of which a run with --only or --stages keeps the rest."""
    path = ROOT / "benchmarks" / "results" / "bench_scale.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


# --- rows ---------------------------------------------------------------------------------------------------------


def measure_stage(stage: str, sizes: list[int]) -> dict[str, Any]:
    """Times and memory at each size, and how both grow."""
    found = {}
    for rows in sizes:
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen([sys.executable, __file__, "--one", stage, str(rows)], stdout=out)
            peak, worker_peak, workers, looked = 0.0, 0.0, [], 0.0
            while process.poll() is None:
                peak = max(peak, _allocated(process.pid))
                if time.monotonic() - looked > 1.0:
                    workers, looked = _ray_workers(process.pid), time.monotonic()
                worker_peak = max([worker_peak, *map(_allocated, workers)])
                time.sleep(0.05)
            out.seek(0)
            told = out.read().splitlines()
        if process.returncode or not told:
            raise SystemExit(f"{stage} at {rows} rows ended with {process.returncode}")
        one = json.loads(told[-1])
        one["peak_mb"] = round(max(peak / 1e6, one["base_mb"]), 1)
        one["load_1min"] = round(os.getloadavg()[0], 1)
        if worker_peak:
            one["worker_mb"] = round(worker_peak / 1e6, 1)
        found[str(rows)] = one
    return {"rows": found}


def _shape(measured: dict[str, Any]) -> dict[str, Any]:
    """How time per row and memory grow over the sizes of a stage."""
    rows = measured["rows"]
    sizes = sorted(map(int, rows))
    per_row = [rows[str(size)]["us_per_row"] for size in sizes]
    shape: dict[str, Any] = {
        "growth": round(per_row[-1] / per_row[0], 2), "spread": round(max(per_row) / min(per_row), 2)
    }  # fmt: skip
    if len(sizes) > 1:
        more = _largest_mb(rows[str(sizes[-1])]) - _largest_mb(rows[str(sizes[-2])])
        shape["bytes_per_more_row"] = round(more * 1e6 / (sizes[-1] - sizes[-2]))
    return shape | {"rows": rows}


def _largest_mb(one: dict[str, Any]) -> float:
    return float(max(one["peak_mb"], one.get("worker_mb", 0.0)))


def measure_one(stage: str, rows: int) -> None:
    """In a process of its own: one stage at one size; prints JSON."""
    run: Callable[[Path, int], Callable[[], object]] = RUNS[stage]
    with tempfile.TemporaryDirectory() as temp:
        run(Path(temp) / "warm", 500)()
        seconds, cpu = [], []
        repeats = 3 if rows <= 100_000 else 1
        for i in range(repeats):
            # A child writes what the stage reads: the memory of that must not be counted here.
            folder = Path(temp) / str(i)
            write = f"bench_scale.RUNS[{stage!r}](pathlib.Path({str(folder)!r}), {rows})"
            program = (
                f"import sys, pathlib; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import bench_scale; {write}"
            )
            subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, stdout=sys.stderr)
            call = run(folder, 0)  # 0: the inputs are there
            base = _allocated(os.getpid()) / 1e6
            started, used = time.perf_counter(), time.process_time()
            call()
            seconds.append(time.perf_counter() - started)
            cpu.append(time.process_time() - used + _workers_cpu_sec())
    median, used = float(np.median(seconds)), float(np.median(cpu))
    print(json.dumps({
        "us_per_row": round(used / rows * 1e6, 2), "cpu_sec": round(used, 3), "sec": round(median, 3),
        "rows_per_sec": round(rows / median), "base_mb": round(base, 1), "repeats": repeats,
    }))  # fmt: skip


def _ray_workers(pid: int) -> list[int]:
    """Below a process, at this moment."""
    import psutil

    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return [child.pid for child in found if _command(child).startswith("ray::")]


def _command(process: Any) -> str:
    import psutil

    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _workers_cpu_sec() -> float:
    """Processor time of the Ray workers of this process, if it started any: theirs is the stage's work too."""
    import psutil

    times = [psutil.Process(pid).cpu_times() for pid in _ray_workers(os.getpid())]
    return float(sum(found.user + found.system for found in times))


def _allocated(pid: int) -> float:
    """Bytes; 0: it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return 0.0


def _config(folder: Path, *more: str) -> Config:
    tables = ("pins", "boards", "search_log", "human_labels")
    paths = [f"ingest.{table}={{adapter: table, path: {folder}/sources/{table}}}" for table in tables]
    return load_config(ROOT / "configs" / "base.yaml", [f"output={folder}/run", "enrich.min_clients=2", *paths, *more])


def _chunks(rows: int) -> list[tuple[int, int]]:
    return [(start, min(FILE_ROWS, rows - start)) for start in range(0, rows, FILE_ROWS)]


def _write(path: Path, tables: Any) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for i, table in enumerate(tables):
        pq.write_table(table, path / f"part-{i:05d}.parquet")


def _titles(start: int, num: int) -> list[str]:
    return [" ".join(some) for some in _words(np.random.default_rng(start).random((num, 6)))]


def _words(numbers: np.ndarray) -> np.ndarray:
    """Words for numbers in [0, 1): the commonest is one in 37, the rarest one in 150,000."""
    return WORDS[(len(WORDS) * numbers**3).astype(np.int64)]


def _pins(start: int, num: int) -> pa.Table:
    ids = [f"pin{i:09d}" for i in range(start, start + num)]
    return pa.table({"pin_id": ids, "title": _titles(start, num), "locale": ["en-US"] * num})


def _log(start: int, num: int, num_pins: int, num_queries: int) -> pa.Table:
    rng = np.random.default_rng(start + 1)
    query = (num_queries * rng.random(num) ** 2).astype(np.int64)  # some are frequent
    pin = (query * 7919 + rng.integers(0, 20, num)) % num_pins
    times = 1_700_000_000_000 + rng.integers(0, 30 * 86_400_000, num)
    return pa.table(
        {
            "event_id": [f"e{i:010d}" for i in range(start, start + num)],
            "timestamp": pa.array(times, pa.timestamp("ms", tz="UTC")),
            "query": [" ".join(some) for some in _words(np.column_stack([query * 0.618034 % 1, query * 0.414214 % 1]))],
            "locale": ["en-US"] * num,
            "pin_id": [f"pin{p:09d}" for p in pin.tolist()],
            "position": pa.array(rng.integers(1, 21, num), pa.int32()),
            "action": ACTIONS[rng.integers(0, len(ACTIONS), num)],
            "client_id": [f"c{c:09d}" for c in rng.integers(0, max(num_pins, 10), num).tolist()],
        }
    )


def _boards(start: int, num: int, num_pins: int) -> pa.Table:
    rng = np.random.default_rng(start + 2)
    pins = [f"pin{p:09d}" for p in rng.integers(0, num_pins, num).tolist()]
    boards = [f"board{i}" for i in range(start, start + num)]
    return pa.table({"board_id": boards, "pin_id": pins, "board_title": _titles(start + 3, num)})


def _labels() -> pa.Table:
    columns = {"query": ["red cup"], "locale": ["en-US"], "pin_id": ["pin000000000"], "rater_id": ["a"], "grade": [5]}
    return pa.table({**columns, "guideline_version": [None]}).cast(HUMAN_LABELS)


def run_ingest(folder: Path, rows: int) -> Callable[[], object]:
    from ray_app.stages.ingest.stage import run

    if rows:
        num_pins = max(rows // 10, 10)
        source = folder / "sources"
        _write(source / "pins", (_pins(*chunk) for chunk in _chunks(num_pins)))
        _write(source / "search_log", (_log(*chunk, num_pins, max(rows // 20, 5)) for chunk in _chunks(rows)))
        _write(source / "boards", [_boards(0, 10, num_pins)])
        _write(source / "human_labels", [_labels()])
    cfg = _config(folder)
    return lambda: run(cfg, Storage(cfg.output))


def _write_ingested(cfg: Config, num_pins: int, num_boards: int, num_events: int, num_queries: int) -> None:
    """What ingest would have left."""
    from ray_app.base.schemas import BOARDS, PINS, SEARCH_LOG
    from ray_app.tables.stage_run import StageRun

    ingest = StageRun("ingest", cfg, Storage(cfg.output), 1, [], [])
    made = {
        "pins": (PINS, _pins, num_pins, ()),
        "boards": (BOARDS, _boards, num_boards, (num_pins,)),
        "search_log": (SEARCH_LOG, _log, num_events, (num_pins, num_queries)),
    }
    store, row_bytes = Storage(cfg.output), 60  # of a row on disk
    num_buckets = choose_num_buckets(row_bytes * max(num_pins, num_boards, num_events), cfg.tables.bucket_bytes)
    for name, (schema, make, num, more) in made.items():
        parts: list[list[pa.Table]] = [[schema.empty_table()] for _ in range(num_buckets)]
        for chunk in _chunks(num):
            rows = _filled(make(*chunk, *more), schema)  # type: ignore[operator]
            cut = split_rows(rows, bucket_of(rows["pin_id"].to_pylist(), num_buckets), num_buckets)
            for part, some in zip(parts, cut, strict=True):
                part.append(some)
        folder = ingest.table_folder(name)
        buckets = [
            write_bucket(store, folder, number, pa.concat_tables(part).sort_by(KEYS[name][0]), cfg.tables.rows_per_file)
            for number, part in enumerate(parts)
        ]
        ingest.add_table(bucketed_output(name, folder, buckets))
    ingest.write_table("human_labels", _labels())
    ingest.finish({}, info={"num_buckets": num_buckets, "present": "2024-01-01T00:00:00+00:00"})


def _filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """With nulls for the columns that it lacks."""
    for column in schema:
        if column.name not in table.column_names:
            table = table.append_column(column.name, pa.nulls(table.num_rows, column.type))
    return table.select(schema.names).cast(schema)


def run_enrich(folder: Path, rows: int) -> Callable[[], object]:
    from ray_app.stages.enrich.stage import run

    cfg = _config(folder)
    if rows:
        third = max(rows // 3, 10)
        _write_ingested(cfg, third, third, third, max(third // 20, 5))
    return lambda: run(cfg, Storage(cfg.output))


def run_sample(folder: Path, rows: int) -> Callable[[], object]:
    return _sample(folder, num_events=rows, num_pins=10_000, max_queries=1_000)


def run_sample_catalogue(folder: Path, rows: int) -> Callable[[], object]:
    return _sample(folder, num_events=20_000 if rows else 0, num_pins=max(rows, 100), max_queries=200)


def _sample(folder: Path, num_events: int, num_pins: int, max_queries: int) -> Callable[[], object]:
    from ray_app.base.schemas import SPLITS, embedding_type
    from ray_app.stages.corpus_statistics.stage import run as count_corpus
    from ray_app.stages.sample.stage import run
    from ray_app.tables.manifest import read_manifest
    from ray_app.tables.stage_run import StageRun

    cfg = _config(
        folder, "sample.num_pairs=20000", "sample.product_type_min_pins=0", f"sample.max_queries={max_queries}"
    )
    store = Storage(cfg.output)
    if num_events:
        _write_ingested(cfg, num_pins, 10, num_events, max(num_events // 20, 5))
        ingest = read_manifest(store, "ingest")
        assert ingest is not None
        number = ingest.outputs["pins"].num_buckets
        enrich = StageRun("enrich", cfg, store, 1, [], [])
        texts = pa.concat_tables([_filled(_pins(*chunk), PIN_TEXTS) for chunk in _chunks(num_pins)])
        write_by_pin(enrich, "pin_texts", texts, number)
        enrich.finish({})
        train_teacher = StageRun("train_teacher", cfg, store, 1, [], [])
        train_teacher.write_table("splits", pa.table({"query": ["red cup"], "split": ["train"]}, schema=SPLITS))
        train_teacher.finish({})
        zero = StageRun("zero_shot", cfg, store, 1, [], [])
        vectors = [_vectors(*chunk) for chunk in _chunks(num_pins)]
        columns = {"title_embedding": pa.chunked_array(vectors), "text_embedding": pa.chunked_array(vectors)}
        write_by_pin(zero, "zero_shot_pins", pa.table({"pin_id": texts["pin_id"]} | columns), number)
        events = pa.concat_tables([store.read_table(path) for path in ingest.outputs["search_log"].files])
        queries = sorted(set(events["query"].to_pylist()))
        zero.write_table("zero_shot_queries", pa.table({"query": queries, "embedding": _vectors(1, len(queries))}))
        zero.finish({})
        count_corpus(cfg, store)
        assert embedding_type(DIM) == vectors[0].type
    return lambda: run(cfg, store)


def _vectors(seed: int, num: int) -> pa.Array:
    numbers = np.random.default_rng(seed).standard_normal((num, DIM)).astype(np.float32)
    numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), DIM)


BUCKET_ROWS = 250_000  # of pairs, or of pins with vectors


def _num_buckets(rows: int) -> int:
    return choose_num_buckets(rows, BUCKET_ROWS)


def _write_buckets(folder: Path, num_rows: int, make: Callable[[int, int], pa.Table]) -> None:
    """Files BUCKET.parquet of rows with a pin_id each, made in chunks (first row, how many)."""
    folder.mkdir(parents=True, exist_ok=True)
    number = _num_buckets(num_rows)
    writers: dict[int, pq.ParquetWriter] = {}
    for chunk in _chunks(num_rows):
        rows = make(*chunk)
        cut = split_rows(rows, bucket_of(rows["pin_id"].to_pylist(), number), number)
        for bucket, some in enumerate(cut):
            if bucket not in writers:
                writers[bucket] = pq.ParquetWriter(folder / f"{bucket}.parquet", rows.schema)
            writers[bucket].write_table(some)
    for writer in writers.values():
        writer.close()


def _pairs(start: int, num: int) -> pa.Table:
    rows = range(start, start + num)
    return pa.table(
        {
            "pin_id": [f"pin{i // 4:09d}" for i in rows],
            "query": [f"{WORDS[i % 4999]} {i // 5000}" for i in rows],
            "text": [f"pin {i % 997} {WORDS[i % 30_011]} and what else it says, field by field" for i in rows],
        }
    )


def run_plan(folder: Path, rows: int) -> Callable[[], object]:
    from ray_app.cluster.executor import ModelWork, Wanted
    from ray_app.cluster.resources import PoolRequest

    store, source = Storage(str(folder / "run")), folder / "pairs"

    def keyed(bucket: int) -> pa.Table:
        pairs = pq.read_table(source / f"{bucket}.parquet")
        keys = pin_keys(content_keys("recipe", pairs["query"], pairs["text"]), pairs["pin_id"])
        return pairs.append_column("content_key", keys)

    if rows:
        _write_buckets(source, rows, _pairs)
        ledger = Ledger(store, "soft_labels", "0" * 16, SOFT_LABEL_RESULTS, _num_buckets(rows))
        probs = pa.FixedSizeListArray.from_arrays(pa.array(np.full(5 * 8192, 0.2, np.float32)), 5)
        for bucket in range(ledger.num_buckets):
            keys = keyed(bucket)["content_key"].combine_chunks()
            for start in range(0, len(keys), 8192):
                some = keys[start : start + 8192]
                nothing = pa.nulls(len(some), pa.string())
                ledger.commit(pa.table({"content_key": some, "probs": probs[: len(some)], "error": nothing}))
            ledger.compact(bucket)
    number = len(list(source.iterdir()))
    ledger = Ledger(store, "soft_labels", "0" * 16, SOFT_LABEL_RESULTS, number)

    def plan() -> None:
        wanted = Wanted(num_buckets=number, keyed=keyed, columns=lambda _, missing: missing)
        work = ModelWork(
            noun="pairs", ledger=ledger, pool=PoolRequest(section="label"), chain=_no_chain, rows_per_block=8192
        )
        counts = work.compute(wanted)
        assert counts.already_present == counts.unique > 0

    return plan


def _no_chain() -> Any:
    raise AssertionError("nothing is missing")


def run_release(folder: Path, rows: int) -> Callable[[], object]:
    from ray_app.cluster.buckets import map_buckets
    from ray_app.tables.publish import publish_release

    store, source = Storage(str(folder / "run")), folder / "pins"

    def make(start: int, num: int) -> pa.Table:
        ids = [f"pin{i * 2654435761 % 2**32:010d}" for i in range(start, start + num)]  # in no order
        keys = content_keys("recipe", list(range(start, start + num)))
        return pa.table({"pin_id": ids, "content_key": pin_keys(keys, ids)})

    def keyed(bucket: int) -> pa.Table:
        return pq.read_table(source / f"{bucket}.parquet")

    if rows:
        _write_buckets(source, rows, make)
        ledger = Ledger(store, "pin_embeddings", "0" * 16, embedding_results(DIM), _num_buckets(rows))
        for bucket in range(ledger.num_buckets):
            keys = keyed(bucket)["content_key"].combine_chunks()
            for start in range(0, len(keys), 8192):
                some = keys[start : start + 8192]
                vectors, nothing = _vectors(start, len(some)), pa.nulls(len(some), pa.string())
                ledger.commit(pa.table({"content_key": some, "embedding": vectors, "error": nothing}))
    ledger = Ledger(store, "pin_embeddings", "0" * 16, embedding_results(DIM), len(list(source.iterdir())))
    return lambda: publish_release(
        store, keyed, ledger, dim=DIM, student_id="5" * 16, sources={}, config={}, map_buckets=map_buckets
    )


RUNS: dict[str, Callable[[Path, int], Callable[[], object]]] = {
    "ingest": run_ingest, "enrich": run_enrich, "sample": run_sample, "sample_catalogue": run_sample_catalogue,
    "plan": run_plan, "release": run_release,
}  # fmt: skip


# --- actors -------------------------------------------------------------------------------------------------------


class SleepingEngine:
    """An engine that takes as long as one would, and notes when."""

    def __init__(self, notes: str) -> None:
        self._notes = Path(notes) / f"{os.getpid()}-{time.time_ns()}.json"
        self._ready, self._slept = time.time(), 0.0

    def __call__(self, block: pa.Table) -> pa.Table:
        """Args: a block with `content_key`. Returns: a result for each row."""
        keys = block["content_key"]
        sleep = SLEEP_SEC * (0.9 + 0.2 * int(keys[0].as_py()[:8], 16) / 2**32)
        time.sleep(sleep)
        self._slept += sleep
        self._notes.write_text(json.dumps({"ready": self._ready, "slept": self._slept}))
        num = len(keys)
        probs = pa.FixedSizeListArray.from_arrays(pa.array(np.full(5 * num, 0.2, np.float32)), 5)
        return pa.table({"content_key": keys, "probs": probs, "error": pa.nulls(num, pa.string())})


def measure_actors(numbers: list[int]) -> dict[str, Any]:
    """Efficiencies at each number of actors, on one cluster."""
    import psutil
    import ray

    os.environ["RAY_prestart_worker_first_driver"] = "0"  # one process per logical CPU otherwise
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH")])
    )
    start_local(
        num_cpus=max(numbers) + 16, include_dashboard=False, log_to_driver=False,
        object_store_memory=300_000_000, logging_level=logging.WARNING,
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    found = {}
    for num in numbers:
        with tempfile.TemporaryDirectory() as temp:
            found[str(num)] = _run_actors(Path(temp), num)
        children = psutil.Process().children(recursive=True)
        print(num, "actors", json.dumps(found[str(num)]), len(children), "processes", flush=True)
    ray.shutdown()
    return found


def _run_actors(folder: Path, num: int) -> dict[str, Any]:
    from bench_scale import SleepingEngine as Engine  # by its module's name, so that workers import it too

    from ray_app.cluster.blocks import actor_chain
    from ray_app.cluster.executor import ModelWork
    from ray_app.cluster.resources import PoolRequest

    notes = folder / "notes"
    notes.mkdir()
    rows = num * BLOCKS_PER_ACTOR * ROWS_PER_BLOCK
    wanted = pa.table({"content_key": content_keys("actors", list(range(rows)))})
    ledger = Ledger(Storage(str(folder / "run")), "soft_labels", "1" * 16, SOFT_LABEL_RESULTS)
    pool = PoolRequest(section="label", num_actors=num, num_cpus=1)
    began = time.time()
    work = ModelWork(
        noun="pairs",
        ledger=ledger,
        pool=pool,
        chain=lambda: actor_chain(Engine, {"notes": str(notes)}),
        rows_per_block=ROWS_PER_BLOCK,
        progress_interval_sec=3600,
    )
    counts = work.compute(wanted)
    ended = began + counts.timing.wall_sec
    assert counts.computed == rows
    told = [json.loads(path.read_text()) for path in notes.iterdir()]
    slept = sum(one["slept"] for one in told)
    return {
        "efficiency": round(slept / sum(ended - one["ready"] for one in told), 3),
        "efficiency_with_start_up": round(slept / (num * counts.timing.wall_sec), 3),
        "wall_sec": round(counts.timing.wall_sec, 1), "slept_sec_per_actor": round(slept / num, 1),
        "last_actor_ready_sec": round(max(one["ready"] for one in told) - began, 1), "actors_used": len(told),
        "blocks": num * BLOCKS_PER_ACTOR, "load_1min": round(os.getloadavg()[0], 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
