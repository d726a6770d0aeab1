"""Cases that disturb no stage on the common cluster: the app that serves under load, and vllm's engine."""

import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
from checks import Verdict
from cluster import Node
from label_world import Killer, expected, labeller, ledger_keys, pairs, probs_of, save_teacher, start_job
from records import Record
from serve_load import Load, assert_right, copied_run
from tiny_models import save_tiny_encoder
from world import World

from ray_app.base.storage import Storage
from ray_app.tables.current import current_release
from ray_app.tables.release import open_release
from serve.local import free_port, serving

VICTIMS = {  # fault -> a part of the process's title
    "serve_replica": "ServeReplica:relevance",
    "serve_proxy": "haproxy -",
    "serve_manager": "HAProxyManager",
    "serve_controller": "ServeController",
}
VLLM = "vllm_engine"
OTHERS = (*VICTIMS, VLLM)
_BLOCK = 16


@dataclass
class Others:
    """The app over a copy of the fault-free run, started when the first case needs it."""

    folder: Path  # for that copy
    world: World  # with the fault-free run

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self.app: SimpleNamespace | None = None

    def __enter__(self) -> "Others":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the app, if it runs."""
        self.app = None
        self._stack.close()

    def run(self, record: Record, rng: random.Random, folder: Path) -> None:
        """One case."""
        if record.fault == VLLM:
            self.stop()
            _kill_engine(record, rng, folder)
        else:
            self._kill_part_of_app(record, rng)

    def _started(self) -> SimpleNamespace:
        if self.app is None:
            shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier run, with --keep
            self.folder.mkdir()
            limits = {"deadline_ms": 10_000}
            config = copied_run(self.folder, str(self.world.reference), self.world.folder, limits=limits)
            store = Storage(str(self.folder / "run"))
            release = current_release(store)
            assert release is not None
            pins = open_release(store, release)["pin_id"].to_pylist()
            options = {"autoscaling_config": None, "num_replicas": 2}
            url, process = self._stack.enter_context(serving(str(config), [], free_port(), **options))
            self.app = SimpleNamespace(url=url, pins=pins[:40], node=Node(process.pid))
        return self.app

    def _kill_part_of_app(self, record: Record, rng: random.Random) -> None:
        """kill -9 under load: no answer is wrong, few are missing, and soon it is as before."""
        app, victim, wait = self._started(), VICTIMS[record.fault], rng.uniform(0, 2)
        record.moment = f"after {wait:.2f} s of load"
        with Load(app, clients=2) as load:
            try:
                load.wait(lambda: load.statuses[200] > 20)
                time.sleep(wait)
                # Only now: HAProxy replaces its process at each reload.
                before = [process.pid for process in app.node.named(victim)]
                if not before:
                    record.outcome = "nothing"
                    return
                killed = rng.choice(before)
                os.kill(killed, signal.SIGKILL)
                record.target = f"pid {killed}"
                at, answered = time.monotonic(), load.statuses[200]
                load.wait(lambda: _others(app, victim, killed) >= len(before), 120)
                load.wait(lambda: load.statuses[200] > answered + 50)
                back = time.monotonic() - at
                time.sleep(1.0)
                late = len(load.answers)
                load.wait(lambda: len(load.answers) > late + 30)
                missing = sum(status != 200 for status, _ in load.answers)
                if refused := [said for status, said in load.answers[late:] if status != 200]:
                    record.verdict.wrong.append(f"still refused after it was back: {refused[0]}")
                assert_right([answer for status, answer in load.answers if status == 200])
                record.outcome = "went on"
                gap = float(np.diff(load.answered_at).max())
                record.message = f"back in {back:.1f} s, {missing} of {len(load.answers)} requests failed, longest silence {gap:.1f} s"
            except (AssertionError, httpx.HTTPError) as error:
                record.outcome = "hung"
                record.verdict.wrong.append(" ".join(str(error).split())[:300])
        if not record.verdict.good:
            self.stop()


def _others(app: SimpleNamespace, victim: str, killed: int) -> int:
    return sum(process.pid != killed for process in app.node.named(victim))


def _kill_engine(record: Record, rng: random.Random, folder: Path) -> None:
    """kill -9 of vllm's EngineCore in the middle of a labelling job: each row once, and the labels are transformers'."""
    if find_spec("vllm") is None:
        record.outcome = "vllm is not installed"
        return
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    store = Storage(str(folder / "run"))
    teacher = save_teacher(store, str(save_tiny_encoder(folder / "encoder", 64)), "mean")
    rows = pairs(100, 4, seed=rng.randrange(1000))
    sizes = {"rows_per_block": _BLOCK, "batch_size": 8, "engine_args": {"max_num_seqs": 4}}
    maker = labeller(store, teacher, backend="vllm", **sizes)
    block = rng.randrange(1, len(rows) // _BLOCK - 3)
    record.moment = f"at block {block} of {-(-len(rows) // _BLOCK)}"
    job = start_job(folder / "job", 6, rows, maker)
    killer = Killer(maker, block, "EngineCore")
    try:
        counts = job.finish(400)["runs"][0]
        record.target = f"pid {killer.killed}" if killer.killed else ""
        record.outcome = "went on"
        keys = Counter(ledger_keys(maker))
        lost = len(set(rows["content_key"].to_pylist()) - keys.keys())
        record.verdict = Verdict(lost=lost, duplicated=keys.total() - len(keys), repeated=counts["recomputed_rows"])
        if record.verdict.good:
            probs, errors = probs_of(maker, rows)
            reference, reference_errors = expected(store, teacher, rows)
            if errors != reference_errors or np.nanmax(np.abs(probs - reference)) > 1e-4:
                record.verdict.wrong.append("labels are not those of transformers")
    except AssertionError as error:
        record.outcome = "crashed"
        record.verdict.wrong.append(" ".join(str(error).split())[-300:])
    finally:
        with contextlib.suppress(OSError):
            job.kill()
