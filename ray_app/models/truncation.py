"""Truncation statistics: the share of pin texts beyond a model's `max_tokens`.

Texts are cut at their end, where the later fields of `pin_text.fields` stand: a field that is cut away adds nothing to a
model, and nothing else would show it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.base.config import Config, PinTextConfig
from ray_app.base.text import pin_text_parts
from ray_app.models.backbone import is_decoder_config
from ray_app.models.encoder_usage import with_usage, zero_shot_usage
from ray_app.models.model_sources import load_tokenizer
from ray_app.models.tokens import max_query_tokens

logger = logging.getLogger(__name__)

MAX_INPUTS = 5_000  # measured at most; a larger set is sampled, with shares right within .014
WARN_ABOVE = 0.1  # share of truncated inputs
_STEP = 8  # a suggested length is a multiple of it
_BATCH = 1_000  # texts per tokeniser call

Parts = Sequence[tuple[str, str, str]]  # see `pin_text_parts`


def teacher_truncation(
    cfg: Config, pin_texts: pa.Table, pin_index: np.ndarray, queries: Sequence[str]
) -> dict[str, Any]:
    """Truncation of pairs (queries[i], row pin_index[i] of `pin_texts`) that the teacher reads: see `measure`."""
    tokenizer, config = load_tokenizer(cfg.train_teacher.base_model, cfg.train_teacher.revision)
    chosen = _sample(len(pin_index), cfg.seed)
    asked = [queries[i] for i in chosen]
    limit = cfg.train_teacher.max_tokens
    special = limit - 1 - max_query_tokens(tokenizer, limit, is_decoder_config(config))
    of_query = {text: len(row) for text, row in zip(asked, _token_ids(tokenizer, asked), strict=True)}
    taken = np.array([special + of_query[text] for text in asked], np.int64)
    rows, place = np.unique(pin_index[chosen], return_inverse=True)
    return {"num_inputs": len(pin_index)} | measure(
        tokenizer, _parts(pin_texts, rows, cfg.pin_text), place, taken, limit, "train_teacher.max_tokens", "pairs", _positions(config)
    )  # fmt: skip


def student_truncation(cfg: Config, pin_texts: pa.Table, pin_index: np.ndarray) -> dict[str, Any]:
    """Truncation of the pins in rows `pin_index` of `pin_texts` in the student's pin tower: see `measure`."""
    distill = with_usage(cfg.distill)
    return _tower_truncation(
        distill.base_model, distill.revision, distill.pin_prompt or "", distill.max_pin_tokens, "distill.max_pin_tokens",
        pin_texts, np.unique(pin_index), cfg.pin_text, cfg.seed,
    )  # fmt: skip


def zero_shot_truncation(cfg: Config, pin_texts: pa.Table) -> dict[str, Any]:
    """Truncation of all pins in the zero-shot encoder: see `measure`."""
    features, text = cfg.features, cfg.pin_text.model_copy(update={"fields": cfg.features.zero_shot_fields})
    return _tower_truncation(
        features.zero_shot_model, features.zero_shot_revision, zero_shot_usage(features).pin_prompt,
        features.zero_shot_max_tokens, "features.zero_shot_max_tokens", pin_texts, np.arange(pin_texts.num_rows), text, cfg.seed,
    )  # fmt: skip


