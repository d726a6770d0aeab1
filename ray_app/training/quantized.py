"""A teacher trained over a base model in 4 bits, in the form in which it labels: over the base model's own weights."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.base.config import TrainConfig
from ray_app.training.examples import Examples
from ray_app.training.loop import evaluate_loss, predict
from ray_app.training.state import Worker

logger = logging.getLogger(__name__)

FILE = "quantization.json"  # in the model's folder


def labelling_form(model: Any, valid: Examples, cfg: TrainConfig) -> tuple[Any, dict[str, str]]:
    """Return the model as it is used for labelling, for all evaluation after training.

    Labels are made with adapters merged into full-precision weights, since no engine reads adapters over 4 bits. Measured
    on the model that was trained, calibration would be that of another model.

    Args:
        valid: Examples that show how far the two forms are apart; may be empty.
        cfg: Of the training. With `frozen_dtype` bfloat16 the merged weights are held in it too.

    Returns:
        The model itself, unless it was trained over 4 bits; and texts to save next to it: the loss in both forms, and how
        far the probabilities of a grade differ.
    """
    if getattr(getattr(model, "cfg", None), "quantize", None) is None:
        return model, {}
    from ray_app.models.cross_encoder import CrossEncoder

    with tempfile.TemporaryDirectory() as temp:
        model.save_pretrained(Path(temp))
        merged = CrossEncoder.from_pretrained(Path(temp))
    merged.merge_adapters()
    if cfg.frozen_dtype == "bfloat16":
        merged.backbone.bfloat16()
    merged.to(next(model.backbone.parameters()).device)
    if not len(valid):
        return merged, {}
    apart = np.abs(predict(model, valid, cfg) - predict(merged, valid, cfg))
    figures = {
        "valid_loss_4bit": evaluate_loss(model, valid, cfg, Worker()),
        "valid_loss_merged": evaluate_loss(merged, valid, cfg, Worker()),
        "mean_abs_difference": float(apart.mean()),
        "max_abs_difference": float(apart.max()),
    }
    logger.info(
        "4 bits: validation loss %.4f as trained, %.4f merged into full precision, which is what labels; probabilities "
        "differ by %.4f on average, %.4f at most", *figures.values(),
    )  # fmt: skip
    return merged, {FILE: json.dumps(figures, indent=1)}
