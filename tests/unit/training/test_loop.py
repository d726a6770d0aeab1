"""The shared training loop: it learns, resumes exactly, and means the same on any number of workers."""

import dataclasses
import threading
from pathlib import Path

import minimal
import numpy as np
import pytest
import torch
from torch import nn

from ray_app.base.config import TrainConfig
from ray_app.cluster.train import _shuffled_files
from ray_app.training.batches import (
    InMemory,
    Place,
    cut_micro_batches,
    epoch_batches,
    file_windows,
    make_steps,
    query_batches,
)
from ray_app.training.examples import Examples
from ray_app.training.loop import _Run, fit, learning_rate_factor
from ray_app.training.state import Worker


class Letters:
    """A pair's length is that of its texts."""

    def lengths(self, queries: list[str], pin_texts: list[str]) -> np.ndarray:
        return np.array([len(q) + len(p) for q, p in zip(queries, pin_texts, strict=True)], np.int64)

    def prepare(self, queries: list[str], pin_texts: list[str], features: np.ndarray) -> dict[str, torch.Tensor]:
        return {"features": torch.from_numpy(features)}


class Linear(nn.Module):
    """Logits are a linear function of two features; the texts are ignored."""

    preparer = Letters()
    prepare = preparer.prepare
    backbone = None

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 5)
        self.dropout = nn.Dropout(0.2)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.linear(self.dropout(batch["features"]))

    def before_training(self, queries: list[str], pin_texts: list[str], cfg: TrainConfig) -> None:
        pass

    def param_groups(self, cfg: TrainConfig) -> list[dict]:
        return [{"params": list(self.parameters()), "lr": cfg.head_learning_rate}]


class NoDropout(Linear):
    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.linear(batch["features"])


def make_model(kind: type[Linear] = Linear) -> Linear:
    torch.manual_seed(3)
    return kind()


def make_examples(n: int = 60) -> Examples:
    """Grade 5 where the first feature is positive, else grade 1."""
    features = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    grades = np.where(features[:, 0] > 0, 5, 1)
    return minimal.make_examples(["q"] * n, ["p" * (i % 7) for i in range(n)], features, grades)


def lengths_of(examples: Examples) -> np.ndarray:
    return Letters().lengths(examples.queries, examples.pin_texts)


def config(**overrides: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {"epochs": 6, "batch_size": 16, "head_learning_rate": 0.1, "early_stopping_patience": 9} | overrides
    )


def test_it_learns_what_the_features_say() -> None:
    model, examples = make_model(), make_examples()
    fit(model, examples, examples, config(epochs=30), 0, Worker())
    with torch.inference_mode():
        predicted = model(model.prepare([], [], examples.features)).argmax(1).numpy()
    assert (predicted == examples.targets.argmax(1)).mean() > 0.95


@pytest.mark.parametrize("killed_after", [1, 3, 4, 7, 23])  # an epoch has 4 steps
def test_a_run_killed_after_any_step_resumes_to_the_same_weights(tmp_path: Path, killed_after: int) -> None:
    """Else a killed run ends with another teacher, and every label has another content key."""
    examples = make_examples()

    class Killed(Exception):
        pass

    def save_then_die(metrics: dict, save) -> None:
        save(tmp_path)
        if metrics["total_steps"] == killed_after:
            raise Killed

    fault_free, killed, resumed = make_model(), make_model(), make_model()
    curve = fit(fault_free, examples, examples, config(), 0, Worker()).history
    with pytest.raises(Killed):
        fit(killed, examples, examples, config(), 0, Worker(report=save_then_die, is_due=lambda ended: True))
    state = fit(resumed, examples, examples, config(), 0, Worker(), resume_from=tmp_path)
    assert torch.equal(resumed.linear.weight, fault_free.linear.weight)
    assert state.history == curve


def test_resuming_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    examples, model, again = make_examples(), make_model(), make_model()
    fit(model, examples, examples, config(), 0, Worker(report=lambda metrics, save: save(tmp_path)))
    reports: list[dict] = []
    fit(again, examples, examples, config(), 0, Worker(report=lambda m, s: reports.append(m)), resume_from=tmp_path)
    assert reports == []
    assert torch.equal(again.linear.weight, model.linear.weight)


