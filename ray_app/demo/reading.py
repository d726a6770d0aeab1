"""Training of the demo's Llama to compare a pin's text with each attribute of a query.

After next-token training it knows the languages but hardly compares attributes (measured: 58% right, which is guessing).
Here its state at the query's last token, the one that a cross-encoder reads, is trained through throw-away
classifiers: is it the same thing, a near one, another; and does each attribute fit, differ, or is it not said. That stands
for the reading that a real base model brings along. No grade occurs, and concepts come from other seeds than the world's.
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from ray_app.demo.concepts import ATTRIBUTES, CATEGORY_OF, GROUP_OF, draw_concept
from ray_app.demo.corpus import any_language, any_request, pin_text, short_text
from ray_app.demo.texts import query_text
from ray_app.demo.tokens import descend, optimizer, padded

logger = logging.getLogger(__name__)

STEPS = 10_000
BATCH = 64
SIMPLE_SHARE = 0.4  # of the steps, at the start: pins with one short text
LEARNING_RATE = 1.5e-3
LANGUAGE_WEIGHT = 0.05  # of next-token loss, so that it stays a language model
MAX_PIN_TOKENS = 100
SAME, NEAR, KIND, OTHER, NOT_SAID = range(5)  # classes of the object
NOT_ASKED, FITS, DIFFERS, UNKNOWN = range(4)  # classes of each attribute
_BUCKET = 10  # batches that are sorted by length together


def comparisons(
    tokenizer: Any, rng: np.random.Generator, count: int, simple: int
) -> tuple[list[list[int]], np.ndarray]:
    """Token ids of (pin, new line, query), and what a reader can tell.

    Args:
        simple: The first so many have pins with one short text.

    Returns:
        `count` rows of ids, and classes (count, 5): of the object, then of ATTRIBUTES.
    """
    pins, queries, classes = [], [], []
    for number in range(count):
        concept = draw_concept(rng)
        request = any_request(rng, concept, 0.45)
        pin = short_text(rng, concept) if number < simple else pin_text(rng, concept)
        pins.append(pin.text)
        queries.append(query_text(request, any_language(rng), rng, typo_rate=0.03))
        if "object" not in pin.readable:
            thing = NOT_SAID
        elif request.object == concept.object:
            thing = SAME
        elif concept.object in GROUP_OF[request.object]:
            thing = NEAR
        else:
            thing = KIND if CATEGORY_OF[concept.object] == CATEGORY_OF[request.object] else OTHER
        row = [thing]
        for name in ATTRIBUTES:
            value = getattr(request, name)
            fits = FITS if getattr(concept, name) == value else DIFFERS
            told = name in pin.readable or (name, value) in pin.hints
            row.append(NOT_ASKED if value is None else fits if told else UNKNOWN)
        classes.append(row)
    newline = tokenizer.token_to_id("\n")
    read = [e.ids[:MAX_PIN_TOKENS] for e in tokenizer.encode_batch(pins, add_special_tokens=False)]
    asked = [e.ids for e in tokenizer.encode_batch(queries, add_special_tokens=False)]
    return [[2, *pin, newline, *query] for pin, query in zip(read, asked, strict=True)], np.array(classes)


def train_reading(tokenizer: Any, model: Any, seed: int, steps: int, log: list[float]) -> float:
    """Train a `LlamaForCausalLM` in place; returns the share of asked and readable attributes it gets right afterwards."""
    import torch
    from torch.nn.functional import cross_entropy

    rng = np.random.default_rng([seed, 5])
    unseen = comparisons(tokenizer, rng, 1200, 0)
    count = steps * BATCH
    rows, classes = comparisons(tokenizer, np.random.default_rng([seed, 6]), count, int(count * SIMPLE_SHARE))
    torch.manual_seed(seed)
    heads = torch.nn.Linear(model.config.hidden_size, 5 + 4 * len(ATTRIBUTES))
    params = [*model.parameters(), *heads.parameters()]
    adamw, schedule = optimizer(params, steps, LEARNING_RATE)
    for batch in _batches(rows, int(count * SIMPLE_SHARE), rng):
        ids, mask, states = _states(model, [rows[i] for i in batch])
        wanted = torch.from_numpy(classes[batch])
        parts = _split(heads(_last(states, mask)))
        loss = 2 * cross_entropy(parts[0], wanted[:, 0])
        loss = loss + sum(cross_entropy(part, wanted[:, k]) for k, part in enumerate(parts[1:], 1))
        some = (torch.rand(ids[:, 1:].shape) < 0.15) & (mask[:, 1:] > 0)
        loss = loss + LANGUAGE_WEIGHT * cross_entropy(model.lm_head(states[:, :-1][some]), ids[:, 1:][some])
        log.append(descend(loss, params, adamw, schedule))
        if len(log) % 500 == 0:
            logger.info("reading: step %d of %d, loss %.3f", len(log), steps, sum(log[-500:]) / 500)
    return _accuracy(model, heads, *unseen)


def _batches(rows: list[list[int]], simple: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Row numbers, simple ones first, within both parts shuffled and grouped by similar length."""
    for start, stop in ((0, simple), (simple, len(rows))):
        order = np.arange(start, stop)
        rng.shuffle(order)
        buckets = [order[i : i + BATCH * _BUCKET] for i in range(0, len(order), BATCH * _BUCKET)]
        order = np.concatenate([b[np.argsort([len(rows[i]) for i in b], kind="stable")] for b in buckets])
        batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        yield from (batches[i] for i in rng.permutation(len(batches)))


def _states(model: Any, rows: list[list[int]]) -> tuple[Any, Any, Any]:
    """Ids and mask (B, T), and the model's last states (B, T, D)."""
    ids, mask = padded(rows)
    return ids, mask, model.model(input_ids=ids, attention_mask=mask).last_hidden_state


def _last(states: Any, mask: Any) -> Any:
    """The state of each row's last token: (B, T, D), (B, T) -> (B, D)."""
    import torch

    return states[torch.arange(len(states)), mask.sum(1) - 1]


def _split(logits: Any) -> list[Any]:
    """(B, 5 + 4 * 4) -> logits of the object and of each attribute."""
    return [logits[:, :5], *(logits[:, 5 + 4 * k : 9 + 4 * k] for k in range(len(ATTRIBUTES)))]


def _accuracy(model: Any, heads: Any, rows: list[list[int]], classes: np.ndarray) -> float:
    import torch

    said = []
    with torch.inference_mode():
        for start in range(0, len(rows), 200):
            _, mask, states = _states(model, rows[start : start + 200])
            said.append(torch.stack([part.argmax(1) for part in _split(heads(_last(states, mask)))], 1).numpy())
    right = np.concatenate(said) == classes
    readable = np.isin(classes[:, 1:], (FITS, DIFFERS))
    return float(right[:, 1:][readable].mean())
