"""Fine-tuning the teacher on one GPU, without Ray: tokens/s and the share of the card's measured matmul rate (MFU).

    python benchmarks/gpu/train_gpu.py            # on the GPU's machine: torch, transformers, peft, numpy, pydantic, pyarrow
    python benchmarks/gpu/train_gpu.py --tiny     # anywhere: does the script itself work?

Our loop (`ray_app.training.loop.fit`) and head over Llama shapes with random weights, which decide no timing: SmolLM2-135M
and 1B with all weights, 8B with adapters of rank 16 over weights in bfloat16 and gradient checkpointing. Pairs of 80 to
160 tokens. Counted are the products with the weights that a step cannot do without: 6 per weight and token when all are
trained (forward, gradients of activations and of weights), 4 under adapters; real tokens only, not padding, and not
what gradient checkpointing computes again. Attention is left out: below 2% at this length.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from label_gpu import SHAPES as LABEL_SHAPES
from label_gpu import seconds_of

from ray_app.base.config import TeacherConfig
from ray_app.models.cross_encoder import CrossEncoder
from ray_app.models.grade_head import GradeHead
from ray_app.models.head import FeatureScaler
from ray_app.training.batches import InMemory
from ray_app.training.examples import Examples
from ray_app.training.loop import fit
from ray_app.training.state import Worker

SHAPES: dict[str, dict[str, Any]] = LABEL_SHAPES | {
    "Llama-3.2-1B": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
                     "intermediate_size": 8192, "vocab_size": 128256},
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {  # micro-batch tokens, and what else of the settings
    "SmolLM2-135M": {"micro_batch_tokens": 65_536},
    "Llama-3.2-1B": {"micro_batch_tokens": 32_768},
    "Llama-3-8B": {"micro_batch_tokens": 32_768, "gradient_checkpointing": True, "frozen_dtype": "bfloat16"},
}
LORA_RANK = {"Llama-3-8B": 16}


@dataclass(frozen=True)
class RandomTokens:
    """Pairs whose "query" is their number of tokens: random ids of that length."""

    vocab: int

    def lengths(self, queries: Sequence[str], pin_texts: Sequence[str]) -> np.ndarray:
        """(B,) int64."""
        return np.array([int(query) for query in queries], np.int64)

    def prepare(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> dict[str, Any]:
        """Padded tokens."""
        lengths = torch.from_numpy(self.lengths(queries, pin_texts))
        mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
        ids = torch.randint(3, self.vocab, mask.shape) * mask
        return {"input_ids": ids, "attention_mask": mask, "features": torch.zeros(len(queries), 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="folder for the JSON line; default: benchmarks/results")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        sys.exit("no GPU here: --tiny runs the script on a CPU")
    side = 512 if args.tiny else 8192
    one = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    ceiling = 2 * side**3 / seconds_of(partial(torch.mm, one, one), 5, device)
    del one
    runs = {"tiny": {"micro_batch_tokens": 1024}, "tiny, adapters": RUNS["Llama-3-8B"]} if args.tiny else RUNS
    shapes = {}
    for name, settings in runs.items():
        rank = 4 if "adapters" in name else LORA_RANK.get(name)
        shapes[name] = measure(name.partition(",")[0], settings, rank, ceiling, device, args.steps)
        print(name, shapes[name], file=sys.stderr, flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()
    result = {
        "bench": "train_gpu", "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__, "matmul_tflops": round(ceiling / 1e12, 1), "goal_mfu": 0.45, "shapes": shapes,
    }  # fmt: skip
    line = json.dumps(result)
    if not args.tiny:
        folder = args.out or Path(__file__).resolve().parents[1] / "results"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train_gpu.json").write_text(line + "\n")
    print(line)


def measure(
    shape: str, settings: dict[str, Any], lora_rank: int | None, ceiling: float, device: str, num_steps: int
) -> dict[str, Any]:
    """Train for some steps of 512 pairs; the first quarter warms up and is not counted."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048)
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16 if lora_rank else torch.float32)
        backbone: Any = LlamaModel(config)
        torch.set_default_dtype(torch.float32)
    weights = sum(p.numel() for n, p in backbone.named_parameters() if p.dim() == 2 and "embed_tokens" not in n)
    if lora_rank:
        from peft import LoraConfig, get_peft_model

        backbone = get_peft_model(backbone, LoraConfig(r=lora_rank, target_modules="all-linear"))
    batch = 8 if shape == "tiny" else 512
    cfg = TeacherConfig.model_validate(
        {
            "base_model": shape, "pooling": "last", "lora_rank": lora_rank, "use_features": False,
            "train": {"epochs": 1, "batch_size": batch, "dtype": "bfloat16", "checkpoint_interval_sec": 1e9} | settings,
        }
    )  # fmt: skip
    head = GradeHead(config.hidden_size, cfg, FeatureScaler(np.zeros(0), np.ones(0)))
    model = CrossEncoder(backbone, None, cfg, head).to(device)
    num = batch * num_steps
    lengths = np.random.default_rng(0).integers(80, 161, num)
    examples = Examples(
        queries=[str(length) for length in lengths], pin_texts=[""] * num, features=np.zeros((num, 0), np.float32),
        targets=np.full((num, 5), 0.2, np.float32), weights=np.ones(num, np.float32),
    )  # fmt: skip
    at: list[float] = []

    def clock(_ended: bool) -> bool:
        if device == "cuda":
            torch.cuda.synchronize()
        at.append(time.perf_counter())
        return False

    source = InMemory(examples, RandomTokens(config.vocab_size))
    fit(model, source, examples.rows(np.arange(0)), cfg.train, 0, Worker(is_due=clock))
    first = num_steps // 4
    tokens = float(lengths.sum()) * (num_steps - 1 - first) / num_steps
    seconds = at[num_steps - 1] - at[first]
    flops = (4 if lora_rank else 6) * weights * tokens / seconds
    return {
        "weights_in_layers": weights, "trained": "adapters" if lora_rank else "all", **settings,
        "tokens_per_sec": round(tokens / seconds), "pairs_per_sec": round(float(tokens / seconds / lengths.mean()), 1),
        "tflops": round(flops / 1e12, 1), "mfu": round(flops / ceiling, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if device == "cuda" else None,
    }  # fmt: skip


if __name__ == "__main__":
    main()
