"""The caption stage on a cluster with a tiny model: each picture once, whatever happens."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import pytest
import yaml
from caption_world import make_config, picture, write_images, write_pins
from dying_captioner import DyingUDF
from tiny_models import save_tiny_vlm

from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.stages.caption import stage
from ray_app.stages.caption.chain import caption_chain
from ray_app.stages.caption.image_index import SOURCES
from ray_app.stages.caption.stage import estimate_cost, run
from ray_app.tables.manifest import read_manifest, read_output

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return str(save_tiny_vlm(tmp_path_factory.mktemp("vlm")))


@pytest.fixture
def store(tmp_path):
    return Storage(str(tmp_path / "run"))


def captions(store):
    return {
        row["pin_id"]: row for row in read_output(store, read_manifest(store, "caption").output("captions")).to_pylist()
    }


def message(act):
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_life_of_a_table(ray_cluster, store, tmp_path, vlm, monkeypatch):
    """One story, since each run pays for the start of a model: first run, nothing new, new titles, one new picture."""
    paths = write_images(tmp_path / "pictures", range(10))
    Path(paths[3]).write_bytes(b"<html>not found</html>")
    again = [paths[0]] * 30
    images = [*paths, None, picture(50), picture(51), picture(1), str(tmp_path / "absent.png"), *again]
    write_pins(store, images, parts=3)
    cfg = make_config(store.uri, model=vlm, max_error_rate=0.2)

    first = run(cfg, store)
    assert first.counts["rows_in"] == 45
    assert first.counts["rows_out"] == 44
    assert first.counts["pins_without_image"] == 1
    assert first.counts["unique_images"] == 13  # 10 files, 2 of the 3 embedded ones, and the absent one
    assert first.counts["computed"] == 12
    assert first.counts["errors"] == 2
    rows = captions(store)
    assert "p10" not in rows
    assert rows["p3"]["error"].startswith("not_an_image: ")
    assert (rows["p14"]["content_key"], rows["p14"]["error"].split(":")[0]) == (None, "not_found")
    assert rows["p13"]["caption"] == rows["p1"]["caption"]
    assert {rows[f"p{i}"]["caption"] for i in range(15, 45)} == {rows["p0"]["caption"]}
    assert len({row["caption"] for row in rows.values()}) >= 10
    assert first.info["actual"]["rows_per_sec"] > 0

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)  # importing it raises
        assert run(cfg, store) == first

    write_pins(store, images, titles=["another title"] * len(images), parts=2)
    titles = run(cfg, store)
    assert titles.counts["computed"] == 0
    assert captions(store) == rows
    assert titles.output("captions").content_hash == first.output("captions").content_hash

    time.sleep(0.02)
    Path(paths[5]).write_bytes(picture(99))
    changed = run(cfg, store)
    assert (changed.counts["computed"], changed.counts["read"]) == (1, 2)  # and the absent one is looked for again
    after = captions(store)
    assert [pin for pin in rows if rows[pin] != after[pin]] == ["p5"]

    Path(paths[5]).touch()
    assert run(cfg, store).counts["computed"] == 0

    # In buckets: tasks read, hash and join, and images of other buckets meet; also with nothing in the ledger.
    for part in (store, Storage(str(tmp_path / "buckets"))):
        write_pins(part, images, num_buckets=4)
        cut = run(make_config(part.uri, model=vlm, max_error_rate=0.2), part)
        assert captions(part) == after
        assert cut.output("captions").num_buckets == 4
        assert all(cut.counts[name] == first.counts[name] for name in ("rows_out", "unique_images", "errors"))
        assert part.list_files("tmp") == []
    assert (cut.counts["computed"], cut.counts["read"]) == (12, 11)


def test_batch_and_block_size_change_no_caption(ray_cluster, tmp_path, vlm):
    paths = write_images(tmp_path / "pictures", range(11))
    found = []
    for name, sizes in {"a": {"batch_size": 1, "rows_per_block": 3}, "b": {"batch_size": 8, "num_actors": 2}}.items():
        store = Storage(str(tmp_path / name))
        write_pins(store, paths)
        run(make_config(store.uri, model=vlm, **sizes), store)
        found.append(captions(store))
    assert found[0] == found[1]


def test_a_plan_keeps_what_it_measured(ray_cluster, store, tmp_path, vlm):
    write_pins(store, write_images(tmp_path / "pictures", range(9)))
    cfg = make_config(store.uri, model=vlm, cost_sample_rows=4)
    cfg = cfg.model_copy(update={"prices": cfg.prices.model_copy(update={"cpu_hour": 36.0})})
    estimate = estimate_cost(cfg, store)
    assert (estimate.measured, estimate.failed, estimate.remaining) == (4, 0, 5)
    assert estimate.wall_sec == pytest.approx(estimate.startup_sec + 5 / estimate.rows_per_sec)
    assert estimate.cost.money == pytest.approx(estimate.wall_sec * 3 / 3600 * 36.0)  # an engine and two decoders
    assert read_manifest(store, "caption") is None
    assert run(cfg, store).counts["computed"] == 5


class ImageIndex(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append(self.path)
        name = self.path.strip("/")
        body = picture(int(name)) if name.isdigit() else b""
        self.send_response(200 if body and not self.server.down else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_urls_are_read_where_allowed_and_failed_ones_tried_again(ray_cluster, store, vlm):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ImageIndex) as server:
        server.seen, server.down = [], False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        write_pins(store, [f"{url}/1", f"{url}/2", picture(1), f"{url}/gone"])
        open_limits = {"allow_hosts": ["127.0.0.1"], "timeout_sec": 5}
        cfg = make_config(store.uri, model=vlm, limits=open_limits, max_error_rate=0.5)

        shut = run(
            cfg.model_copy(
                update={
                    "caption": cfg.caption.model_copy(
                        update={
                            "limits": cfg.caption.limits.model_copy(update={"allow_hosts": []}),
                            "max_error_rate": 1.0,
                        }
                    )
                }
            ),
            store,
        )
        assert (shut.counts["unreadable_urls"], shut.counts["computed"], server.seen) == (3, 1, [])
        assert captions(store)["p0"]["error"].startswith("forbidden_address: ")

        done = run(cfg, store)
        assert (done.counts["unreadable_urls"], done.counts["computed"]) == (1, 1)
        rows = captions(store)
        assert rows["p0"]["caption"] == rows["p2"]["caption"]
        assert rows["p3"]["error"].startswith("http_status: ")
        server.seen.clear()
        assert run(cfg, store).counts["computed"] == 0
        assert server.seen == ["/gone"]
        server.shutdown()


def test_a_dying_engine_is_restarted_so_often_and_no_more(ray_cluster, store, tmp_path, vlm, monkeypatch):
    """Ray's default is for ever."""
    from PIL import Image

    paths = write_images(tmp_path / "pictures", range(8))
    Image.new("RGB", (7, 7)).save(paths[-1])
    log = tmp_path / "log"
    cfg = make_config(store.uri, model=vlm, max_restarts=1, rows_per_block=1, batch_size=1)
    monkeypatch.setattr(stage, "caption_chain", partial(caption_chain, captioner=DyingUDF, log=str(log)))
    write_pins(store, paths)
    text = message(lambda: run(cfg, store))
    assert "captions: a worker process died 2 times" in text
    assert log.read_text().count("started") == 2
    monkeypatch.undo()
    counts = run(cfg, store).counts
    assert 1 <= counts["computed"] < 8  # what came before the deaths was kept


