"""Contrastive training shared by engagement and graph: initialisation of towers, loss and recall.

Shapes: B pairs of a batch, row i the query (or board) and column j the pin of pair j.
"""

from typing import Any

import numpy as np
import pandas as pd


def svd_components(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The `dim` directions that keep most of the embeddings' dot products; a tower starts as the projection on them.

    So an untrained tower gives about the zero-shot cosine, which training then improves: a small log cannot spoil much.

    Args:
        dim: If above `width`, the rest are zeros.

    Returns:
        (dim, width) float32.
    """
    width = vectors.shape[1]
    _, directions = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
    top = directions[:, ::-1].T[:dim]
    top = top * np.sign(top[np.arange(len(top)), np.abs(top).argmax(1)])[:, None]  # eigenvectors have no sign
    return np.concatenate([top, np.zeros((dim - len(top), width))]).astype(np.float32)


def false_negative_mask(rows: np.ndarray, columns: np.ndarray, codes: np.ndarray, num_columns: int) -> np.ndarray:
    """Mask of pairs (rows[i], columns[j]) that are known positives or share the column of pair i: no negatives.

    Args:
        rows, columns: (B,) numbers of queries and of pins.
        codes: Sorted `query * num_columns + pin` of all known pairs.

    Returns:
        (B, B) bool.
    """
    wanted = rows[:, None] * num_columns + columns[None, :]
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    return (codes[place] == wanted) | (columns[:, None] == columns[None, :])


def sampled_softmax_loss(cosines: Any, log_prob: Any, hits: Any, weights: Any, temperature: float) -> Any:
    """Softmax over in-batch negatives with logQ correction.

    Without the correction a frequent pin, which is a negative of everything, would be pushed away from its own queries.

    Args:
        cosines: (B, B) tensor; the diagonal holds the pairs.
        log_prob: (B,) log of the probability that a place of the batch holds pin j.
        hits: (B, B) bool, off the diagonal: no negatives; see `false_negative_mask`.
        weights: (B,) of pairs, >= 0, with a sum above 0.
        temperature: Cosines are divided by it.

    Returns:
        Weighted mean over the pairs. Source: Yi et al. 2019, https://doi.org/10.1145/3298689.3346996, eq. 3-5.
    """
    import torch

    logits = cosines / temperature - log_prob[None, :]
    diagonal = torch.eye(len(logits), dtype=torch.bool)
    logits = logits.masked_fill(hits & ~diagonal, -torch.inf)
    losses = torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)), reduction="none")
    return (losses * weights).sum() / weights.sum()


def batches(num_pairs: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Positions of one epoch in random order, cut into batches; a remainder of one is skipped, as it has no negative."""
    order = rng.permutation(num_pairs)
    return [order[at : at + batch_size] for at in range(0, num_pairs, batch_size) if num_pairs - at > 1]


def log_frequency(pins: np.ndarray, num_pins: int) -> np.ndarray:
    """(num_pins,) float32 log of each pin's share of the pairs; that of a pin without pairs is never read."""
    counts = np.bincount(pins, minlength=num_pins)
    return np.log(np.maximum(counts, 1) / max(len(pins), 1)).astype(np.float32)


def recall(
    query_vectors: np.ndarray, pin_vectors: np.ndarray, query: np.ndarray, pin: np.ndarray, codes: np.ndarray,
    k: int = 10,
) -> float | None:  # fmt: skip
    """Mean over queries of the share of their pins among the k nearest of all pins.

    Args:
        query_vectors, pin_vectors: (num_queries, dim) and (num_pins, dim).
        query, pin: (N,) rows of the pairs to find.
        codes: Sorted `query * num_pins + pin` of pairs that were shown in training, excluded from the ranking.

    Returns:
        0..1; None if there are no pairs.
    """
    if len(query) == 0:
        return None
    found = np.zeros(len(query), bool)
    places = pd.Series(np.arange(len(query))).groupby(query).indices
    asked, num_pins = np.unique(query), len(pin_vectors)
    for start in range(0, len(asked), 64):
        chunk = asked[start : start + 64]
        scores = query_vectors[chunk] @ pin_vectors.T
        for row, number in enumerate(chunk):
            first, last = np.searchsorted(codes, [number * num_pins, (number + 1) * num_pins])
            scores[row, codes[first:last] - number * num_pins] = -np.inf
            top = np.argpartition(-scores[row], k - 1)[:k] if k < num_pins else np.arange(num_pins)
            found[places[number]] = np.isin(pin[places[number]], top)
    return round(float(pd.Series(found).groupby(query).mean().mean()), 4)
