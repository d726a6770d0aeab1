"""What reaches the engine, and under which keys; without Ray."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.base.config import Config
from ray_app.base.schemas import PIN_TEXTS, SOFT_LABEL_RESULTS
from ray_app.base.storage import Storage
from ray_app.cluster.executor import ModelWork
from ray_app.features.catalogue import Catalogue
from ray_app.stages.label.labeller import Labeller
from ray_app.tables.manifest import Output

FIELDS = ["title", "engaged_queries"]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """(queries, engaged queries of one pin) -> query -> the pin's text, of the pairs that the engine is asked for."""
    source = {"adapter": "table", "path": "unused.csv"}
    models = {"train_teacher": {"base_model": "m", "use_features": False}, "distill": {"base_model": "m"}}
    features = {"zero_shot_model": "m", "bm25_fields": ["title"]}
    cfg = Config.model_validate(
        {
            "output": str(tmp_path), "ingest": {"pins": source}, "pin_text": {"fields": FIELDS}, "features": features,
            **models,
        }
    )  # fmt: skip
    teacher = Output(name="teacher", path="models/teacher", files=[], rows=0, content_hash="t")
    sent = []

    def commit(work, wanted):
        """Where the stage hands over to Ray."""
        missing = work.ledger.missing(wanted.keyed)
        if missing.num_rows:
            todo = wanted.columns(missing)
            sent.extend(todo.to_pylist())
            probs = pa.array([[0.2] * 5] * todo.num_rows, pa.list_(pa.float32(), 5))
            errors = pa.array([None] * todo.num_rows, pa.string())
            labels = pa.table({"content_key": todo["content_key"], "probs": probs, "error": errors})
            work.ledger.commit(labels.cast(SOFT_LABEL_RESULTS))

    monkeypatch.setattr(ModelWork, "compute", commit)

    def ask(queries, engaged):
        columns = {"pin_id": ["p"], "title": ["vase"], "engaged_queries": [engaged], "locale": ["en-US"]}
        texts = pa.table([columns.get(name, [None]) for name in PIN_TEXTS.names], schema=PIN_TEXTS)
        labeller = Labeller(cfg=cfg, store=Storage(str(tmp_path)), teacher=teacher)
        rows = np.arange(len(queries))
        sent.clear()
        labeller.label(Catalogue.of_texts(cfg, texts), queries, rows, np.zeros(len(queries), np.int64))
        return {row["query"]: row["pin_text"] for row in sent}

    return ask


def test_a_click_does_not_come_back_as_a_grade_through_the_pins_text(asked):
    """A pair was labelled by a text that named its query, of a kind that the teacher had never been trained on."""
    assert asked(["desk", "mugs"], ["mug", "cup"]) == {"desk": "vase. mug, cup", "mugs": "vase. cup"}


def test_a_label_is_kept_under_the_text_that_was_read(asked):
    """When only the pair's own query is new among a pin's engaged ones, its label stands and no other's does."""
    asked(["desk", "mugs"], ["cup"])
    assert asked(["desk", "mugs"], ["mug", "cup"]) == {"desk": "vase. mug, cup"}
    assert asked(["desk", "mugs"], ["mug", "cup"]) == {}