def test_a_model_that_cannot_be_loaded_is_one_line(ray_cluster, store, tmp_path):
    (tmp_path / "model").mkdir()
    write_pins(store, [picture(1)])
    assert "cannot be loaded" in message(lambda: run(make_config(store.uri, model=str(tmp_path / "model")), store))


def test_too_small_a_cluster_is_refused_rather_than_waited_for(ray_cluster, store, vlm):
    write_pins(store, [picture(1)])
    text = message(lambda: run(make_config(store.uri, model=vlm, num_cpus=6), store))
    assert "caption: not one worker with 6 logical CPU and 0 GPU fits on the Ray cluster beside the tasks" in text


def test_too_many_errors_stop_the_job(ray_cluster, store, vlm):
    write_pins(store, [b"no picture", picture(1)])
    text = message(lambda: run(make_config(store.uri, model=vlm), store))
    assert "captions: stopped after 2 of 2 rows: 1 failed (50.0%, max_error_rate is 5.0%)" in text


def test_without_a_model_the_table_is_there_and_empty_of_captions(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it raises
    write_pins(store, [picture(1), None, "x.png"], parts=2)
    done = run(make_config(store.uri), store)
    rows = read_output(store, done.output("captions")).to_pylist()
    nothing = {"content_key": None, "caption": None, "error": None}
    assert rows == [{"pin_id": "p0", **nothing}, {"pin_id": "p2", **nothing}]
    assert run(make_config(store.uri), store) == done


def test_jobs_hold_each_row_once_and_one_kind_of_source():
    import pyarrow as pa

    rows = [{"content_key": f"k{i}", "sha256": "0", "location": f"/{i}" if i % 3 else None,
             "part": None if i % 3 else f"part-{i % 2}", "row": i} for i in range(100)]  # fmt: skip
    jobs = stage.cut_jobs(pa.Table.from_pylist(rows, schema=SOURCES), 8, 2)
    assert sorted(key for job in jobs for key in job["content_key"].to_pylist()) == sorted(
        r["content_key"] for r in rows
    )
    assert all(pc.count_distinct(job["part"], mode="all").as_py() == 1 for job in jobs)
    assert all(job["location"].null_count in (0, job.num_rows) for job in jobs)


def test_kill_9_loses_only_what_was_not_committed(store, tmp_path, vlm):
    """As a program, since a kill takes the driver, its cluster and its engines."""
    paths = write_images(tmp_path / "pictures", range(120))
    write_pins(store, paths)
    cfg = make_config(store.uri, model=vlm, max_new_tokens=60, rows_per_block=8)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
    command = [sys.executable, "pipelines/caption.py", "--config", str(config)]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    env |= {"PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **quiet)
    deadline = time.monotonic() + 400
    while process.poll() is None and len(store.list_files("ledger/captions")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed_in_time = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert killed_in_time, "the stage ended before it could be killed"
    kept = sum(store.read_table(path).num_rows for path in store.list_files("ledger/captions"))
    assert 16 <= kept < 120
    finished = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=True)
    counts = json.loads(finished.stdout.splitlines()[-1])["counts"]
    assert (counts["computed"], counts["rows_out"]) == (120 - kept, 120)
