"""Training of the demo's two text models from scratch: an encoder for the towers and a tiny Llama for the teacher.

`python -m ray_app.demo.text_models --out ray_app/demo/models --seed 1` (what `make demo-models` calls) writes `tower/`
and `teacher/`, each with its tokenizer and a RECIPE.json, and prints one JSON line. Some minutes on two cores.

They are base models: they know the languages, and the Llama has learned to compare a pin with a query, but has seen no
grade (ray_app/demo/corpus.py, reading.py). Shapes: B batch, T tokens, D hidden size.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.demo.corpus import word_list
from ray_app.demo.reading import STEPS, train_reading
from ray_app.demo.teacher_training import train_teacher
from ray_app.demo.tokens import build_tokenizer, save_model
from ray_app.demo.tower_training import train_tower, word_vectors

logger = logging.getLogger(__name__)

TOWER_STEPS = 500
TEACHER_DOCUMENTS = 130_000


def main() -> None:
    """Train and write both models."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("ray_app/demo/models"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chose")
    parser.add_argument("--tower-steps", type=int, default=TOWER_STEPS)
    parser.add_argument("--documents", type=int, default=TEACHER_DOCUMENTS)
    parser.add_argument("--reading-steps", type=int, default=STEPS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(word_list())
    recipe = {"code": "ray_app/demo/text_models.py", "seed": args.seed, "vocabulary": tokenizer.get_vocab_size()}

    # Not the world's seed: its concepts are drawn from another.
    rng = np.random.default_rng([args.seed, 2026])
    started, losses = time.perf_counter(), list[float]()
    tower = train_tower(tokenizer, rng, args.tower_steps, losses)
    about_tower = {**recipe, **_summary(losses, started), "task": "InfoNCE over pairs of texts of the same thing"}
    save_model(tower, tokenizer, args.out / "tower", about_tower, cls_token="<s>", sep_token="</s>")

    torch.manual_seed(args.seed)
    rng = np.random.default_rng([args.seed, 5])
    started, losses = time.perf_counter(), []
    teacher = train_teacher(tokenizer, word_vectors(tower), rng, args.documents, losses)
    about_teacher = {**recipe, **_summary(losses, started), "task": "next token", "documents": args.documents}
    started, losses = time.perf_counter(), []
    right = train_reading(tokenizer, teacher, args.seed, args.reading_steps, losses)
    about_teacher["reading"] = {**_summary(losses, started), "attributes_right": round(right, 4)}
    save_model(teacher, tokenizer, args.out / "teacher", about_teacher, bos_token="<s>", eos_token="</s>")
    sys.stdout.write(json.dumps({"tower": about_tower, "teacher": about_teacher}) + "\n")


def _summary(losses: list[float], started: float) -> dict[str, Any]:
    last = losses[-len(losses) // 10 :]
    return {
        "steps": len(losses),
        "final_loss": round(float(np.mean(last)), 4),
        "training_sec": round(time.perf_counter() - started),
    }


if __name__ == "__main__":
    main()
