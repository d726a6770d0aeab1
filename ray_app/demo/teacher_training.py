"""Training of the demo's tiny teacher base model."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ray_app.demo.corpus import OUTCOMES, documents
from ray_app.demo.tokens import WIDTH, descend, optimizer, padded

logger = logging.getLogger(__name__)

SIMPLE_SHARE = 0.5  # of the documents, at the start: short texts are compared first
TEACHER_TOKENS = 1_000  # of a step
DOCUMENT_TOKENS = 160
OTHER_TOKEN_SHARE = 0.25  # of a reading document's tokens before the verdict that count in the loss


# --- teacher -------------------------------------------------------------------------------------------------------


def encode_documents(
    tokenizer: Any, rng: np.random.Generator, count: int, simple_share: float = 0.0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token arrays (start, pin, new line, query, verdict, end), and how much each token counts in the loss (0: not)."""
    newline = tokenizer.token_to_id("\n")
    outcomes = [tokenizer.token_to_id(word) for word in OUTCOMES]
    encoded: list[tuple[np.ndarray, np.ndarray]] = []
    parts = [part for document in documents(rng, count, simple_share) for part in document]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(parts, add_special_tokens=False)]
    for i in range(0, len(ids), 3):
        pin, query, said = ids[i : i + 3]
        row = [2, *pin[: DOCUMENT_TOKENS - 50], *([newline] if query else []), *query, *said, 3][:DOCUMENT_TOKENS]
        weight = (rng.random(len(row)) < (OTHER_TOKEN_SHARE if said else 0.6)).astype(np.float32)
        if said:
            weight[len(row) - 1 - len(said) :] = np.where(np.isin(row[len(row) - 1 - len(said) :], outcomes), 3.0, 1.0)
        encoded.append((np.array(row, np.int64), weight))
    return encoded


def token_batches(encoded: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator) -> Iterator[list[int]]:
    """Indices of documents of similar length, about TEACHER_TOKENS in a batch; batches in random order."""
    order = np.argsort([len(ids) + rng.random() * 4 for ids, _ in encoded])
    batches: list[list[int]] = []
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(encoded[i][0]) > TEACHER_TOKENS:
            batches.append(batch)
            batch = []
        batch.append(int(i))
    if batch:
        batches.append(batch)
    yield from (batches[i] for i in rng.permutation(len(batches)))


def train_teacher(
    tokenizer: Any, embeddings: Any, rng: np.random.Generator, num_documents: int, log: list[float]
) -> Any:
    """A small Llama, trained to predict the next token; its token embeddings start as the tower's, which know translations."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=2 * WIDTH, max_position_embeddings=256, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(0.3 * embeddings + 0.02 * torch.randn_like(embeddings))
        for layer in model.model.layers:
            # Queries equal keys: a word looks for itself and its translations, which takes long to find by chance.
            # Source: Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers" (2023).
            torch.nn.init.orthogonal_(layer.self_attn.k_proj.weight)
            layer.self_attn.q_proj.weight.copy_(layer.self_attn.k_proj.weight)
    encoded = encode_documents(tokenizer, rng, num_documents, SIMPLE_SHARE)
    simple = round(num_documents * SIMPLE_SHARE)
    batches = [
        *token_batches(encoded[:simple], rng),
        *([i + simple for i in batch] for batch in token_batches(encoded[simple:], rng)),
    ]
    params = list(model.parameters())
    adamw, schedule = optimizer(params, len(batches), 1.5e-3)
    for batch in batches:
        ids, mask = padded([encoded[i][0] for i in batch])
        weight = torch.zeros(ids.shape)
        for row, i in enumerate(batch):
            weight[row, : len(encoded[i][1])] = torch.from_numpy(encoded[i][1])
        counts = weight[:, 1:] > 0
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        losses = cross_entropy(model.lm_head(hidden[:, :-1][counts]), ids[:, 1:][counts], reduction="none")
        loss = (losses * weight[:, 1:][counts]).sum() / weight[:, 1:].sum()
        log.append(descend(loss, params, adamw, schedule))
        if len(log) % 50 == 0:
            logger.info("teacher: step %d of %d, loss %.3f", len(log), len(batches), sum(log[-50:]) / 50)
    return model