def test_the_best_epoch_is_kept_not_the_last() -> None:
    """A teacher that has overfitted for two epochs must not be the one that labels."""
    examples, model = make_examples(), make_model()
    upside_down = dataclasses.replace(examples, features=-examples.features)
    after: list[torch.Tensor] = []
    worker = Worker(report=lambda metrics, save: after.append(model.linear.weight.detach().clone()))
    state = fit(model, examples, upside_down, config(early_stopping_patience=2), 0, worker)
    assert (state.best_epoch, state.epoch) == (0, 3)
    assert torch.equal(model.linear.weight, after[0])


def test_two_workers_average_to_the_gradient_of_one() -> None:
    """Batch size is over all workers: another number of machines must not be another experiment."""
    examples, cfg = make_examples(50), config(epochs=2, batch_size=16)
    size, (alone, *models) = 2, [make_model(NoDropout) for _ in range(3)]
    fit(alone, examples, examples, cfg, 0, Worker())
    barrier, slots = threading.Barrier(size), [0.0] * size

    def run(rank: int) -> None:
        def total(value: float) -> float:
            slots[rank] = value
            barrier.wait()
            result = sum(slots)
            barrier.wait()
            return result

        def wrap(model: Linear) -> Linear:
            for index, parameter in enumerate(model.parameters()):
                parameter.register_hook(lambda grad, i=index: average(i, grad))
            return model

        def average(index: int, grad: torch.Tensor) -> torch.Tensor:
            grads[rank][index] = grad
            barrier.wait()
            mean = sum(g[index] for g in grads) / size
            barrier.wait()
            return mean

        fit(models[rank], examples, examples, cfg, 0, Worker(rank=rank, size=size, wrap=wrap, total=total))

    grads: list[dict[int, torch.Tensor]] = [{}, {}]
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    torch.testing.assert_close(models[0].linear.weight, alone.linear.weight, atol=1e-5, rtol=1e-4)
    assert torch.equal(models[0].linear.weight, models[1].linear.weight)


def test_every_row_is_in_one_batch_of_each_epoch() -> None:
    batches = epoch_batches(np.arange(103), 10, seed=1, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(103))


def test_batches_follow_seed_and_epoch_alone() -> None:
    def flat(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_batches(np.arange(50), 8, seed, epoch)).tolist()

    assert flat(1, 2) == flat(1, 2)
    assert flat(1, 2) != flat(1, 3)
    assert flat(1, 2) != flat(2, 2)


def test_batches_hold_rows_of_similar_length() -> None:
    lengths = np.tile([1, 100], 200)
    spread = [np.ptp(lengths[rows]) for rows in epoch_batches(lengths, 10, seed=0, epoch=0)]
    assert np.mean(spread) < 20


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [learning_rate_factor(step, 10, 0.2) for step in range(10)]
    assert factors[0] == 0.5
    assert max(factors) == factors[1] == 1.0
    assert factors[-1] < 0.2
    cosine = [learning_rate_factor(step, 100, 0.1, "cosine") for step in range(100)]
    assert [cosine[step] for step in (10, 55, 99)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-3)
    assert cosine[20] > learning_rate_factor(20, 100, 0.1), "it falls slowly at first"


def test_training_on_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no training example"):
        fit(make_model(), make_examples(0), make_examples(), config(), 0, Worker())


def test_a_target_that_is_no_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="sums to 1"):
        Examples(queries=["q"], pin_texts=["p"], features=np.zeros((1, 1)), targets=np.ones((1, 5)), weights=np.ones(1))


def test_a_diverged_loss_is_an_error() -> None:
    examples = make_examples()
    with pytest.raises(ValueError, match="learning_rate"):
        fit(make_model(), examples, examples, config(head_learning_rate=1e37, max_grad_norm=1e30), 0, Worker())


def test_examples_survive_arrow() -> None:
    examples = make_examples(3)
    again = Examples.from_table(examples.to_table())
    assert again.pin_texts == examples.pin_texts
    np.testing.assert_array_equal(again.features, examples.features)


# --- parts of a batch ---


@pytest.mark.parametrize("micro_batch_tokens", [12, 1])
def test_parts_of_a_batch_add_up_to_the_batch(micro_batch_tokens: int) -> None:
    """Less memory must not be another experiment."""
    examples, models = make_examples(50), [make_model(NoDropout) for _ in range(2)]
    for model, more in zip(models, ({}, {"micro_batch_tokens": micro_batch_tokens}), strict=True):
        fit(model, examples, examples, config(epochs=2, **more), 0, Worker())
    torch.testing.assert_close(models[1].linear.weight, models[0].linear.weight, atol=1e-5, rtol=1e-4)


