"""Who can write to a run's storage decides what is served, and nothing else: no file elsewhere, no code."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import boto3
import pytest
from minimal import message
from tiny_config import tiny_manifest

from ray_app.base.errors import UserError
from ray_app.base.schemas import SCHEMA_VERSION
from ray_app.base.storage import CorruptFileError, Storage
from ray_app.models.checkpoint import finished_model, load_calibration
from ray_app.tables.current import CURRENT, current_release
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output, hash_files, manifest_path, read_manifest
from ray_app.tables.model_files import model_files
from ray_app.tables.release import find_release

pytestmark = pytest.mark.usefixtures("machine")

ID = "0123456789abcdef"
FOLDER = "models/student/x"
FILES = {
    "calibration.json": b'{"temperatures": {"*": 1.5}, "pairs": {}, "ece_before": 0.1, "ece_after": 0.1}',
    "model.json": b'{"kind": "bi_encoder"}',
    "lm/model.safetensors": bytes(range(256)) * 4000,
}
OUTSIDE = ["../../evil", "models/student/x/../../../evil", "/etc/evil", "models/student/x/./evil", "models/student/x//evil", "models/student/y/evil", "models/student/x/a\0b", ""]  # fmt: skip


@pytest.fixture
def bucket(endpoint, request, monkeypatch):
    """Storage on a server that speaks S3."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret-value")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    name = f"bucket-{abs(hash(request.node.name))}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=name)
    return Storage(f"s3://{name}/run?endpoint_override={endpoint}&scheme=http&region=us-east-1")


@pytest.fixture
def folder(tmp_path):
    """Storage in a folder."""
    return Storage(str(tmp_path / "run"))


@pytest.fixture(params=["bucket", "folder"])
def store(request):
    return request.getfixturevalue(request.param)


def saved(store, files=FILES):
    """A finished model."""
    written = [store.write_bytes(f"{FOLDER}/{name}", data) for name, data in files.items()]
    store.write_json(f"{FOLDER}/files.json", [asdict(file) for file in written])
    return finished_model(store, FOLDER)


def write_release(store, **changes):
    """A release as `embed` would write it, but for the changes; CURRENT names it."""
    student = changes.pop("student", {})
    source = {"name": "student", "path": FOLDER, "files": [], "rows": 0, "content_hash": "5" * 16} | student
    release = {
        "id": ID, "student_id": source["content_hash"], "dim": 2, "num_pins": 1, "num_missing": 0, "content_hash": "0" * 16,
        "files": {}, "sources": {"student": source}, "config": {}, "schema_version": SCHEMA_VERSION, "created_at": 0.0,
        "info": {},
    }  # fmt: skip
    store.write_json(f"releases/{ID}/release.json", release | changes)
    store.write_json(CURRENT, {"id": ID, "previous": None})


def files_of(root):
    return sorted(str(path.relative_to(root)) for path in Path(root).rglob("*") if path.is_file())


# --- names ---


@pytest.mark.parametrize("content_hash", ["../../home/.local/lib/python3.11/site-packages", "a/b", "..", "", "A" * 16, "5" * 65])  # fmt: skip
def test_a_model_is_never_written_to_where_its_hash_says(store, machine, content_hash):
    """A file `usercustomize.py` in the user's site-packages would be run by every Python there."""
    store.write_bytes(f"{FOLDER}/usercustomize.py", b"print('code of who can write to the bucket')")
    write_release(store, student={"content_hash": content_hash, "files": [f"{FOLDER}/usercustomize.py"]})
    before = files_of(machine)
    assert "release" in message(lambda: local_folder(store, current_release(store).sources["student"]))
    assert files_of(machine) == before


@pytest.mark.parametrize(
    "change",
    [
        *({"student": {"files": [name]}} for name in OUTSIDE), *({"files": {name: "0" * 64}} for name in OUTSIDE),
        *({"student": {"path": path}} for path in ("..", "/etc", "models/../..", "", "models//x", 5, None)),
        {"content_hash": "../x"}, {"student_id": "../x"}, {"id": "../x"},
    ],
    ids=repr,
)  # fmt: skip
def test_a_release_names_files_of_its_own_sources_in_the_storage_and_hashes(store, change):
    write_release(store, **change)
    assert "release" in message(lambda: current_release(store))
    message(lambda: find_release(store, ID))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_names_files_elsewhere_counts_as_none(store, name):
    """Its stage runs again; taken as it is, its files would be read, exported or shown."""
    output = {"name": "pins", "path": FOLDER, "files": [f"{FOLDER}/part"], "rows": 1, "content_hash": ID}
    made = tiny_manifest("ingest", fingerprint=ID, schema_version=SCHEMA_VERSION, settings=ID, outputs={"pins": output})
    manifest = asdict(made)
    store.write_json(manifest_path("ingest"), manifest)
    assert read_manifest(store, "ingest") is not None
    for bad in ({"files": [name]}, {"path": f"x/../{name}"}, {"content_hash": f"../{name}"}):
        store.write_json(manifest_path("ingest"), manifest | {"outputs": {"pins": output | bad}})
        assert read_manifest(store, "ingest") is None


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_model_lists_only_files_of_its_own(store, machine, name):
    output = saved(store)
    listed = [*store.read_json(f"{FOLDER}/files.json"), {"path": name, "sha256": "0" * 64, "size_bytes": 1}]
    store.write_json(f"{FOLDER}/files.json", listed)
    assert "files.json" in message(lambda: model_files(store, FOLDER))
    assert "files.json" in message(lambda: finished_model(store, FOLDER))
    assert "files.json" in message(lambda: local_folder(store, output))


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/secret", "a//b", "a/.", "a\0"])
def test_no_path_leaves_the_storage(store, tmp_path, name):
    """Whoever asks, and whatever for: the last place where a name is looked at."""
    (tmp_path / "secret").write_bytes(b"secret")
    for act in (store.read_bytes, store.exists, store.delete, store.list_files, lambda p: store.write_bytes(p, b"x")):
        assert "no path of the storage" in message(lambda act=act: act(name))
    assert (tmp_path / "secret").read_bytes() == b"secret"


