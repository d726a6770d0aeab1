"""Which pairs train the student, which choose its epoch, and what its probabilities are calibrated to."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from minimal import make_examples

from ray_app.base.config import load_config
from ray_app.base.schemas import SPLITS
from ray_app.base.storage import Storage
from ray_app.cluster.example_files import Placed, num_files, write_examples
from ray_app.features.student import LOCALE_NAMES
from ray_app.models.calibration import HUMAN_GRADES, TEACHER
from ray_app.models.head import FeatureScaler
from ray_app.stages.distill.examples import ValidQueries, example_keys, some_without_locale
from ray_app.stages.distill.stage import student_jobs
from ray_app.training.examples import Examples

SPLIT_OF = {"laptop": "train", "red mug": "valid", "chair": "test"}
SPLITS_TABLE = pa.table({"query": list(SPLIT_OF), "split": list(SPLIT_OF.values())}, schema=SPLITS)
CFG = load_config("configs/demo.yaml")
LOOPS = (CFG.distill.train, CFG.distill.feature_train)


def examples(queries: list[str], grade: int = 5, num_features: int = 2) -> Examples:
    n = len(queries)
    features = np.arange(n * num_features, dtype=np.float32).reshape(n, num_features)
    return make_examples(queries, [f"p{i}" for i in range(n)], features, [grade] * n, locales=["en-US"] * n)


def placed(some: Examples, is_valid: list[bool] | None = None) -> Placed:
    table = pa.table({"query": list(some.queries), "locale": some.locales, "pin_id": list(some.pin_texts)})
    mask = np.zeros(len(some), bool) if is_valid is None else np.array(is_valid, bool)
    return Placed(examples=some, order=example_keys("soft", table, 1), is_valid=mask)


def write(tmp_path, items: list[Placed], num_parts: int = 1, loops=LOOPS):
    store = Storage(str(tmp_path))
    return store, write_examples(store, "examples", items, lambda item: item, num_parts, loops, 2)


def read(store: Storage, files: list[str]) -> Examples:
    return Examples.concatenate([Examples.from_table(store.read_table(file)) for file in files])


@pytest.mark.parametrize("seed", range(5))
def test_soft_labels_of_human_labelled_queries_stay_on_their_side(seed: int) -> None:
    """Else early stopping sees queries that were trained on, and the human validation queries are trained on."""
    others = [f"query {i}" for i in range(200)]
    queries = [*others, "laptops", "red mugs", "laptop", "red mug"]
    chosen = {q for q, valid in zip(queries, ValidQueries(0.3, seed, SPLITS_TABLE).mask(queries), strict=True) if valid}
    assert not {"laptop", "laptops"} & chosen
    assert {"red mug", "red mugs"} <= chosen
    assert 30 < len(chosen) < 90


def test_examples_are_written_shuffled_and_none_is_lost(tmp_path) -> None:
    """The order of the items is that in which tasks end; files must not follow it."""
    first, second = examples([f"a{i}" for i in range(300)]), examples([f"b{i}" for i in range(50)], grade=1)
    parts = [placed(first), placed(second, [True] * 50)]
    store, written = write(tmp_path / "one", parts)
    other, again = write(tmp_path / "two", parts[::-1])
    assert [store.read_bytes(f) for f in written.files.train] == [other.read_bytes(f) for f in again.files.train]
    train, valid = read(store, written.files.train), read(store, written.files.valid)
    assert sorted(train.queries) == sorted(first.queries) != list(train.queries)
    assert sorted(valid.queries) == sorted(second.queries)
    assert (written.num_train, written.num_valid, written.files.train_weight) == (300, 50, 300.0)
    assert written.locales == ["en-US"]
    expected = FeatureScaler.fit(first.features)
    np.testing.assert_allclose(written.scaler.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(written.scaler.std, expected.std, rtol=1e-6)
    row = list(train.queries).index("a7")
    assert (train.pin_texts[row], train.features[row].tolist()) == ("p7", [14.0, 15.0])


@pytest.mark.parametrize(("num_rows", "expected"), [(0, 1), (1000, 1), (1001, 2), (5000, 8), (10**9, 2**20)])
def test_few_examples_are_one_file(num_rows: int, expected: int) -> None:
    """More are read in windows of files."""
    loop = CFG.distill.train.model_copy(update={"shuffle_window_rows": 1000})
    assert (
        num_files(num_rows, [CFG.distill.feature_train.model_copy(update={"shuffle_window_rows": 10**9}), loop])
        == expected
    )


@pytest.mark.parametrize("held_out", [None, examples(["red mug"] * 7)])
def test_probabilities_are_calibrated_to_human_grades_where_there_are_enough(tmp_path, held_out) -> None:
    taught = examples([f"query {i}" for i in range(40)], grade=1)
    store, written = write(tmp_path, [placed(taught, [i < 5 for i in range(40)])])
    jobs = student_jobs(CFG, store, ["a", "b"], written, "models/{name}", "examples", held_out)
    assert set(jobs) == {"student", "feature_only_student"}
    for job in jobs.values():
        pairs = read(store, job.files.calibrate_on)
        assert job.calibrate_on.fitted_to == (TEACHER if held_out is None else HUMAN_GRADES)
        assert set(pairs.targets.argmax(1)) == {0 if held_out is None else 4}
        assert len(pairs) == (5 if held_out is None else 7)
        assert not set(pairs.queries) & set(read(store, job.files.train).queries)


def test_some_training_queries_have_no_known_locale() -> None:
    """Else a request without a locale is an input that the student never saw: each pin looks foreign to it."""
    names = ["title_bm25", *LOCALE_NAMES]
    some = examples([f"query {i}" for i in range(2_000)])
    some = placed(replace(some, features=np.ones((2_000, 5), np.float32)), [i % 2 == 0 for i in range(2_000)])
    found = some_without_locale(some, names)
    train, valid = found.examples.features[~some.is_valid], found.examples.features[some.is_valid]
    unknown = train[:, names.index("query_locale_known")] == 0
    assert 0.03 < unknown.mean() < 0.07
    assert train[unknown].tolist() == [[1, 0, 0, 1, 0]] * int(unknown.sum())  # as `compute` has them
    assert (train[~unknown] == 1).all()
    assert (valid == 1).all()