def test_parts_hold_no_more_tokens_than_asked_unless_one_row_does() -> None:
    lengths = np.array([30, 9, 8, 8, 7, 2, 1])
    parts = cut_micro_batches(np.arange(7), lengths, 20)
    assert np.concatenate(parts).tolist() == list(range(7))
    assert [len(part) for part in parts] == [1, 2, 2, 2]
    assert all(lengths[part].max() * len(part) <= 20 for part in parts[1:])


def test_each_worker_has_as_many_parts_and_together_all_rows_once() -> None:
    """A sharded model waits for ever for a worker that passes once less often."""
    examples, cfg = make_examples(45), config(batch_size=7, micro_batch_tokens=9)
    lengths = lengths_of(examples)
    shares = [list(make_steps(examples, lengths, Letters(), cfg, 0, 0, Place(rank, 3))) for rank in range(3)]
    for step in zip(*shares, strict=True):
        assert len({len(share.micro_batches) for share in step}) == 1
        assert len({share.weight for share in step}) == 1
    micros = [micro for share in shares for step in share for micro in step.micro_batches if micro.weights.sum() > 0]
    seen = np.concatenate([micro.inputs["features"][:, 0] for micro in micros])
    assert sorted(seen.tolist()) == sorted(examples.features[:, 0].tolist())


# --- windows ---


def test_each_file_is_in_one_window_of_each_epoch() -> None:
    rows = [100] * 10 + [30]
    for epoch in range(3):
        windows = file_windows(rows, 300, seed=1, epoch=epoch)
        assert sorted(file for window in windows for file in window) == list(range(11))
        assert all(sum(rows[file] for file in window) >= 300 for window in windows[:-1])
    assert file_windows(rows, 300, 1, 0) == file_windows(rows, 300, 1, 0) != file_windows(rows, 300, 1, 1)


def test_padding_is_small_where_lengths_vary() -> None:
    """Issue 5: below 10% of the tokens."""
    cfg, lengths = config(batch_size=64, micro_batch_tokens=2000), np.random.default_rng(0).integers(5, 100, 3000)
    steps = InMemory(make_examples(3000), Letters())
    steps.lengths = lengths
    micros = [m for step in steps.steps(cfg, 0, Place(), 5, 0) for m in step.micro_batches]
    assert sum(m.tokens for m in micros) == lengths.sum()
    assert 1 - sum(m.tokens for m in micros) / sum(m.padded_tokens for m in micros) < 0.1


def test_an_error_while_preparing_reaches_the_training() -> None:
    """Else the training waits for ever for a batch that cannot be made."""

    class Broken(Letters):
        def prepare(self, *_: object) -> dict:
            raise ValueError("no tokens")

    with pytest.raises(ValueError, match="no tokens"):
        next(InMemory(make_examples(), Broken()).steps(config(), 0, Place(), 0, 0))


# --- whole queries, weights, and what must not pass silently ---


def queries_of_sizes(sizes: list[int]) -> Examples:
    """Pairs of several queries, with grades and features that differ within each."""
    rng, n = np.random.default_rng(1), sum(sizes)
    queries = [f"q{i}" for i, size in enumerate(sizes) for _ in range(size)]
    features = rng.normal(size=(n, 2)).astype(np.float32)
    return minimal.make_examples(queries, ["p" * (3 + i % 8) for i in range(n)], features, rng.integers(1, 6, n))


