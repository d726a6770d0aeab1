"""Batching: the examples of each step, and their delivery to workers.

The order is a function of (seed, epoch) alone. A global batch is cut into one share per worker and a share into
micro-batches, so one run on any number of workers takes the same steps, and a resumed one continues from its checkpoint. Beyond
`train.shuffle_window_rows` examples, shuffling has two levels: complete files, and rows within a window of files.
"""

import math
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ray_app.base.config import TrainConfig
from ray_app.training.examples import Examples

BUCKET_BATCHES = 20  # batches that are sorted by length together: guessed; more pads less and shuffles less
_AHEAD = 4  # steps prepared ahead


class Preparer(Protocol):
    """Preparer of a model's inputs; has no weights, so that it can be sent to where the data is."""

    def lengths(self, queries: Sequence[str], pin_texts: Sequence[str]) -> np.ndarray:
        """Tokens of each pair, (B,) int64."""

    def prepare(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> dict[str, Any]:
        """CPU tensors of a batch."""


@dataclass(frozen=True, slots=True)
class Place:
    """Rank of a worker and number of workers."""

    rank: int = 0
    size: int = 1


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Inputs of one forward pass."""

    inputs: dict[str, Any]
    targets: Any  # (B, 5) float32
    weights: Any  # (B,) float32; all 0: padding, as another worker has one micro-batch more
    groups: Any  # (B,) int64, equal for pairs of one query
    tokens: int
    padded_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """One worker's share of a global batch."""

    epoch: int
    index: int  # step in the epoch; a stream of complete queries may skip the last of a window
    weight: float  # expected weight of the global batch: its rows times the run's mean weight
    micro_batches: list[MicroBatch]


# --- order ---


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Row numbers of each global batch of an epoch: shuffled, then grouped by similar length to save padding.

    Args:
        lengths: (N,) each example's tokens.
        batch_size: Rows per batch; the last batch may be shorter.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    span = batch_size * BUCKET_BATCHES
    for start in range(0, len(order), span):
        bucket = order[start : start + span]
        bucket = bucket[np.argsort(-lengths[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def query_batches(groups: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Row numbers of each global batch of complete queries, for losses that compare the pins of a query.

    A batch takes the queries that begin within its `batch_size` places, so it has about that many rows and fewer than
    twice as many. A query of more than `batch_size` rows is cut into equal parts, others are not split.

    Args:
        groups: (N,) int64, equal for rows of one query.
    """
    rng = np.random.default_rng([seed, epoch])
    place = rng.permutation(int(groups.max(initial=-1)) + 1)[groups]
    order = np.lexsort((rng.permutation(len(groups)), place))
    begins = np.flatnonzero(np.diff(place[order], prepend=-1))
    sizes = np.diff(begins, append=len(order))
    parts = -(-sizes // batch_size)
    number = np.arange(int(parts.sum())) - np.repeat(np.cumsum(parts) - parts, parts)
    begins = np.repeat(begins, parts) + number * np.repeat(sizes, parts) // np.repeat(parts, parts)
    first = begins[np.flatnonzero(np.diff(begins // batch_size, prepend=-1))]
    batches = np.split(order, first[1:]) if len(order) else []
    return [batches[i] for i in rng.permutation(len(batches))]


def share_of(rows: np.ndarray, place: Place, groups: np.ndarray | None = None) -> np.ndarray:
    """One worker's rows of a global batch: every size-th, or a run of complete queries. May be empty.

    Args:
        groups: (N,) by row number, equal for rows of one query, which stay together; None: rows are independent.
    """
    if groups is None:
        return rows[place.rank :: place.size]
    begins = _begins(rows, groups)
    owner = np.repeat(begins * place.size // max(len(rows), 1), np.diff(begins, append=len(rows)))
    return rows[owner == place.rank]


def cut_micro_batches(
    rows: np.ndarray, lengths: np.ndarray, max_tokens: int | None, groups: np.ndarray | None = None
) -> list[np.ndarray]:
    """Runs of rows that hold at most `max_tokens` with their padding; one row, or one query, may alone be longer.

    Args:
        lengths: (N,) tokens by row number.
        max_tokens: None: one run.
        groups: (N,) by row number, equal for rows of one query, which stay together; None: rows are independent.
    """
    if max_tokens is None or len(rows) == 0:
        return [rows] if len(rows) else []
    begins = np.arange(len(rows)) if groups is None else _begins(rows, groups)
    ends = np.append(begins[1:], len(rows))
    runs, start, longest = [], 0, 0
    for begin, end, own in zip(
        begins.tolist(), ends.tolist(), np.maximum.reduceat(lengths[rows], begins).tolist(), strict=True
    ):
        longest = max(longest, own)
        if longest * (end - start) > max_tokens and begin > start:
            runs.append(rows[start:begin])
            start, longest = begin, own
    return [*runs, rows[start:]]


def _begins(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Positions in `rows` where another query begins, the first included."""
    return np.flatnonzero(np.diff(groups[rows], prepend=-1))


def file_windows(file_rows: Sequence[int], shuffle_window_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """File numbers of each window of an epoch: files in random order, together at least `shuffle_window_rows` but for the last."""
    windows: list[list[int]] = [[]]
    rows = 0
    for file in np.random.default_rng([seed, epoch, 1]).permutation(len(file_rows)).tolist():
        if rows >= shuffle_window_rows:
            windows.append([])
            rows = 0
        windows[-1].append(file)
        rows += file_rows[file]
    return windows


# --- steps ---


def make_steps(
    examples: Examples, lengths: np.ndarray, preparer: Preparer, cfg: TrainConfig, seed: int, epoch: int, place: Place,
    first: int = 0, skip: int = 0, mean_weight: float | None = None,
) -> Iterator[Step]:  # fmt: skip
    """A worker's steps over examples that are in memory.

    Args:
        lengths: (N,) each example's tokens.
        first: Index of the first step.
        skip: Steps that were taken before.
        mean_weight: Of all examples of the run, which gradients are divided by: divided by its own batch's weight, a
            batch of one query would not feel that query's weight. None: the mean of `examples`.
    """
    by_query = cfg.margin_mse_weight > 0
    if mean_weight is None:
        mean_weight = float(examples.weights.mean()) if len(examples) else 1.0
    groups = np.unique(np.array(examples.queries, dtype=object), return_inverse=True)[1]
    batches = (
        query_batches(groups, cfg.batch_size, seed, epoch)
        if by_query
        else epoch_batches(lengths, cfg.batch_size, seed, epoch)
    )
    for index, rows in enumerate(batches[skip:], start=first + skip):
        together = groups if by_query else None
        shares = [share_of(rows, Place(rank, place.size), together) for rank in range(place.size)]
        runs = [cut_micro_batches(share, lengths, cfg.micro_batch_tokens, together) for share in shares]
        # Sharded models gather their weights collectively: all workers need the same number of forward passes.
        missing = max(map(len, runs)) - len(runs[place.rank])
        made = [_micro_batch(examples, lengths, groups, run, preparer) for run in runs[place.rank]]
        made += [_micro_batch(examples, lengths, groups, rows[-1:], preparer, idle=True)] * missing
        yield Step(epoch, index, len(rows) * mean_weight, made)


def _micro_batch(
    examples: Examples, lengths: np.ndarray, groups: np.ndarray, rows: np.ndarray, preparer: Preparer,
    idle: bool = False,
) -> MicroBatch:  # fmt: skip
    import torch

    part = examples.rows(rows)
    return MicroBatch(
        inputs=preparer.prepare(part.queries, part.pin_texts, part.features),
        targets=torch.from_numpy(np.ascontiguousarray(part.targets, dtype=np.float32)),
        weights=torch.from_numpy(part.weights.astype(np.float32) * (not idle)),
        groups=torch.from_numpy(groups[rows].astype(np.int64)),
        tokens=0 if idle else int(lengths[rows].sum()),
        padded_tokens=0 if idle else int(lengths[rows].max()) * len(rows),
    )


def steps_in(num_rows: int, cfg: TrainConfig) -> int:
    """Optimiser steps for that many examples; batches of complete queries may make one less."""
    return math.ceil(num_rows / cfg.batch_size)


# --- sources ---


class Source(Protocol):
    """Source of a training loop's steps."""

    preparer: Preparer
    weight: float  # summed over all examples

    def steps_per_epoch(self, cfg: TrainConfig) -> int:
        """Optimiser steps."""

    def steps(self, cfg: TrainConfig, seed: int, place: Place, epoch: int, step: int) -> Generator[Step, None, None]:
        """Iterate from that step of that epoch to the end of the last epoch."""


class InMemory:
    """All examples in this process; texts are measured once."""

    def __init__(self, examples: Examples, preparer: Preparer) -> None:
        self.examples, self.preparer = examples, preparer
        self.lengths = preparer.lengths(examples.queries, examples.pin_texts)
        self.num_rows, self.weight = len(examples), float(examples.weights.sum())

    def steps_per_epoch(self, cfg: TrainConfig) -> int:
        """Optimiser steps."""
        return steps_in(self.num_rows, cfg)

    def steps(self, cfg: TrainConfig, seed: int, place: Place, epoch: int, step: int) -> Generator[Step, None, None]:
        """Iterate from that step of that epoch to the end of the last epoch; prefetched in a thread."""

        def all_steps() -> Iterator[Step]:
            for number in range(epoch, cfg.epochs):
                skip = step if number == epoch else 0
                yield from make_steps(
                    self.examples, self.lengths, self.preparer, cfg, seed, number, place, skip=skip,
                    mean_weight=self.weight / self.num_rows,
                )  # fmt: skip

        return _ahead(all_steps())


def _ahead(steps: Iterator[Step]) -> Generator[Step, None, None]:
    """Prefetch items in a thread while the last one is used."""
    ready: queue.Queue[Step | BaseException | None] = queue.Queue(maxsize=_AHEAD)
    stopped = threading.Event()

    def put(item: Step | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                put(step)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the steps are used
            put(error)

    threading.Thread(target=work, daemon=True, name="batches").start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