# --- content ---


def test_a_model_comes_as_it_was_written(store):
    found = local_folder(store, saved(store))
    assert {name: (found / name).read_bytes() for name in FILES} == FILES


def test_only_the_weights_may_be_left_out(bucket):
    found = local_folder(bucket, saved(bucket), weights=False)
    assert {name: (found / name).read_bytes() for name in files_of(found)} == {
        name: data for name, data in FILES.items() if not name.startswith("lm/")
    }


@pytest.mark.parametrize("name", FILES)
def test_a_model_that_was_changed_is_not_used(store, name):
    output = saved(store)
    store.write_bytes(f"{FOLDER}/{name}", FILES[name][:-1] + b"?")
    assert name in message(lambda: local_folder(store, output))


def test_a_model_cannot_vouch_for_itself(store):
    """Its list of hashes lies beside the files; what counts is what the release or manifest says of that list."""
    output = saved(store)
    saved(store, FILES | {"model.json": b'{"kind": "another"}'})
    assert "changed" in message(lambda: local_folder(store, output))
    assert "changed" in message(lambda: load_calibration(store, output))


def test_a_model_that_lacks_a_file_or_whose_calibration_was_changed_is_not_used(store):
    output = saved(store)
    assert load_calibration(store, output) is not None
    store.write_bytes(f"{FOLDER}/calibration.json", FILES["calibration.json"].replace(b"1.5", b"9.5"))
    assert "calibration.json" in message(lambda: load_calibration(store, output))
    output = saved(store)
    store.delete(f"{FOLDER}/model.json")
    assert "model.json" in message(lambda: local_folder(store, output))


def test_a_copy_that_was_damaged_on_this_machine_is_made_again(bucket):
    output = saved(bucket)
    copy = local_folder(bucket, output)
    (copy / "lm/model.safetensors").write_bytes(b"torn")
    again = local_folder(bucket, output)
    assert (again / "lm/model.safetensors").read_bytes() == FILES["lm/model.safetensors"]


def test_a_failed_download_leaves_nothing_that_counts(bucket):
    output = saved(bucket)
    bucket.write_bytes(f"{FOLDER}/model.json", b"changed")
    message(lambda: local_folder(bucket, output))
    bucket.write_bytes(f"{FOLDER}/model.json", FILES["model.json"])
    assert (local_folder(bucket, output) / "model.json").read_bytes() == FILES["model.json"]


_CHILD = """
import json, sys, time
from pathlib import Path
from ray_app.base.storage import Storage
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output

uri, output, me = sys.argv[1], Output(**json.loads(sys.argv[2])), sys.argv[3]

class Slow(Storage):
    def read_bytes(self, path):
        if path.endswith(".safetensors"):
            Path(me + ".asks").touch()
            while not Path(me + ".go").exists():
                time.sleep(0.01)
        return super().read_bytes(path)

Path(me + ".starts").touch()
folder = local_folder(Slow(uri), output)
print(json.dumps([[str(p), p.stat().st_ino, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(folder.rglob("*")) if p.is_file()]))
"""


def test_processes_that_start_together_see_whole_files_that_nobody_touches_again(bucket, tmp_path):
    """A replica maps these files: one that is written anew under it ends the process, or gives numbers of nobody."""
    output = json.dumps(asdict(saved(bucket)))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}

    def start(name):
        command = [sys.executable, "-c", _CHILD, bucket.uri, output, str(tmp_path / name)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    def until(name, seconds=60.0):
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if (tmp_path / name).exists():
                return True
            time.sleep(0.01)
        return False

    first = start("first")
    assert until("first.asks")
    others = [start(f"other{n}") for n in range(3)]
    assert all(until(f"other{n}.starts") for n in range(3))
    until("other0.asks", 1.0)  # it must not: the first one is at it
    (tmp_path / "first.go").touch()
    seen = json.loads(first.communicate(timeout=60)[0])
    for n in range(3):
        (tmp_path / f"other{n}.go").touch()
    found = [json.loads(other.communicate(timeout=60)[0]) for other in others]
    stats = [(path, Path(path).stat()) for path, *_ in seen]
    assert found == [seen] * 3
    assert [[path, now.st_ino, now.st_size, now.st_mtime_ns] for path, now in stats] == seen
    assert not list(tmp_path.glob("other*.asks"))


def test_an_output_is_checked_when_it_is_read_not_where_it_is_made(folder):
    """What the code itself makes, such as a source outside of the storage, is its own affair."""
    assert replace(saved(folder), path="").path == ""
    assert hash_files("", {}) == hash_files("x", {})
    assert issubclass(CorruptFileError, UserError)
    assert Output(name="x", path="/data/x.csv", files=[], rows=0, content_hash="").path == "/data/x.csv"
