"""The teacher's scores for the page: of the right pair or of none."""

import pyarrow as pa
import pytest

from ray_app.base.schemas import PUBLIC_QUERIES, SOFT_LABELS
from ray_app.base.storage import Storage
from ray_app.online import teacher_scores
from ray_app.online.teacher_scores import TeacherScores
from ray_app.tables.manifest import Output, hash_files

ROWS = [
    ("Red  Mug", "en-US", "a", [0.0, 0.0, 0.0, 0.0, 1.0], None),
    ("red mug", "de-DE", "a", [1.0, 0.0, 0.0, 0.0, 0.0], None),
    ("lamp", "en-US", "b", [0.0, 0.5, 0.5, 0.0, 0.0], None),
    ("lamp", "en-US", "c", None, "empty_pin: it says nothing"),
]


@pytest.fixture
def labels(tmp_path):
    store = Storage(str(tmp_path))
    names = ["query", "locale", "pin_id", "probs", "error"]
    columns = dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True))
    table = pa.table({"content_key": [str(i) for i in range(len(ROWS))], **columns}, schema=SOFT_LABELS)
    public = pa.table({"query": ["lamp", "red mug", "vase"], "num_clients": [5, 6, 7]}, schema=PUBLIC_QUERIES)
    return store, _written(store, "soft_labels", table), _written(store, "public_queries", public)


def _written(store, name, table):
    file = store.write_table(f"tables/{name}/x/part-00000.parquet", table)
    content = hash_files(f"tables/{name}/x", {file.path: file.sha256})
    return Output(name=name, path=f"tables/{name}/x", files=[file.path], rows=table.num_rows, content_hash=content)


@pytest.mark.parametrize(
    ("pair", "score"),
    [
        (("red mug", "en-US", "a"), 5.0),  # labelled as it was typed, asked normalised
        (("red mug", "de-DE", "a"), 1.0),
        (("lamp", "en-US", "b"), 2.5),
        (("lamp", "en-US", "c"), None),  # the teacher failed on it
        (("lamp", "de-DE", "b"), None),
        (("lamp", "en-USb", ""), None),  # the same letters, cut elsewhere
    ],
)
def test_a_pair_has_its_own_score(labels, pair, score):
    assert TeacherScores.load(*labels).score(*pair) == score


def test_too_many_labels_are_left_where_they_are(labels, monkeypatch):
    monkeypatch.setattr(teacher_scores, "MAX_PAIRS", 3)
    known = TeacherScores.load(*labels)
    assert known.score("red mug", "en-US", "a") is None and known.examples(5) == []


def test_examples_are_queries_that_were_labelled(labels):
    assert TeacherScores.load(*labels).examples(5) == ["red mug", "lamp"]
    assert TeacherScores.none().examples(5) == []


def test_a_query_of_few_people_is_no_example(labels):
    """What one person searched is nobody else's business, however many of its pairs were graded."""
    store, soft_labels, _ = labels
    public = _written(store, "few", pa.table({"query": ["lamp"], "num_clients": [5]}, schema=PUBLIC_QUERIES))
    assert TeacherScores.load(store, soft_labels, public).examples(5) == ["lamp"]
    assert TeacherScores.load(store, soft_labels, None).examples(5) == []
