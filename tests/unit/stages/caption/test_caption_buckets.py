"""Captions of a table in buckets are those of one bucket: without Ray, tasks are calls in this process, in another order."""

import contextlib
import hashlib
import http.server
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from caption_world import make_config, picture, write_images, write_pins

from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.cluster.executor import LedgerCounts, ModelWork
from ray_app.stages.caption import image_index, stage
from ray_app.stages.caption.batches import ANSWERS, load_images
from ray_app.stages.caption.image_files import HashUDF
from ray_app.stages.caption.image_index import SOURCES, find_images
from ray_app.stages.caption.results import clean_answers
from ray_app.tables.buckets import read_bucket
from ray_app.tables.ledger import missing_rows
from ray_app.tables.manifest import read_output, require_output

RECIPE = "0" * 16


class Worker:
    """What Ray and the models do, in this process: in a working directory of its own, the last item first."""

    def __init__(self, folder):
        self.folder, self.captioned, self.before_captions = folder, [], lambda: None

    def map_buckets(self, function, numbers):
        with contextlib.chdir(self.folder):
            return [function(number) for number in reversed(numbers)][::-1]

    def shuffle(self, items, split, reduce, num_parts, schema):
        with contextlib.chdir(self.folder):
            cut = [split(item) for item in reversed(items)]
            rows = pa.concat_tables([schema.empty_table(), *(rows for rows, _ in cut)])
            parts = np.concatenate([parts for _, parts in cut])
            return [reduce(part, rows.filter(pa.array(parts == part))) for part in range(num_parts)]

    def compute(self, work, wanted, max_rows=None):
        """`ModelWork.compute`."""
        ledger = replace(work.ledger, num_buckets=wanted.num_buckets)
        wants, missing, errors, transient = 0, 0, 0, {}
        for bucket in range(wanted.num_buckets):
            before, rows = ledger.keys(bucket), wanted.keyed(bucket)
            todo, unique = missing_rows(rows, before.keys)
            results, lost = self.results(work, wanted.columns(bucket, todo))
            ledger.commit(results)
            wants, missing, transient = wants + unique, missing + todo.num_rows, transient | lost
            asked = rows["content_key"].unique()
            errors += pc.sum(pc.is_in(ledger.keys(bucket).errors["content_key"], value_set=asked)).as_py() or 0
        return LedgerCounts(
            wanted=wants, unique=wants, already_present=wants - missing, computed=missing - len(transient),
            errors=errors + len(transient), transient=transient,
        )  # fmt: skip

    def results(self, work, rows):
        """Results of the rows, and errors that are not to be kept by key."""
        cfg = make_config("unused", model="unused", limits={"allow_hosts": ["127.0.0.1"]}).caption
        if work.ledger.table == "picture_hashes":
            return HashUDF(cfg.limits)(rows), {}
        self.before_captions()
        self.captioned += rows["content_key"].to_pylist()
        tables = [ANSWERS.empty_table()]
        for job in work.cut(rows):
            for decoded in load_images(job, work.ledger.store, cfg.limits, 4):
                said = [
                    row | {"text": row["pixels"] and hashlib.sha256(row["pixels"]).hexdigest()}
                    for row in decoded.to_pylist()
                ]
                answers = [{name: row.get(name) for name in ANSWERS.names} for row in said]
                tables.append(pa.Table.from_pylist(answers, schema=ANSWERS))
        cleaned, _ = clean_answers(pa.concat_tables(tables), cfg)
        is_lost = pc.fill_null(cleaned["transient"], False)
        lost = cleaned.filter(is_lost)
        return cleaned.filter(pc.invert(is_lost)).drop_columns(["transient"]), dict(
            zip(lost["content_key"].to_pylist(), lost["error"].to_pylist(), strict=True)
        )


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "worker").mkdir()
    worker = Worker(tmp_path / "worker")
    for module in (stage, image_index):
        monkeypatch.setattr(module, "map_buckets", worker.map_buckets)
        monkeypatch.setattr(module, "shuffle", worker.shuffle)
    monkeypatch.setattr(stage, "caption_recipe", lambda cfg: RECIPE)
    monkeypatch.setattr(ModelWork, "compute", lambda work, wanted, rows=None: worker.compute(work, wanted, rows))
    return worker


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Ten files, one of them broken and one named by a relative path; no image; embedded ones; an absent file; one file often."""
    paths = write_images(tmp_path / "pictures", range(10))
    Path(paths[3]).write_bytes(b"<html>not found</html>")
    monkeypatch.chdir(tmp_path)
    return [
        *paths[:9], "pictures/9.png", None, picture(50), picture(51), picture(1), str(tmp_path / "absent.png"), picture(50),
        *[paths[0]] * 30,
    ]  # fmt: skip


def captioned(folder, images, num_buckets):
    """A run's manifest, and its captions by pin."""
    store = Storage(str(folder))
    write_pins(store, images, num_buckets=num_buckets)
    done = stage.run(make_config(store.uri, model="unused", max_error_rate=0.5), store)
    return done, {row["pin_id"]: row for row in read_output(store, done.output("captions")).to_pylist()}


