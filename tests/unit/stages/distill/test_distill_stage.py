"""Which pairs train the student, which choose its epoch, and what its probabilities are calibrated to."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from minimal import make_examples

from ray_app.base.config import load_config
from ray_app.base.schemas import SPLITS
from ray_app.features.student import LOCALE_NAMES
from ray_app.models.calibration import HUMAN_GRADES, MIN_PAIRS, TEACHER
from ray_app.stages.distill.examples import split_by_query
from ray_app.stages.distill.stage import student_jobs
from ray_app.training.examples import Examples

SPLIT_OF = {"laptop": "train", "red mug": "valid", "chair": "test"}
SPLITS_TABLE = pa.table({"query": list(SPLIT_OF), "split": list(SPLIT_OF.values())}, schema=SPLITS)


def examples(queries: list[str], grade: int = 5) -> Examples:
    n = len(queries)
    return make_examples(queries, ["p"] * n, np.zeros((n, 2), np.float32), [grade] * n, locales=["en-US"] * n)


def jobs(taught: Examples, held_out: Examples) -> dict:
    cfg = load_config("configs/demo.yaml")
    human = examples(["laptop"] * 3)
    return student_jobs(cfg, ["a", "b"], taught, human, "models/{name}", SPLITS_TABLE, held_out)[0]


@pytest.mark.parametrize("seed", range(5))
def test_soft_labels_of_human_labelled_queries_stay_on_their_side(seed: int) -> None:
    """Else early stopping sees queries that were trained on, and the human validation queries are trained on."""
    others = [f"query {i}" for i in range(200)]
    pairs = examples([*others, "laptops", "red mugs", "laptop", "red mug"])
    train, valid = split_by_query(pairs, 0.3, seed, SPLITS_TABLE)
    assert {"laptop", "laptops"} <= set(train.queries)
    assert {"red mug", "red mugs"} <= set(valid.queries)
    assert 30 < len(valid) < 90


def test_probabilities_are_calibrated_to_human_grades_where_there_are_enough() -> None:
    taught = examples([f"query {i}" for i in range(400)], grade=1)
    for num, fitted_to in ((MIN_PAIRS, HUMAN_GRADES), (MIN_PAIRS - 1, TEACHER)):
        for job in jobs(taught, examples(["red mug"] * num)).values():
            assert job.calibrate_on.fitted_to == fitted_to
            given = job.calibrate_on.examples
            assert given.targets.argmax(1).max() == (4 if fitted_to == HUMAN_GRADES else 0)
            assert not set(given.queries) & set(job.train.queries)


def test_without_soft_labels_few_human_grades_are_all_there_is() -> None:
    for job in jobs(examples([]), examples(["red mug"] * 5)).values():
        assert (job.calibrate_on.fitted_to, len(job.calibrate_on.examples)) == (HUMAN_GRADES, 5)


def test_some_training_queries_have_no_known_locale() -> None:
    """Else a request without a locale is an input that the student never saw: each pin looks foreign to it."""
    taught = examples([f"query {i}" for i in range(2_000)])
    taught = replace(taught, features=np.ones((2_000, 5), np.float32))
    human = replace(examples(["laptop"] * 3), features=np.ones((3, 5), np.float32))
    names = ["title_bm25", *LOCALE_NAMES]
    cfg = load_config("configs/demo.yaml")
    job = student_jobs(cfg, names, taught, human, "models/{name}", SPLITS_TABLE, human)[0]["student"]
    unknown = job.train.features[:, names.index("query_locale_known")] == 0
    assert 0.03 < unknown.mean() < 0.07
    assert job.train.features[unknown].tolist() == [[1, 0, 0, 1, 0]] * int(unknown.sum())  # as `compute` has them
    assert (job.train.features[~unknown] == 1).all()
    assert (job.valid.features == 1).all()
