"""Captions: images/s through Ray Data (the stage's own path) against a plain loop over the same model.

    python benchmarks/bench_caption.py [--model SOURCE] [--images N] [--repeats 3]

What limits it: the model's `generate`. Ray adds two trips of each picture through the object store; it gains by decoding
on other cores while the model generates, so on a machine with cores to spare the ratio may exceed 1.

Both sides read the same files, decode with the same function, and give the same batches to an equal captioner; captions
are compared. The loop is timed with 1 torch thread and with as many as there are cores, and its faster one is the
baseline: torch's threads are not the same thing on both sides, since Ray calls the model outside of an actor's main
thread, where torch reports the number that was set in the main thread but was seen to compute like one thread, and small
models get slower with more threads on a busy machine. A ratio far above the number of cores means that something else
than Ray was measured.

Start-up is outside of both timings: the loop's model is loaded and warm before, and on Ray no picture is read before the
engine says that it is ready. Ray's time ends when the last caption is in the ledger. All sides run in turns.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from _bench import ROOT, finish, skip, summary

from ray_app.base.config import CaptionConfig, RayConfig
from ray_app.base.storage import Storage
from ray_app.cluster.resources import start_local
from ray_app.models.devices import actor_threads
from ray_app.stages.caption.batches import CaptionUDF, load_images, to_image
from ray_app.stages.caption.chain import caption_chain
from ray_app.stages.caption.clean import clean_caption
from ray_app.stages.caption.engine import TransformersCaptioner
from ray_app.stages.caption.image_index import SOURCES
from ray_app.stages.caption.stage import caption_work

CLOTHING = ROOT.parent / "shared" / "data" / "clothing" / "images"
DEMO_MODEL = "package:ray_app/demo/models/vlm"
GOAL = 0.9


class GatedCaptionUDF(CaptionUDF):
    """Says when it is ready."""

    def __init__(self, cfg: CaptionConfig, cpu_threads: int, gate: Path) -> None:
        super().__init__(cfg, cpu_threads)
        gate.touch()


def load_when_ready(job: pa.Table, gate: Path, **kwargs: Any) -> Iterator[pa.Table]:
    """`load_images`, once the engine is ready: else decoding would hide in its start-up."""
    while not gate.exists():
        time.sleep(0.005)
    yield from load_images(job, **kwargs)


def through_ray(cfg: CaptionConfig, sources: pa.Table) -> tuple[float, dict[str, str | None]]:
    """Seconds from a ready engine to the last caption, and the captions."""
    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder) / "ready"
        store = Storage(folder)
        chain = partial(
            caption_chain, cfg, store, load=partial(load_when_ready, gate=gate), captioner=GatedCaptionUDF, gate=gate
        )
        work = replace(caption_work(cfg, store), chain=chain)
        work.compute(sources)
        seconds = time.time() - gate.stat().st_mtime
        table = work.ledger.scan().table
        return seconds, dict(zip(table["content_key"].to_pylist(), table["caption"].to_pylist(), strict=True))


def plain_loop(
    cfg: CaptionConfig, sources: pa.Table, captioner: TransformersCaptioner
) -> tuple[float, dict[str, str | None]]:
    """Read, decode and caption batch after batch in this process; no table in between."""
    began = time.perf_counter()
    found: dict[str, str | None] = {}
    for start in range(0, sources.num_rows, cfg.batch_size):
        for batch in load_images(sources.slice(start, cfg.batch_size), Storage("."), cfg.limits, cfg.batch_size):
            rows = batch.to_pylist()
            texts = captioner.caption([to_image(row["width"], row["height"], row["pixels"]) for row in rows])
            captions = [clean_caption(text, cfg.prompt, cfg.max_chars).caption for text in texts]
            found |= dict(zip([row["content_key"] for row in rows], captions, strict=True))
    return time.perf_counter() - began, found


def as_sources(paths: list[Path]) -> pa.Table:
    """Files as the stage would list them."""
    rows = [
        {"content_key": str(i), "sha256": sha256(p.read_bytes()).hexdigest(), "location": str(p)}
        for i, p in enumerate(paths)
    ]
    return pa.Table.from_pylist(rows, schema=SOURCES)


def demo_images(folder: Path, count: int) -> list[Path]:
    """Pictures of the demo world."""
    from ray_app.demo.concepts import draw_concept
    from ray_app.demo.render_images import image_bytes_of

    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        path = folder / f"{number}.png"
        path.write_bytes(image_bytes_of(draw_concept(rng), rng))
        paths.append(path)
    return paths


def measure(cfg: CaptionConfig, paths: list[Path], repeats: int, captioner: TransformersCaptioner) -> dict[str, Any]:
    """Both sides in turns, so that other work on the machine hits both."""
    import torch

    sources = as_sources(paths)
    ours: list[float] = []
    peers: dict[int, list[float]] = {threads: [] for threads in sorted({1, os.cpu_count() or 1})}
    equal = True
    for _ in range(repeats):
        seconds, found = through_ray(cfg, sources)
        ours.append(seconds)
        for threads, peer in peers.items():
            torch.set_num_threads(threads)
            seconds, expected = plain_loop(cfg, sources, captioner)
            peer.append(seconds)
            equal = equal and found == expected
    best = min(peers, key=lambda threads: statistics.median(peers[threads]))
    return {
        "num_images": len(paths),
        "ray": summary(ours),
        "loops": {threads: summary(peer) for threads, peer in peers.items()},
        "loop_threads": best,
        "ray_images_per_sec": round(len(paths) / statistics.median(ours), 2),
        "loop_images_per_sec": round(len(paths) / statistics.median(peers[best]), 2),
        "ratio": round(statistics.median(peers[best]) / statistics.median(ours), 3),
        "equal": equal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    args = parser.parse_args()
    if args.model == DEMO_MODEL and not (ROOT / DEMO_MODEL.removeprefix("package:")).exists():
        skip("bench_caption", "the demo's model is not made yet; name another with --model")
        return
    cfg = CaptionConfig(
        model=args.model, dtype="float32", batch_size=args.batch_size, max_new_tokens=args.max_new_tokens
    )
    threads = actor_threads(cfg.num_actors, cfg.num_cpus)
    start_local(num_cpus=RayConfig().num_cpus or 6, include_dashboard=False, log_to_driver=False)
    captioner = TransformersCaptioner(cfg, threads)
    captioner.caption([to_image(64, 64, b"\xff" * (64 * 64 * 3))] * cfg.batch_size)  # warm
    cases: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cases["demo"] = measure(cfg, demo_images(Path(folder), args.images), args.repeats, captioner)
    photos = sorted(CLOTHING.glob("*.jpg"))[: args.images] if CLOTHING.exists() else []
    if photos:
        cases["clothing"] = measure(cfg, photos, args.repeats, captioner)
    print(f"{'case':10}{'images':>8}{'ray/s':>10}{'loop/s':>10}{'ratio':>8}{'equal':>7}")
    for name, case in cases.items():
        rates = f"{case['ray_images_per_sec']:10.1f}{case['loop_images_per_sec']:10.1f}"
        print(f"{name:10}{case['num_images']:8}{rates}{case['ratio']:8.2f}{case['equal']!s:>7}")
    ray.shutdown()
    finish(
        "bench_caption", min(case["ratio"] for case in cases.values()), goal=GOAL, headline="the lowest of all cases",
        equal=all(case["equal"] for case in cases.values()), model=args.model, batch_size=cfg.batch_size,
        max_new_tokens=cfg.max_new_tokens, ray_threads_asked=threads, cases=cases,
    )  # fmt: skip


if __name__ == "__main__":
    main()
