"""Teachers with random weights and pairs for them, for tests of the label stage."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
from tiny_models import WORDS

from ray_app.config import LabelConfig, TeachConfig
from ray_app.label.stage import Labeller
from ray_app.ledger.content_key import content_keys
from ray_app.models.checkpoint import finished_model, save_model
from ray_app.training.examples import matrix_column

NUM_FEATURES = 2


def save_teacher(store, base_model, pooling="last", **values):
    """A teacher whose head spreads its grades, so that a wrong state shows."""
    import torch

    from ray_app.models.cross_encoder import CrossEncoder
    from ray_app.models.head import FeatureScaler

    torch.manual_seed(1)
    cfg = TeachConfig(base_model=base_model, pooling=pooling, max_tokens=48, bottleneck=8, hidden=8, **values)
    model = CrossEncoder.from_base(cfg, FeatureScaler(np.zeros(NUM_FEATURES), np.ones(NUM_FEATURES))).eval()
    with torch.no_grad():
        model.head.head[-1].weight.mul_(10)
        for name, weight in model.backbone.named_parameters():
            if "lora_B" in name:  # zeros at the start, as if there were no adapter
                weight.normal_(std=0.5)
    save_model(model, store, "models/teacher/tiny", history=[], extra_files={})
    return finished_model(store, "models/teacher/tiny")


def labeller(store, teacher, **label):
    """Only what the engines read of a config."""
    cfg = SimpleNamespace(label=LabelConfig(**({"dtype": "float32", "rows_per_block": 16, "batch_size": 8} | label)))
    return Labeller(cfg=cfg, store=store, teacher=teacher)


def pairs(num_pins, queries_per_pin, seed=0, first=()):
    """Columns content_key, query, pin_text, features; pairs of a pin stand together, after the (query, pin) of `first`."""
    rng = np.random.default_rng(seed)
    words = WORDS[4:]

    def text(low, high):
        return " ".join(rng.choice(words, rng.integers(low, high)))

    rows = list(first)
    for _ in range(num_pins):
        pin = text(3, 38)
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


def probs_of(maker, rows):
    """(n, 5) float64, and the errors; row i for row i."""
    found = maker.ledger.lookup(rows["content_key"])
    probs = [row or [np.nan] * 5 for row in found["probs"].to_pylist()]
    return np.array(probs, np.float64), found["error"].to_pylist()
