"""Training of the demo's tiny text tower."""

from typing import Any

import numpy as np

from ray_app.demo.concepts import ATTRIBUTES, draw_concept
from ray_app.demo.corpus import all_values, any_language, ask, entry, pin_text
from ray_app.demo.texts import query_text
from ray_app.demo.tokens import WIDTH, descend, optimizer, padded

TEMPERATURE = 0.07  # guessed, as usual for InfoNCE


def text_pairs(rng: np.random.Generator, count: int) -> tuple[list[str], list[str], list[tuple[str, ...]]]:
    """Texts of the same thing in two languages: (query, pin text), (query, query), (pin text, pin text), and a key.

    Pairs with equal keys are no negatives of each other.
    """
    left: list[str] = []
    right: list[str] = []
    keys: list[tuple[str, ...]] = []
    for _ in range(count):
        concept = draw_concept(rng)
        names = [name for name in ATTRIBUTES if rng.random() < 0.4]
        request = ask(concept, names)
        kind = rng.random()
        first = query_text(request, any_language(rng), rng, typo_rate=0.05)
        second = query_text(request, any_language(rng), rng) if kind < 0.3 else pin_text(rng, concept).text
        if kind > 0.8:
            first = pin_text(rng, concept).text
        left.append(first)
        right.append(second)
        keys.append((concept.object, *(f"{name}={value}" for name, value in request.asked.items())))
    return left, right, keys


def word_pairs(rng: np.random.Generator) -> tuple[list[str], list[str], list[tuple[str, ...]]]:
    """Every word of the demo in two languages."""
    values = all_values()
    sides = [[entry(rng, name, value, any_language(rng)) for name, value in values] for _ in range(2)]
    return sides[0], sides[1], [*values]


def word_vectors(model: Any) -> Any:
    """State of each token alone in the tower, centred, of unit deviation; (vocabulary, D)."""
    import torch

    with torch.inference_mode():
        tokens = torch.arange(model.config.vocab_size)
        ids = torch.stack([torch.full_like(tokens, 2), tokens, torch.full_like(tokens, 3)], 1)
        vectors = model(input_ids=ids).last_hidden_state.mean(1)
    vectors = vectors - vectors.mean(0)
    return (vectors / vectors.std(1, keepdim=True)).clone()


def train_tower(tokenizer: Any, rng: np.random.Generator, steps: int, log: list[float]) -> Any:
    """A small BERT whose mean-pooled states are near for texts of the same thing (InfoNCE, in-batch negatives).

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding" (2018).
    """
    import torch
    from torch.nn.functional import cross_entropy, normalize
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=2 * WIDTH, max_position_embeddings=128, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, pad_token_id=0,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    params = list(model.parameters())
    adamw, schedule = optimizer(params, steps, 3e-3)

    def embed(texts: list[str]) -> Any:
        ids, mask = padded([encoding.ids[:64] for encoding in tokenizer.encode_batch(texts)])
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        return normalize((states * weights).sum(1) / weights.sum(1).clamp(min=1.0), dim=-1)

    for step in range(steps):
        left, right, keys = word_pairs(rng) if step % 3 == 0 or step < steps // 10 else text_pairs(rng, 128)
        scores = embed(left) @ embed(right).T / TEMPERATURE
        number: dict[tuple[str, ...], int] = {}
        group = torch.tensor([number.setdefault(key, len(number)) for key in keys])
        equal = (group[:, None] == group[None, :]) & ~torch.eye(len(keys), dtype=torch.bool)
        scores = scores.masked_fill(equal, -1e4)
        target = torch.arange(len(keys))
        loss = (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2
        log.append(descend(loss, params, adamw, schedule))
    return model
