"""Training a cross-encoder: samples/s and padding of sentence_transformers' CrossEncoderTrainer and of our loop.

    python benchmarks/bench_train.py [--pairs 1024] [--repeats 3] [--dtype float32]

What limits it: the language model's matrix products, on padding too. The same MiniLM weights without dropout, the same
pairs (random products of Chorus with searches of its log, random grades: they decide no timing), 32 pairs per optimiser
step, one epoch of AdamW over all layers and token embeddings, hard cross-entropy over five grades, on all sides:

    peer         sentence_transformers CrossEncoderTrainer as it comes: random batches, padded to the longest
    ours         `ray_app.training.loop.fit`: batches of similar length
    ours_parts   the same with train.micro_batch_tokens: a batch in parts that pad less
    ours_ray     `train_on_ray`, one worker: two runs, with all pairs and with 64, so that start-up and saving cancel out

Sides take turns; seconds are medians. Padding is counted by a hook before the language model, alike for all.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _bench import CHORUS, finish, skip
from bench_label import ENCODER, MAX_TOKENS, make_pairs

from ray_app.base.config import TeacherConfig
from ray_app.base.storage import Storage
from ray_app.cluster.resources import start_local
from ray_app.cluster.train import train_on_ray
from ray_app.cluster.train_job import TrainJob
from ray_app.models.head import FeatureScaler
from ray_app.stages.train_teacher.stage import build_teacher
from ray_app.training.examples import Examples
from ray_app.training.loop import fit
from ray_app.training.state import Worker

BATCH = 32
PART_TOKENS = 1024
NOTHING = FeatureScaler(np.zeros(0), np.ones(0))


class Padding:
    """Counts tokens on their way into a language model."""

    def __init__(self, backbone: Any) -> None:
        self.tokens, self.padded = 0, 0
        self.hook = backbone.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _model: Any, args: Any, kwargs: Any) -> None:
        self.tokens += int(kwargs["attention_mask"].sum())
        self.padded += kwargs["attention_mask"].numel()

    @property
    def share(self) -> float:
        """Of padding in all tokens."""
        return round(1 - self.tokens / self.padded, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    if not CHORUS.exists():
        skip("bench_train", f"{CHORUS.name} is not there")
        return
    try:
        import datasets  # noqa: F401 - the peer's trainer needs it
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        skip("bench_train", f"{error.name} is not installed: pip install -e '.[bench]'")
        return
    logging.disable(logging.INFO)
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    examples = make_examples(args.pairs)
    warm = examples.rows(np.arange(2 * BATCH))
    sides: dict[str, Callable[[Examples], tuple[float, float]]] = {
        "peer": partial(peer, dtype=args.dtype),
        "ours": partial(ours, dtype=args.dtype, part_tokens=None),
        "ours_parts": partial(ours, dtype=args.dtype, part_tokens=PART_TOKENS),
    }
    for side in sides.values():
        side(warm)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    padding: dict[str, float] = {}
    for _ in range(args.repeats):
        for name, side in sides.items():
            took, padding[name] = side(examples)
            seconds[name].append(took)
    figures: dict[str, dict[str, Any]] = {
        name: {
            "samples_per_sec": round(args.pairs / statistics.median(times), 2),
            "seconds": [round(s, 2) for s in times],
            "padding_share": padding[name],
        }
        for name, times in seconds.items()
    }
    figures["ours_ray"] = through_ray(examples, args.dtype)
    base = figures["peer"]["samples_per_sec"]
    for name, side_figures in figures.items():
        side_figures["over_peer"] = round(side_figures["samples_per_sec"] / base, 3)
        print(name, side_figures, flush=True)
    finish(
        "bench_train" if args.dtype == "float32" else f"bench_train_{args.dtype}",
        figures["ours"]["over_peer"],
        goals={"ours_over_peer": 1.2, "padding_share": 0.1},
        dtype=args.dtype,
        pairs=args.pairs,
        max_tokens=MAX_TOKENS,
        batch=BATCH,
        part_tokens=PART_TOKENS,
        sides=figures,
    )


def make_examples(num_pairs: int) -> Examples:
    """Random pairs with random grades."""
    rows = make_pairs(num_pairs, 1)
    grades = np.random.default_rng(0).integers(0, 5, num_pairs)
    return Examples(
        queries=rows["query"].to_pylist(), pin_texts=rows["pin_text"].to_pylist(),
        features=np.zeros((num_pairs, 0), np.float32), targets=np.eye(5, dtype=np.float32)[grades],
        weights=np.ones(num_pairs, np.float32),
    )  # fmt: skip


def config(dtype: str, part_tokens: int | None = None) -> TeacherConfig:
    """Settings of our sides."""
    train = {
        "epochs": 1, "batch_size": BATCH, "loss": "hard", "train_embeddings": True, "dtype": dtype,
        "micro_batch_tokens": part_tokens, "checkpoint_interval_sec": 3600,
    }  # fmt: skip
    return TeacherConfig.model_validate(
        {"base_model": ENCODER, "pooling": "cls", "max_tokens": MAX_TOKENS, "use_features": False, "dropout": 0.0, "train": train}
    )  # fmt: skip


def ours(examples: Examples, dtype: str, part_tokens: int | None) -> tuple[float, float]:
    """Seconds of an epoch, tokenisation included, and the padding share."""
    import torch

    from ray_app.models.cross_encoder import CrossEncoder

    cfg = config(dtype, part_tokens)
    torch.manual_seed(0)
    model = CrossEncoder.from_base(cfg, NOTHING)
    padding = Padding(model.backbone)
    start = time.perf_counter()
    fit(model, examples, examples.rows(np.arange(0)), cfg.train, 0, Worker())
    return time.perf_counter() - start, padding.share


def peer(examples: Examples, dtype: str) -> tuple[float, float]:
    """The same by CrossEncoderTrainer."""
    import torch
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import CrossEntropyLoss

    from ray_app.models.model_sources import resolve

    disable_progress_bar()
    torch.manual_seed(0)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = CrossEncoder(
        resolve(ENCODER), num_labels=5, max_length=MAX_TOKENS, device="cpu", config_kwargs=no_dropout,
        model_kwargs={"dtype": torch.float32},
    )  # fmt: skip
    padding = Padding(next(m for m in model.modules() if type(m).__name__ == "BertModel"))
    data = Dataset.from_dict(
        {
            "query": list(examples.queries),
            "pin": list(examples.pin_texts),
            "label": examples.targets.argmax(1).tolist(),
        }
    )
    with tempfile.TemporaryDirectory() as temp:
        settings = CrossEncoderTrainingArguments(
            output_dir=temp, num_train_epochs=1, per_device_train_batch_size=BATCH, use_cpu=True, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, bf16=dtype == "bfloat16", learning_rate=2e-5,
            weight_decay=0.01, warmup_steps=0,
        )  # fmt: skip
        trainer = CrossEncoderTrainer(model=model, args=settings, train_dataset=data, loss=CrossEntropyLoss(model))
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start, padding.share


def through_ray(examples: Examples, dtype: str) -> dict[str, Any]:
    """Samples/s of our loop in a Ray Train worker."""
    import ray

    start_local(num_cpus=6, object_store_memory=300_000_000, log_to_driver=False, include_dashboard=False)
    cfg = config(dtype)
    took, padding = {}, 0.0
    for num in (2 * BATCH, len(examples)):
        with tempfile.TemporaryDirectory() as temp:
            store = Storage(temp)
            job = TrainJob(
                build=partial(build_teacher, cfg, NOTHING, store, None), train=examples.rows(np.arange(num)),
                valid=examples.rows(np.arange(0)), cfg=cfg.train, model_folder="models/teacher/bench",
            )  # fmt: skip
            start = time.perf_counter()
            train_on_ray("bench", [job], 0, store)
            took[num] = time.perf_counter() - start
            padding = store.read_json(f"{job.model_folder}/history.json")[-1]["padding_share"]
            assert (Path(temp) / job.model_folder / "files.json").exists()
    ray.shutdown()
    small, whole = took
    rate = (whole - small) / (took[whole] - took[small])
    return {
        "samples_per_sec": round(rate, 2), "seconds": [round(took[whole], 2)], "startup_sec": round(took[small], 2),
        "padding_share": padding,
    }  # fmt: skip


if __name__ == "__main__":
    main()
