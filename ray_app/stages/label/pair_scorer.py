"""Protocol of the teacher backends: score a block of pairs. Unscorable pairs are rejected before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

EMPTY_QUERY = "empty_query: there is nothing to judge the pin by"
EMPTY_PIN = "empty_pin: the pin has no text in the fields that the teacher reads"


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Answers for n pairs, row i for pair i."""

    probs: np.ndarray  # (n, 5) float32; NaN where there is an error
    errors: list[str | None]
    tokens: np.ndarray  # (n,) int64: of the pair, as if it stood alone
    computed_tokens: int  # tokens computed by the model over all pairs; fewer where pairs share a prefix


class PairScorer(Protocol):
    """Anything that grades pairs, such as `Teacher`."""

    def score(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> PairScores:
        """Grade pairs; features are (n, num_features) float32, not standardised."""


def reject_unscorable(queries: Sequence[str | None], pin_texts: Sequence[str | None]) -> list[str | None]:
    """Why each pair must not be judged; None: it may."""
    return [
        EMPTY_QUERY if not (query or "").strip() else EMPTY_PIN if not (text or "").strip() else None
        for query, text in zip(queries, pin_texts, strict=True)
    ]


def query_too_long(num_tokens: int, room: int) -> str | None:
    """The error of a query that leaves no room for the pin: to cut it would grade another query."""
    if num_tokens <= room:
        return None
    return f"query_too_long: {num_tokens} tokens, the teacher has room for {room}; raise train_teacher.max_tokens"
