"""Files read by Ray tasks must give what one process gives: same tables, same order, same errors."""

import pyarrow as pa
import pytest

from ray_app.config import Config
from ray_app.errors import UserError
from ray_app.ingest import stage
from ray_app.storage import Storage

FILES = {
    "a.csv": "pin_id,title\np3,from a\np1,from a\n",
    "b.csv": "pin_id,title\np1,from b\np2,from b\n,no id\n",
    "c.csv": "pin_id,title\np4,from c\n",
}


def config(folder, output):
    pins = {"adapter": "table", "path": str(folder)}
    return Config.model_validate(
        {
            "output": str(output),
            "ingest": {"pins": pins, "limits": {"max_error_rate": 0.5}},
            "features": {"zero_shot_model": "m"},
            "teach": {"base_model": "m"},
            "distill": {"base_model": "m"},
        }
    )


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "pins"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def test_files_on_ray_give_the_tables_of_one_process(ray_cluster, sources, tmp_path, monkeypatch):
    on_ray = stage.run(config(sources, tmp_path / "ray"), Storage(str(tmp_path / "ray")))
    monkeypatch.setattr(stage, "_spread", lambda read, files: [read(file) for file in files])
    here = stage.run(config(sources, tmp_path / "here"), Storage(str(tmp_path / "here")))
    hashes = [{name: out.content_hash for name, out in m.outputs.items()} for m in (on_ray, here)]
    assert hashes[0] == hashes[1]


def test_a_duplicate_in_another_file_is_found(ray_cluster, sources, tmp_path):
    counts = stage.run(config(sources, tmp_path / "out"), Storage(str(tmp_path / "out"))).counts
    assert (counts["pins_out"], counts["pins_quarantined"]) == (4, 2)


def test_a_file_is_read_in_a_ray_task(ray_cluster, sources):
    """Else the test above compares one process with itself."""
    import ray

    files = stage.open_source(config(sources, "unused"), "pins").files

    def task_of(file):
        return pa.table({"task": [ray.get_runtime_context().get_task_id() or ""]})

    tasks = {table["task"][0].as_py() for table in stage._spread(task_of, files)}
    assert len(tasks) == len(files) and "" not in tasks


def test_a_corrupt_file_is_a_one_line_user_error(ray_cluster, sources, tmp_path):
    (sources / "d.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"^ingest.pins.path: .*d.parquet is corrupt[^\n]*$"):
        stage.run(config(sources, tmp_path / "out"), Storage(str(tmp_path / "out")))
