"""Teacher labelling on one GPU, without Ray and vllm: pairs/s with and without the shared prefix, against the card's ceilings.

    python benchmarks/gpu/label_gpu.py            # on the GPU's machine: torch, transformers, numpy
    python benchmarks/gpu/label_gpu.py --tiny     # anywhere: does the script itself work?

Two shapes with random weights in bfloat16 (weights decide no timing): SmolLM2-135M and Llama-3-8B. Pins of 150 tokens and
queries of 10. Forward passes are packed (`ray_app.models.packed`). The ceilings are measured, not taken from a data sheet:
a bfloat16 matrix product of 8,192 x 8,192 x 8,192, and a copy of 4 GiB. `share_of_matmul` counts the products with the
weights and the attention that is really computed, so a shared prefix does not flatter it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ray_app.models.packed import group_pairs, pack, packed_states
from ray_app.models.tokens import PairIds

SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                     "intermediate_size": 1536, "vocab_size": 49152},
    "Llama-3-8B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                   "intermediate_size": 14336, "vocab_size": 128256},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
             "intermediate_size": 128, "vocab_size": 1000},
}  # fmt: skip
PIN_TOKENS, QUERY_TOKENS = 150, 10
PAIRS = {"SmolLM2-135M": 1024, "Llama-3-8B": 256, "tiny": 64}  # of one forward pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the JSON line; default: benchmarks/results")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        sys.exit("no GPU here: --tiny runs the script on a CPU")
    side = 512 if args.tiny else 8192
    one = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    matmul = 2 * side**3 / seconds_of(partial(torch.mm, one, one), args.repeats, device)
    source = torch.empty((1 << 22) if args.tiny else (1 << 32), dtype=torch.uint8, device=device)
    copy = 2 * source.numel() / seconds_of(source.clone, args.repeats, device)
    del source
    result: dict[str, Any] = {
        "bench": "label_gpu",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "matmul_tflops": round(matmul / 1e12, 1),
        "copy_gb_per_sec": round(copy / 1e9, 1),
        "pin_tokens": PIN_TOKENS,
        "query_tokens": QUERY_TOKENS,
        "shapes": {
            name: measure(name, matmul, device, args.repeats) for name in (["tiny"] if args.tiny else list(SHAPES)[:2])
        },
    }
    line = json.dumps(result)
    if not args.tiny:
        folder = args.out or Path(__file__).resolve().parents[1] / "results"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "label_gpu.json").write_text(line + "\n")
    print(line)


def measure(name: str, ceiling: float, device: str, repeats: int) -> dict[str, Any]:
    """One shape: 1 query per pin, and 16 with and without sharing."""
    config = LlamaConfig(**SHAPES[name], max_position_embeddings=2048)
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaModel(config).eval()
        torch.set_default_dtype(torch.float32)
    weights = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed_tokens" not in n)
    found: dict[str, Any] = {"weights_in_layers": weights, "pairs_per_pass": PAIRS[name]}
    for queries, share in ((1, False), (16, False), (16, True)):
        packed = pack(group_pairs(make_pairs(PAIRS[name], queries, config.vocab_size), queries if share else 1))
        with torch.inference_mode():
            seconds = seconds_of(partial(packed_states, model, packed, device), repeats, device)
        flops = 2 * weights * len(packed.input_ids) + attention_flops(packed, config)
        found[f"{queries}_{'shared' if share else 'alone'}"] = {
            "pairs_per_sec": round(PAIRS[name] / seconds, 1),
            "computed_tokens_per_sec": round(len(packed.input_ids) / seconds),
            "share_of_matmul": round(flops / seconds / ceiling, 3),
        }
    found["shared_over_alone_16"] = round(found["16_shared"]["pairs_per_sec"] / found["16_alone"]["pairs_per_sec"], 2)
    return found


def make_pairs(num_pairs: int, queries_per_pin: int, vocab: int) -> list[PairIds]:
    """Random tokens: a pin, then one of its queries."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(num_pairs // queries_per_pin):
        pin = rng.integers(3, vocab, PIN_TOKENS).tolist()
        for _ in range(queries_per_pin):
            ids = [*pin, *rng.integers(3, vocab, QUERY_TOKENS).tolist()]
            pairs.append(PairIds(ids, (PIN_TOKENS, len(ids)), (0, PIN_TOKENS), QUERY_TOKENS))
    return pairs


def attention_flops(packed: Any, config: LlamaConfig) -> float:
    """Scores and sums over the tokens that each token sees."""
    seen = 0
    for tree in packed.trees:
        trunk = sum(branch == 0 for branch in tree.branch)
        own = (len(tree.branch) - trunk) / max(max(tree.branch), 1)
        seen += trunk * (trunk + 1) / 2 + (len(tree.branch) - trunk) * (trunk + (own + 1) / 2)
    return 4.0 * seen * config.hidden_size * config.num_hidden_layers


def seconds_of(call: Callable[[], object], repeats: int, device: str) -> float:
    """Median seconds of a call, after two to warm up and compile."""
    times = []
    for turn in range(repeats + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