@pytest.mark.parametrize("num_buckets", [2, 16])
def test_captions_and_counts_are_those_of_one_bucket(worker, images, tmp_path, num_buckets):
    one, expected = captioned(tmp_path / "one", images, 1)
    first = worker.captioned
    worker.captioned = []
    many, found = captioned(tmp_path / "many", images, num_buckets)
    assert found == expected
    assert many.counts == one.counts
    assert (one.counts["rows_out"], one.counts["unique_images"], one.counts["read"]) == (45, 13, 11)
    assert (one.counts["computed"], one.counts["errors"], one.counts["pins_without_image"]) == (12, 2, 1)
    assert len(worker.captioned) == len(set(worker.captioned)) == 12
    assert sorted(worker.captioned) == sorted(first)
    assert found["p13"]["caption"] == found["p1"]["caption"], "embedded, and a file"
    assert len({row["caption"] for row in found.values()}) == 12  # and None, of two pins
    assert found["p3"]["error"].startswith("not_an_image: ")
    assert (found["p14"]["content_key"], found["p14"]["error"].split(":")[0]) == (None, "not_found")


@pytest.mark.parametrize("num_buckets", [1, 4])
def test_captions_are_in_the_buckets_and_the_order_of_the_pins(worker, images, tmp_path, num_buckets):
    done, _ = captioned(tmp_path / "run", images, num_buckets)
    store = Storage(str(tmp_path / "run"))
    pins = require_output(store, "ingest", "pins")
    assert done.output("captions").num_buckets == num_buckets
    for number in range(num_buckets):
        ids = read_bucket(store, pins, number, ["pin_id"])["pin_id"].to_pylist()
        found = read_bucket(store, done.output("captions"), number)["pin_id"].to_pylist()
        assert found == [pin_id for pin_id in ids if pin_id != "p10"]


def test_another_number_of_buckets_computes_nothing_anew(worker, images, tmp_path):
    _, expected = captioned(tmp_path / "run", images, 2)
    for num_buckets in (8, 1, 4):
        done, found = captioned(tmp_path / "run", images, num_buckets)
        assert (done.counts["computed"], done.counts["read"]) == (0, 1)  # the absent one is looked for again
        assert found == expected


def test_one_overwritten_file_is_read_and_captioned_again(worker, images, tmp_path):
    done, before = captioned(tmp_path / "run", images, 4)
    again, _ = captioned(tmp_path / "run", images, 4)
    assert again == done
    Path(images[5]).write_bytes(picture(99, size=96))
    changed, after = captioned(tmp_path / "run", images, 4)
    assert (changed.counts["computed"], changed.counts["read"]) == (1, 2)
    assert [pin for pin in before if before[pin] != after[pin]] == ["p5"]


def test_temporary_files_are_deleted_even_after_a_failure(worker, images, tmp_path):
    captioned(tmp_path / "run", images, 4)
    store = Storage(str(tmp_path / "run"))
    assert store.list_files("tmp") == []

    def fail():
        assert store.list_files("tmp") != []
        raise UserError("the model is gone")

    worker.before_captions = fail
    with pytest.raises(UserError, match="the model is gone"):
        captioned(tmp_path / "run", [*images, picture(60)], 4)
    assert store.list_files("tmp") == []


def test_a_sample_of_any_number_of_buckets_is_the_first_keys(worker, images, tmp_path):
    """Keys are hashes, so they are a random sample; the images in the order of the table are not."""
    found = []
    for num_buckets in (1, 8):
        store = Storage(str(tmp_path / str(num_buckets)))
        write_pins(store, images, num_buckets=num_buckets)
        pins = require_output(store, "ingest", "pins")
        with find_images(make_config("unused", model="unused").caption, store, pins, RECIPE) as index:
            wanted = index.wanted(by_key=True)
            found.append([key for i in range(num_buckets) for key in wanted.keyed(i)["content_key"].to_pylist()])
    assert found[0] == found[1] == sorted(found[0])


def test_embedded_images_of_one_file_are_decoded_together(worker, images, tmp_path):
    """Else each bucket of the ledger would read the whole pins table."""
    store = Storage(str(tmp_path / "run"))
    write_pins(store, images, num_buckets=8)
    pins = require_output(store, "ingest", "pins")
    with find_images(make_config("unused", model="unused").caption, store, pins, RECIPE) as index:
        wanted = index.wanted()
        for number in range(8):
            rows = wanted.keyed(number)
            places = list(zip(rows["part"].to_pylist(), wanted.place(rows).tolist(), strict=True))
            assert all(place == number for part, place in places if part is None)
            assert all(part in pins.buckets[place].files for part, place in places if part is not None)
            assert wanted.columns(number, rows).schema.names == SOURCES.names


class OtherEachTime(http.server.BaseHTTPRequestHandler):
    """/changing gives another image with each request."""

    def do_GET(self):
        self.server.asked.append(self.path)
        body = picture(100 + len(self.server.asked) if self.path == "/changing" else 77)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("num_buckets", [1, 4])
def test_a_url_that_changed_between_hashing_and_decoding_is_read_again(worker, tmp_path, num_buckets):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OtherEachTime) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        images = [f"{url}/changing", f"{url}/same", *[f"{url}/changing"] * 5, picture(2)]
        done, found = captioned(tmp_path, images, num_buckets)
        assert (done.counts["errors"], done.counts["computed"], done.counts["unreadable_urls"]) == (1, 2, 0)
        changed = {pin for pin, row in found.items() if (row["error"] or "").startswith("changed: ")}
        assert changed == {"p0", "p2", "p3", "p4", "p5", "p6"}
        server.asked.clear()
        again, _ = captioned(tmp_path, [*images, None], num_buckets)
        assert again.counts["read"] == 1
        assert server.asked[0] == "/changing"
        assert "/same" not in server.asked
        server.shutdown()
