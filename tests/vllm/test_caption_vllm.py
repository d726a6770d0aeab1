"""The caption stage with vllm: the captions of transformers, error rows, and an end when the engine dies."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from caption_world import make_config, picture, write_images, write_pins
from label_world import Killer
from tiny_models import save_tiny_vlm

from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.stages.caption.stage import run
from ray_app.tables.manifest import read_manifest, read_output


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return str(save_tiny_vlm(tmp_path_factory.mktemp("vlm")))


def captions(store):
    return read_output(store, read_manifest(store, "caption").output("captions")).to_pylist()


def test_both_engines_say_the_same(vllm_cluster, tmp_path, vlm):
    """Then their results share a ledger: an engine can be changed in the middle of a table."""
    paths = write_images(tmp_path / "pictures", range(11))
    Path(paths[4]).write_bytes(b"no picture")
    found = {}
    for engine in ("transformers", "vllm"):
        store = Storage(str(tmp_path / engine))
        write_pins(store, [*paths, picture(60)])
        done = run(make_config(store.uri, model=vlm, backend=engine, max_error_rate=0.1), store)
        assert (done.counts["computed"], done.counts["errors"]) == (12, 1)
        assert done.info["actual"]["rows_per_sec"] > 0
        found[engine] = captions(store)
    assert found["vllm"] == found["transformers"]
    assert found["vllm"][4]["error"].startswith("not_an_image: ")
    assert len({row["caption"] for row in found["vllm"]}) >= 10


def test_a_dead_engine_ends_the_job_and_keeps_what_was_finished(vllm_cluster, tmp_path, vlm):
    """Ray restarts it for ever, unless it is told."""
    store = Storage(str(tmp_path / "run"))
    write_pins(store, write_images(tmp_path / "pictures", range(600)))
    cfg = make_config(
        store.uri, model=vlm, backend="vllm", max_restarts=0, max_new_tokens=200, rows_per_block=4, batch_size=4,
        engine_args={"max_num_seqs": 4},
    )  # fmt: skip
    killer = Killer(SimpleNamespace(ledger=SimpleNamespace(store=store, folder="ledger/captions")), 1, "EngineCore")
    with pytest.raises(UserError, match="captions: a worker process died 1 times"):
        run(cfg, store)
    assert killer.killed
    kept = sum(store.read_table(path).num_rows for path in store.list_files("ledger/captions"))
    assert 4 <= kept < 600