def first_gradient(examples: Examples, size: int = 1, **overrides: object) -> torch.Tensor:
    """Mean over `size` workers of the gradient of the first step."""
    cfg = config(batch_size=48, max_grad_norm=1e9, **overrides)
    lengths, total = lengths_of(examples), 0.0
    for rank in range(size):
        model = make_model(NoDropout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        optimizer.zero_grad = lambda set_to_none=True: None
        worker = Worker(rank=rank, size=size)
        step = next(make_steps(examples, lengths, Letters(), cfg, 0, 0, Place(rank, size)))
        _Run(model, model, optimizer, cfg, worker, torch.device("cpu")).step(step)
        total = total + model.linear.weight.grad.clone() / size
    return total


@pytest.mark.parametrize("how", [{"micro_batch_tokens": 60}, {"micro_batch_tokens": 9}, {"size": 4}, {"size": 5}])
def test_margin_loss_has_one_gradient_whatever_the_micro_batches_and_workers(how: dict) -> None:
    """docs/training.md promises the same steps; a query that is torn apart compares fewer of its pins."""
    examples = queries_of_sizes([8] * 6)
    whole = first_gradient(examples, margin_mse_weight=1.0)
    torch.testing.assert_close(first_gradient(examples, margin_mse_weight=1.0, **how), whole, atol=1e-6, rtol=1e-5)


def test_batches_keep_queries_whole_unless_one_alone_is_larger() -> None:
    sizes = [7, 5, 3, 9, 1, 8, 6, 25, 2]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    for epoch in range(20):
        batches = query_batches(groups, 10, seed=0, epoch=epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(groups)))
        held = [set(groups[rows].tolist()) for rows in batches]
        assert [sum(query in batch for batch in held) for query in range(len(sizes)) if query != 7] == [1] * 8
        assert len(batches) in (6, 7)
        assert max(map(len, batches)) < 20
    assert not np.array_equal(batches[0], query_batches(groups, 10, seed=0, epoch=20)[0])
    assert query_batches(np.zeros(0, np.int64), 10, 0, 0) == []


def test_a_query_of_equal_pairs_does_not_cancel_its_own_weight() -> None:
    """query_weight_exponent: a batch that holds one query only must still weigh what that query weighs."""
    examples = queries_of_sizes([40, 4])
    weights = np.where(np.array(examples.queries) == "q0", 0.1, 10.0).astype(np.float32)
    examples = dataclasses.replace(examples, weights=weights)
    cfg = config(batch_size=40, margin_mse_weight=1.0)
    lengths = lengths_of(examples)
    for step in make_steps(examples, lengths, Letters(), cfg, 0, 0, Place()):
        (micro,) = step.micro_batches
        rows = len(micro.weights)
        assert step.weight == pytest.approx(rows * weights.mean())
        # The mean pair of a batch has the weight that its query has in the run, not 1.
        assert float(micro.weights.sum()) / step.weight == pytest.approx(float(micro.weights.mean()) / weights.mean())


def test_a_validation_loss_that_is_not_finite_names_the_pair() -> None:
    """NaN is never less than the best: without an error the weights from before training would be saved."""
    examples = make_examples()
    features = examples.features.copy()
    features[7] = np.nan
    broken = dataclasses.replace(examples, features=features, queries=[f"query {i}" for i in range(60)])
    with pytest.raises(ValueError, match="validation loss is nan: query 'query 7'"):
        fit(make_model(), examples, broken, config(), 0, Worker())


def test_without_validation_pairs_there_is_no_validation_loss() -> None:
    """The training loss must not stand for it in curves and cards."""
    state = fit(make_model(), make_examples(), make_examples(0), config(early_stopping_patience=1), 0, Worker())
    assert [entry["valid_loss"] for entry in state.history] == [None] * 6
    assert state.best_epoch == 5


def test_a_part_that_should_train_and_gets_no_gradient_is_refused() -> None:
    """Frozen adapters, or a layer that nothing reads, train to a normal loss curve and change nothing."""

    class Deaf(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.unread = nn.Linear(2, 5)

        def param_groups(self, cfg: TrainConfig) -> list[dict]:
            groups = [self.linear.parameters(), self.unread.parameters()]
            return [{"params": list(group), "lr": cfg.head_learning_rate} for group in groups]

    for epochs in (1, 6):  # fewer steps than the check waits for, and more
        with pytest.raises(ValueError, match=r"1 of 2 parts .* no gradient.*unread"):
            fit(Deaf(), make_examples(), make_examples(), config(epochs=epochs), 0, Worker())


def test_files_of_a_stream_keep_queries_whole_for_the_margin_loss() -> None:
    """Pairs that are spread one by one over files meet a twentieth of their query in a window, and learn nothing of it."""
    examples = queries_of_sizes([20] * 50)
    cfg = config(margin_mse_weight=1.0, shuffle_window_rows=100)
    files = _shuffled_files(examples, cfg, 100, seed=0)
    assert sorted(np.concatenate(files).tolist()) == list(range(1000))
    queries = [{examples.queries[row] for row in rows} for rows in files]
    assert sum(map(len, queries)) == 50
    assert max(map(len, files)) <= 120
    mixed = _shuffled_files(examples, config(shuffle_window_rows=100), 100, seed=0)
    assert len({examples.queries[row] for row in mixed[0]}) > 30