def measure(
    tokenizer: Any, pins: Sequence[Parts], place: np.ndarray, taken: np.ndarray, max_tokens: int, key: str, inputs: str,
    positions: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the truncation of inputs with a pin's text and log it, as a warning above WARN_ABOVE.

    Args:
        tokenizer: Of the model; of one that is not fast, fields are omitted.
        place: (num_inputs,) which pin each input holds.
        taken: (num_inputs,) tokens of the input that are not the pin's: special ones, and the query.
        inputs: What they are called: pins, or pairs.
        positions: That the model has; no more is suggested. None: not known.

    Returns:
        `cut_share` of the inputs whose pin is cut; `tokens` (median, p95, p99) of whole inputs, uncut; `suggested`
        max_tokens, which cuts `suggested_cut_share`; and by field `has_share` of the inputs, and of these `cut_share`,
        read in part, and `unread_share`, not read at all.
    """
    whole, starts, ends = _lengths(tokenizer, pins)
    needed = taken + whole[place]
    room = np.maximum(max_tokens - taken, 0)
    found: dict[str, Any] = {"key": key, "max_tokens": max_tokens, "inputs": inputs, "num_measured": len(place)}
    if not len(place):
        return found
    p95 = np.percentile(needed, 95, method="higher")
    suggested = int(-(-p95 // _STEP) * _STEP)
    if positions is not None:
        suggested = min(suggested, positions // _STEP * _STEP)
    fields = {}
    for name, first in starts.items():
        has = first[place] >= 0
        begin, end, left = first[place][has], ends[name][place][has], room[has]
        unread = begin >= left
        fields[name] = {
            "has_share": _share(has), "cut_share": _share(~unread & (end > left)), "unread_share": _share(unread),
        }  # fmt: skip
    found |= {
        "cut_share": _share(needed > max_tokens),
        "tokens": {name: int(np.percentile(needed, q)) for name, q in (("median", 50), ("p95", 95), ("p99", 99))},
        "suggested": suggested,
        "suggested_cut_share": _share(needed > suggested),
        "fields": fields,
    }
    level = logging.WARNING if found["cut_share"] > WARN_ABOVE else logging.INFO
    advice = f"{key}: {suggested} would cut {found['suggested_cut_share']:.0%}"
    logger.log(level, "%s: %s; %s", key, describe(found), advice)
    return found


def describe(found: Mapping[str, Any]) -> str:
    """One-line summary of the result of `measure`."""
    if not found["num_measured"]:
        return "no text was measured"
    parts = [f"{found['cut_share']:.0%} of the {found['inputs']} are cut at {found['max_tokens']} tokens"]
    for name, field in found["fields"].items():
        for what, share in (("cut", field["cut_share"]), ("not read", field["unread_share"])):
            if share >= 0.005:
                parts.append(f"{name} {what} in {share:.0%}")
    tokens = ", ".join(f"{name} {number}" for name, number in found["tokens"].items())
    return f"{', '.join(parts)} (tokens of an uncut one: {tokens})"


def _tower_truncation(
    model: str, revision: str | None, prompt: str, max_tokens: int, key: str, pin_texts: pa.Table, rows: np.ndarray,
    text: PinTextConfig, seed: int,
) -> dict[str, Any]:  # fmt: skip
    tokenizer, config = load_tokenizer(model, revision)
    chosen = rows[_sample(len(rows), seed)]
    taken = np.full(len(chosen), tokenizer.num_special_tokens_to_add(pair=False), np.int64)
    pins = [
        # The prompt is the text before the first field; a pin without text is not read at all.
        [(name, glue if i else prompt, said) for i, (name, glue, said) in enumerate(parts)]
        for parts in _parts(pin_texts, chosen, text)
    ]
    return {"num_inputs": len(rows)} | measure(
        tokenizer, pins, np.arange(len(chosen)), taken, max_tokens, key, "pins", _positions(config)
    )


def _lengths(tokenizer: Any, pins: Sequence[Parts]) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tokens of each pin's complete text, (num_pins,); and by field the tokens before it and up to its end, -1: without it."""
    whole = np.zeros(len(pins), np.int64)
    names = dict.fromkeys(name for parts in pins for name, _, _ in parts) if tokenizer.is_fast else {}
    starts, ends = ({name: np.full(len(pins), -1, np.int64) for name in names} for _ in range(2))
    for first in range(0, len(pins), _BATCH):
        batch = pins[first : first + _BATCH]
        texts = ["".join(glue + text for _, glue, text in parts) for parts in batch]
        made = _encoded(tokenizer, texts, return_offsets_mapping=tokenizer.is_fast)
        for i, parts in enumerate(batch, first):
            whole[i] = len(made["input_ids"][i - first])
            if not names:
                continue
            # A token belongs to a field if it holds one of its characters.
            offsets = np.array(made["offset_mapping"][i - first], np.int64).reshape(-1, 2)
            at = 0
            for name, glue, text in parts:
                starts[name][i] = np.searchsorted(offsets[:, 1], at + len(glue), side="right")
                at += len(glue) + len(text)
                ends[name][i] = np.searchsorted(offsets[:, 0], at, side="left")
    return whole, starts, ends


def _token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    rows: list[list[int]] = _encoded(tokenizer, texts)["input_ids"] if texts else []
    return rows


def _encoded(tokenizer: Any, texts: Sequence[str], **more: Any) -> Any:
    return tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False, **more)


def _parts(pin_texts: pa.Table, rows: np.ndarray, cfg: PinTextConfig) -> list[Parts]:
    names = [name for name in cfg.fields if name in pin_texts.column_names]
    chosen = pin_texts.select(names).take(pa.array(rows, pa.int64())).to_pylist()
    return [pin_text_parts(row, cfg) for row in chosen]


def _sample(num: int, seed: int) -> np.ndarray:
    """All of `num` places, or MAX_INPUTS of them at random, in order."""
    if num <= MAX_INPUTS:
        return np.arange(num)
    return np.sort(np.random.default_rng(seed).choice(num, MAX_INPUTS, replace=False))


def _positions(config: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    return int(positions) if positions else None


def _share(flags: np.ndarray) -> float:
    return round(float(np.mean(flags)), 4) if len(flags) else 0.0
