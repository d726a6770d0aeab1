"""What Ray's workers run, without Ray."""

import hashlib

import pyarrow as pa
import pytest
from caption_world import make_config, picture, write_images, write_pins

from ray_app.base.schemas import CAPTION_RESULTS
from ray_app.base.storage import Storage
from ray_app.stages.caption import batches
from ray_app.stages.caption.batches import ANSWERS, DECODED, load_images, tidy_answer, vllm_answer, vllm_request
from ray_app.stages.caption.image_index import SOURCES
from ray_app.stages.caption.results import commit_answers
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import read_manifest

CAPTION = make_config("unused", model="unused").caption


def source(number, **where):
    return {"content_key": f"k{number}", "sha256": hashlib.sha256(picture(number)).hexdigest(), **where}


def load(rows, store=None, batch_size=4):
    job = pa.Table.from_pylist(rows, schema=SOURCES)
    return list(load_images(job, store, CAPTION.limits, batch_size))


def test_files_are_read_batch_by_batch(tmp_path):
    paths = write_images(tmp_path, range(5))
    tables = load([source(i, location=path) for i, path in enumerate(paths)], batch_size=2)
    assert [table.num_rows for table in tables] == [2, 2, 1]
    assert all(table.schema == DECODED for table in tables)
    assert tables[0]["pixels"][0].as_py() != tables[0]["pixels"][1].as_py()
    assert len(tables[2]["pixels"][0].as_py()) == 48 * 48 * 3


def test_embedded_pictures_are_read_by_row(tmp_path):
    store = Storage(str(tmp_path))
    write_pins(store, [picture(1), None, picture(2)])
    (part,) = read_manifest(store, "ingest").output("pins").files
    (table,) = load([source(2, part=part, row=2), source(1, part=part, row=0)], store)
    assert table["error"].to_pylist() == [None, None]


def test_a_picture_that_was_exchanged_meanwhile_gets_no_caption(tmp_path):
    """It would stand under the other picture's key for ever."""
    (path,) = write_images(tmp_path, [1])
    (table,) = load([source(2, location=path)])
    row = table.to_pylist()[0]
    assert row["error"].startswith("changed: ")
    assert (row["transient"], row["pixels"]) == (True, None)


def test_an_unreadable_file_may_be_readable_next_time_but_a_broken_one_stays_broken(tmp_path):
    (tmp_path / "broken").write_bytes(b"x")
    broken = {"content_key": "k", "sha256": hashlib.sha256(b"x").hexdigest(), "location": str(tmp_path / "broken")}
    (table,) = load([source(1, location=str(tmp_path / "absent")), broken])
    assert table["transient"].to_pylist() == [True, False]
    assert all(table["error"].to_pylist())


@pytest.fixture
def decoded(tmp_path):
    paths = write_images(tmp_path, range(3))
    (tmp_path / "1.png").write_bytes(b"x")
    rows = [source(i, location=path) for i, path in enumerate(paths)]
    rows[1]["sha256"] = hashlib.sha256(b"x").hexdigest()
    (table,) = load(rows)
    return table


class Widths:
    """Says how wide a picture is; refuses none."""

    def __init__(self, *args):
        pass

    def caption(self, pictures):
        return [f"a picture {p.width} wide" for p in pictures]

    def answer(self, pictures):
        return [batches_answer(text) for text in self.caption(pictures)]


def batches_answer(text):
    from ray_app.stages.caption.engine import Answer

    return Answer(text=text, error=None)


def test_broken_pictures_pass_the_model_by(decoded, monkeypatch):
    monkeypatch.setattr(batches, "TransformersCaptioner", Widths)
    found = batches.CaptionUDF(CAPTION, 1)(decoded)
    assert found.schema == ANSWERS
    assert found["text"].to_pylist() == ["a picture 48 wide", None, "a picture 48 wide"]
    assert found["started"].null_count == 1
    assert found["error"][1].as_py().startswith("not_an_image: ")


def test_rows_for_vllm(decoded):
    good, bad, _ = decoded.to_pylist()
    request = vllm_request(good, "<image>say", 7)
    assert request["multimodal_data"]["image"].size == (48, 48)
    assert (request["prompt"], request["sampling_params"]) == ("<image>say", {"temperature": 0.0, "max_tokens": 7})
    assert (request["pixels"], request[batches.INFERENCE_ERROR]) == (None, "")
    refused = vllm_request(bad, "<image>say", 7)
    assert refused[batches.INFERENCE_ERROR].startswith("not_an_image: ")


def test_rows_from_vllm(decoded):
    good, bad, other = decoded.to_pylist()
    said = {"generated_text": "a cup", "time_taken_llm": 2.0, "metrics": {"arrival_time": 100.0}}
    answers = [
        tidy_answer(vllm_answer(good | said) | {batches.INFERENCE_ERROR: ""}),
        tidy_answer(bad | {batches.INFERENCE_ERROR: bad["error"], "prompt": "x"}),
        tidy_answer(other | {batches.INFERENCE_ERROR: "ValueError: too\nlong", "generated_text": ""}),
    ]
    table = pa.Table.from_pylist(answers, schema=ANSWERS)
    assert table["text"].to_pylist() == ["a cup", None, None]
    assert table["finished"].to_pylist() == [102.0, None, None]
    assert table["error"].to_pylist() == [None, bad["error"], "engine: ValueError: too long"]


def test_what_is_kept_of_answers(tmp_path):
    rows = [
        {"content_key": "a", "text": "a red cup <|im_end|>"},
        {"content_key": "b", "text": "I'm sorry, I can't help with that."},
        {"content_key": "c", "error": "damaged: x", "transient": False},
        {"content_key": "d", "error": "timeout: x", "transient": True},
    ]
    ledger = Ledger(Storage(str(tmp_path)), "captions", "0" * 16, CAPTION_RESULTS)
    (stats,) = commit_answers(pa.Table.from_pylist(rows, schema=ANSWERS), CAPTION, ledger).to_pylist()
    kept = {row["content_key"]: row["caption"] for row in ledger.scan().table.to_pylist()}
    assert kept == {"a": "a red cup", "b": None, "c": None}
    assert (stats["rows"], stats["errors"], stats["transient"]) == (4, 3, [("d", "timeout: x")])
    assert dict(stats["counters"]) == {"template": 1, "refusal": 1, "decode_sec": 0}
