"""Training examples streamed by Ray Data."""

import pickle
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from ray_app.base.config import TrainConfig
from ray_app.base.storage import Storage
from ray_app.training.batches import Place, Preparer, Step, file_windows, make_steps, steps_in
from ray_app.training.examples import Examples

_WINDOWS_AHEAD = 2  # windows of a stream that are batched at the same time, each in a process of its own


class Streamed:
    """Examples in files, read, tokenised and batched by Ray Data tasks a little ahead of the training.

    Each worker has a stream of its own share, in the exact order; Ray Data's own split among workers would follow who
    asks first. A window is read and measured by each worker, and batched once.

    Args:
        store: Where the files lie.
        files: Paths of tables of `Examples.to_table`, shuffled once when they were written; with a loss that compares
            the pins of a query each query is in one file.
        file_rows: Rows of each.
        weight: Summed over all.
        preparer: Of the model.
    """

    def __init__(
        self, store: Storage, files: Sequence[str], file_rows: Sequence[int], weight: float, preparer: Preparer
    ) -> None:
        self.store, self.files, self.file_rows, self.weight = store, list(files), list(file_rows), weight
        self.preparer, self.num_rows = preparer, sum(file_rows)

    def _windows(self, cfg: TrainConfig, seed: int, epoch: int) -> list[list[int]]:
        return file_windows(self.file_rows, cfg.shuffle_window_rows, seed, epoch)

    def _steps_of(self, window: list[int], cfg: TrainConfig) -> int:
        return steps_in(sum(self.file_rows[file] for file in window), cfg)

    def steps_per_epoch(self, cfg: TrainConfig) -> int:
        """Optimiser steps of the first epoch; others may have a few more or less, where windows end."""
        return sum(self._steps_of(window, cfg) for window in self._windows(cfg, 0, 0))

    def steps(self, cfg: TrainConfig, seed: int, place: Place, epoch: int, step: int) -> Generator[Step, None, None]:
        """From that step of that epoch on, to the end of the last epoch."""
        import ray.data

        items = []
        for number in range(epoch, cfg.epochs):
            first = 0
            for index, window in enumerate(self._windows(cfg, seed, number)):
                size, done = self._steps_of(window, cfg), step if number == epoch else 0
                if first + size > done:
                    files = [self.files[file] for file in window]
                    items.append(
                        {"files": files, "epoch": number, "window": index, "first": first, "skip": max(0, done - first)}
                    )
                first += size
        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        with ray.data.DataContext.current(context):
            dataset = ray.data.from_items(items, override_num_blocks=max(1, len(items))).map_batches(
                _window_steps,
                fn_kwargs={
                    "store": self.store,
                    "preparer": self.preparer,
                    "cfg": cfg,
                    "seed": seed,
                    "place": place,
                    "mean_weight": self.weight / self.num_rows,
                },
                batch_size=1,
                compute=ray.data.TaskPoolStrategy(size=_WINDOWS_AHEAD),
                num_cpus=0,  # the workers hold the CPUs of a small cluster, and would wait for these tasks for ever
            )
            for row in dataset.iter_rows():
                yield pickle.loads(row["step"])


def _window_steps(batch: dict[str, Any], **where: Any) -> Iterator[dict[str, Any]]:
    """A Ray Data task: one window -> its steps, one by one."""
    store, preparer, cfg, seed, place = (where[name] for name in ("store", "preparer", "cfg", "seed", "place"))
    (files,), (epoch,), (window,), (first,), (skip,) = (
        batch[name] for name in ("files", "epoch", "window", "first", "skip")
    )
    examples = Examples.concatenate([Examples.from_table(store.read_table(file)) for file in files])
    lengths = preparer.lengths(examples.queries, examples.pin_texts)
    own_seed = int(np.random.default_rng([seed, int(window), 2]).integers(2**31))
    steps = make_steps(
        examples, lengths, preparer, cfg, own_seed, int(epoch), place, int(first), int(skip), where["mean_weight"]
    )
    for step in steps:
        yield {"step": np.array([pickle.dumps(step)], dtype=object)}
