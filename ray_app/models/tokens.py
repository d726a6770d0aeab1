"""Texts -> padded token tensors. To fit, the pin is truncated, never the query."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def token_rows(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Token ids of one text each, with the tokenizer's special tokens, not padded yet: see `pad_rows`."""
    rows: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    return rows


def pad_rows(tokenizer: Any, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Rows of `token_rows`, padded on the tokenizer's side: input_ids and attention_mask, (B, T) int64."""
    import torch

    ids = np.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        part = slice(None, len(row)) if tokenizer.padding_side == "right" else slice(ids.shape[1] - len(row), None)
        ids[i, part], mask[i, part] = row, 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


@dataclass(frozen=True, slots=True)
class PairIds:
    """One pair as the language model reads it."""

    ids: list[int]  # special tokens included
    query: tuple[int, int]  # start and end of the query's tokens
    pin: tuple[int, int]
    query_tokens: int  # before truncation

    @property
    def prefix(self) -> int:
        """Tokens before the query's part: equal for all queries of a pin truncated to the same length."""
        return min(self.pin[1], self.query[0])


def pair_ids(
    tokenizer: Any, queries: Sequence[str], pin_texts: Sequence[str], max_tokens: int, query_last: bool
) -> list[PairIds]:
    """Tokens of query and pin read together: the one template of training and of all backends.

    Args:
        queries: B queries; cut only if one alone does not fit.
        pin_texts: B pin texts, cut to what the query leaves.
        max_tokens: Longest sequence, special tokens included.
        query_last: False: `[CLS] query [SEP] pin [SEP]`, for encoders. True: `pin, newline, query`, for decoders,
            whose last token has then read everything, and whose long pin prefix is the same for all its queries.
    """
    query_ids = _plain_ids(tokenizer, queries)
    pins = _plain_ids(tokenizer, pin_texts)
    first, middle, last = _special_ids(tokenizer, query_last)
    room = max_tokens - len(first) - len(middle) - len(last)
    rows = []
    for query, pin in zip(query_ids, pins, strict=True):
        num_query = len(query)
        query = query[:room]
        pin = pin[: room - len(query)]
        left, right = (pin, query) if query_last else (query, pin)
        left_span = (len(first), len(first) + len(left))
        right_start = left_span[1] + len(middle)
        right_span = (right_start, right_start + len(right))
        query_span, pin_span = (right_span, left_span) if query_last else (left_span, right_span)
        rows.append(PairIds([*first, *left, *middle, *right, *last], query_span, pin_span, num_query))
    return rows


def has_segments(tokenizer: Any, config: Any) -> bool:
    """Return True if a model was trained with token_type_ids that tell two texts apart (BERT's family)."""
    return "token_type_ids" in tokenizer.model_input_names and (getattr(config, "type_vocab_size", 0) or 0) >= 2


def pad_pairs(rows: Sequence[PairIds], pad_token_id: int, segments: bool = False) -> dict[str, Any]:
    """Pairs as a rectangle: input_ids, attention_mask, query_mask, pin_mask, each (B, T) int64; the masks mark spans.

    With `segments` also token_type_ids: 1 from the second text on, its last [SEP] included, and 0 before it.
    """
    import torch

    width = max(len(row.ids) for row in rows)
    batch = {
        "input_ids": np.full((len(rows), width), pad_token_id, np.int64),
        "attention_mask": np.zeros((len(rows), width), np.int64),
        "query_mask": np.zeros((len(rows), width), np.int64),
        "pin_mask": np.zeros((len(rows), width), np.int64),
    }
    if segments:
        batch["token_type_ids"] = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        batch["input_ids"][i, : len(row.ids)] = row.ids
        batch["attention_mask"][i, : len(row.ids)] = 1
        batch["query_mask"][i, slice(*row.query)] = 1
        batch["pin_mask"][i, slice(*row.pin)] = 1
        if segments:
            batch["token_type_ids"][i, max(row.query[0], row.pin[0]) : len(row.ids)] = 1
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def max_query_tokens(tokenizer: Any, max_tokens: int, query_last: bool) -> int:
    """Longest query that leaves room for at least one token of the pin."""
    return max_tokens - sum(map(len, _special_ids(tokenizer, query_last))) - 1


def _plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    unique = list(dict.fromkeys(texts))  # a query is in many pairs of a batch
    ids = tokenizer(unique, add_special_tokens=False, truncation=False, verbose=False)["input_ids"] if unique else []
    by_text = dict(zip(unique, ids, strict=True))
    return [by_text[text] for text in texts]


def _special_ids(tokenizer: Any, query_last: bool) -> tuple[list[int], list[int], list[int]]:
    """Tokens before, between and after the two texts."""
    if query_last:
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return start, tokenizer("\n", add_special_tokens=False)["input_ids"], []
    return [tokenizer.cls_token_id], [tokenizer.sep_token_id], [tokenizer.sep_token_id]
