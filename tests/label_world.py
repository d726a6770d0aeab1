"""Teachers with random weights and pairs for them, for tests of the label stage; as a program, a labelling job that can
be killed: `python label_world.py spec.json`."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny_models import WORDS

from ray_app.base.columns import matrix_column
from ray_app.base.config import LabelConfig, TeacherConfig
from ray_app.base.content_key import content_keys
from ray_app.base.storage import Storage
from ray_app.cluster.resources import start_local
from ray_app.models.checkpoint import finished_model, save_model
from ray_app.stages.label.batch import label_batch
from ray_app.stages.label.labeller import Labeller
from ray_app.stages.label.teacher import Teacher

NUM_FEATURES = 2
MAX_TOKENS = 48
_TEACHER = "models/teacher/tiny"


def save_teacher(store, base_model, pooling="last", **values):
    """A teacher whose head spreads its grades, so that a wrong state shows."""
    import torch

    from ray_app.models.cross_encoder import CrossEncoder
    from ray_app.models.head import FeatureScaler

    torch.manual_seed(1)
    sizes = {"max_tokens": MAX_TOKENS, "projection_dim": 8, "hidden_dim": 8}
    cfg = TeacherConfig(base_model=base_model, pooling=pooling, **(sizes | values))
    model = CrossEncoder.from_base(cfg, FeatureScaler(np.zeros(NUM_FEATURES), np.ones(NUM_FEATURES))).eval()
    with torch.no_grad():
        model.head.head[-1].weight.mul_(10)
        for name, weight in model.backbone.named_parameters():
            if "lora_B" in name:  # zeros at the start, as if there were no adapter
                weight.normal_(std=0.5)
    save_model(model, store, _TEACHER, history=[], extra_files={})
    return finished_model(store, _TEACHER)


def labeller(store, teacher, **label):
    """Only what the engines read of a config."""
    cfg = SimpleNamespace(label=LabelConfig(**({"dtype": "float32", "rows_per_block": 16, "batch_size": 8} | label)))
    return Labeller(cfg=cfg, store=store, teacher=teacher)


def pairs(num_pins, queries_per_pin, seed=0, first=(), pin_words=(3, 38)):
    """Columns content_key, query, pin_text, features; pairs of a pin stand together, after the (query, pin) of `first`."""
    rng = np.random.default_rng(seed)
    words = WORDS[4:]

    def text(low, high):
        return " ".join(rng.choice(words, rng.integers(low, high)))

    rows = list(first)
    for _ in range(num_pins):
        pin = text(*pin_words)
        rows += [(text(1, 6), pin) for _ in range(queries_per_pin)]
    rows = list(dict.fromkeys(rows))
    queries, texts = [q for q, _ in rows], [t for _, t in rows]
    return pa.table(
        {
            "content_key": content_keys("pairs", queries, texts),
            "query": pa.array(queries, pa.string()),
            "pin_text": pa.array(texts, pa.string()),
            "features": matrix_column(rng.normal(size=(len(rows), NUM_FEATURES)).astype(np.float32)),
        }
    )


def _as_arrays(found):
    probs = [row or [np.nan] * 5 for row in found["probs"].to_pylist()]
    return np.array(probs, np.float64), found["error"].to_pylist()


def probs_of(maker, rows):
    """(n, 5) float64, and the errors; row i for row i."""
    return _as_arrays(maker.ledger.lookup(rows["content_key"]))


def expected(store, teacher, rows, dtype="float32", batch_size=8, prefix_sharing=True):
    """What the transformers engine says, without Ray and without a ledger; as `probs_of`."""
    return _as_arrays(label_batch(rows, Teacher(store, teacher, dtype, batch_size, prefix_sharing=prefix_sharing)))


def ledger_keys(maker):
    """Content keys as they stand in the ledger's files, so that a row that stands twice is there twice."""
    store = maker.ledger.store
    return [
        key
        for path in store.list_files(maker.ledger.folder, ".parquet")
        for key in store.read_table(path)["content_key"].to_pylist()
    ]


def num_blocks(maker):
    """Committed so far."""
    return len(maker.ledger.store.list_files(maker.ledger.folder, ".parquet"))


# --- a job of its own, on a cluster of its own ---


@dataclass(frozen=True)
class Job:
    process: subprocess.Popen
    folder: Path

    @property
    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    def finish(self, timeout_sec=400):
        """Counts of its runs, and what the metrics endpoint said in the end; a hang is a failure."""
        try:
            self.process.wait(timeout_sec)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the job hangs:\n{self.log[-2000:]}") from None
        assert self.process.returncode == 0, self.log[-3000:]
        return json.loads((self.folder / "done.json").read_text())

    def kill(self):
        """SIGKILL the driver, its raylet and its workers at once, as a dying machine would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start_job(folder, num_cpus, rows, *makers):
    """Label `rows` with each maker in turn, in a process group of its own, which Ray's processes join."""
    folder.mkdir(parents=True)
    pq.write_table(rows, folder / "rows.parquet")
    runs = [{"store": maker.store.uri, "label": maker.cfg.label.model_dump(mode="json")} for maker in makers]
    (folder / "spec.json").write_text(json.dumps({"num_cpus": num_cpus, "runs": runs}))
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    env |= {"RAY_metrics_report_interval_ms": "500"}
    with (folder / "log").open("w") as log:
        command = [sys.executable, __file__, str(folder)]
        return Job(
            subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True),
            folder,
        )


def main(folder):
    logging.basicConfig(level=logging.INFO)
    folder = Path(folder)
    spec = json.loads((folder / "spec.json").read_text())
    start_local(
        num_cpus=spec["num_cpus"],
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200_000_000,
    )
    rows, done = pq.read_table(folder / "rows.parquet"), []
    for run in spec["runs"]:
        store = Storage(run["store"])
        counts = labeller(store, finished_model(store, _TEACHER), **run["label"]).work().compute(rows)
        done.append(asdict(counts))
    total = sum(counts["computed"] for counts in done)
    answer = {"runs": done, "metrics": poll_metric("ray_relevance_rows_total", total)}
    (folder / "done.json").write_text(json.dumps(answer))


def poll_metric(name, until):
    """Samples of this cluster's Prometheus endpoint by their `stage`, once they come to `until` or after 30 s."""
    import urllib.request

    import ray
    from prometheus_client.parser import text_string_to_metric_families

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline, found = time.monotonic() + 30, {}
    while sum(found.values()) < until and time.monotonic() < deadline:
        time.sleep(0.2)
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            found = {
                sample.labels["stage"]: sample.value
                for family in text_string_to_metric_families(answer.read().decode())
                for sample in family.samples
                if sample.name == name
            }
    return found


# --- kills ---


class Killer(threading.Thread):
    """kill -9, once, when `num_blocks` of them are committed: a process of this test's own cluster with `name` in its title.

    Args:
        maker: Whose ledger is watched.
        num_blocks: When.
        name: In the process's title.
    """

    def __init__(self, maker, num_blocks, name):
        super().__init__(daemon=True)
        self.maker, self.num_blocks, self.name_part = maker, num_blocks, name
        self.killed = self.at_block = None
        self.start()

    def run(self):
        deadline = time.monotonic() + 400
        while num_blocks(self.maker) < self.num_blocks:
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if (
                    entry.name.isdigit()
                    and self.name_part in (entry / "cmdline").read_text()
                    and _is_descendant(int(entry.name))
                ):
                    os.kill(int(entry.name), signal.SIGKILL)
                    self.killed, self.at_block = int(entry.name), num_blocks(self.maker)
                    return


def _is_descendant(pid):
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


if __name__ == "__main__":
    main(sys.argv[1])
