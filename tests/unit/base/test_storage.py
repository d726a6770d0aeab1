"""Storage: a write is whole or absent, damage is noticed, and every failure is one line that says what to do."""

import os
import pickle
import re
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from minimal import message

import ray_app.base.filesystem
from ray_app.base.storage import CorruptFileError, Storage, decode_table, encode_table

TABLE = pa.table({"pin_id": ["a", "b", "c"], "x": [1.0, None, 3.0]})


@pytest.fixture
def mount(tmp_path):
    """Mount a real tmpfs; needs root."""
    mounted = []

    def make(options):
        folder = tmp_path / f"mnt{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a tmpfs is not permitted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_table_comes_back_and_equal_ones_have_equal_bytes(store):
    written = store.write_table("a/b.parquet", TABLE)
    assert store.read_table("a/b.parquet").equals(TABLE)
    assert store.write_table("b.parquet", TABLE).sha256 == written.sha256


def test_a_column_that_is_not_there_is_named(store):
    """pyarrow alone leaves an unknown column out without a word."""
    store.write_table("a.parquet", TABLE)
    assert "'grade'" in message(lambda: store.read_table("a.parquet", ["pin_id", "grade"]))


def test_a_truncated_file_is_corrupt_wherever_it_was_cut():
    """A half-written file that is read as fewer rows is served as if it were whole."""
    data = encode_table(TABLE)
    for length in range(len(data)):
        with pytest.raises(CorruptFileError):
            decode_table(data[:length], "a.parquet")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1PAR1PAR1", b"<html>not found</html>", b"\xff" * 1000, b'{"id": '])
@pytest.mark.parametrize("name", ["a.parquet", "a.json"])
def test_garbage_is_corrupt(store, data, name):
    store.write_bytes(name, data)
    with pytest.raises(CorruptFileError, match=re.escape(name)):
        store.read_table(name) if name == "a.parquet" else store.read_json(name)


def test_a_failed_write_leaves_what_stood_there_and_no_temporary_file(store, monkeypatch):
    """A disk that fills up while CURRENT is moved must not cost the old CURRENT."""
    store.write_bytes("CURRENT", b"old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ray_app.base.filesystem.os, "fsync", full)
    assert "disk is full" in message(lambda: store.write_bytes("CURRENT", b"new"))
    assert store.read_bytes("CURRENT") == b"old"
    assert [path.name for path in Path(store.full_path("")).iterdir()] == ["CURRENT"]


def test_a_full_disk_is_one_line_and_keeps_finished_files(mount):
    store = Storage(str(mount("size=64k")))
    store.write_bytes("small", b"x")
    assert "the disk is full; free some space" in message(lambda: store.write_bytes("big", b"x" * 1_000_000))
    assert store.list_files("") == ["small"]


def test_a_read_only_folder_is_one_line(mount):
    store = Storage(str(mount("ro")))
    assert "read-only; set `output`" in message(lambda: store.write_bytes("a/b", b"x"))


def test_a_file_in_the_way_or_none_at_all_is_one_line(store):
    store.write_bytes("a", b"x")
    assert "is a file, not a folder" in message(lambda: store.write_bytes("a/b", b"x"))
    assert "is a file, not a folder" in message(lambda: store.write_bytes("a/b/c", b"x"))
    assert "no such file" in message(lambda: store.read_bytes("nowhere"))


def test_what_a_killed_writer_left_is_not_listed(store):
    """Its name ends like a table's; read, it would be a torn one."""
    store.write_bytes("a/part.parquet", b"x")
    store.write_bytes("a/.tmp-123.parquet", b"x")
    assert store.list_files("a", ".parquet") == ["a/part.parquet"]


def test_only_old_temporary_files_are_deleted(store):
    """A young one may be another process's write of this moment."""
    store.write_bytes("a/.tmp-old", b"x")
    store.write_bytes("a/.tmp-new", b"x")
    os.utime(store.full_path("a/.tmp-old"), (0, 0))
    assert store.delete_temporary_files() == 1
    assert store.exists("a/.tmp-new")


def test_a_folder_is_deleted_with_its_files_and_what_is_not_there_is_no_error(store):
    store.write_bytes("a/b/c", b"x")
    store.delete("a")
    assert not store.exists("a")
    store.delete("nowhere")
    assert store.list_files("nowhere") == []


def test_a_relative_path_means_the_same_folder_in_a_worker(tmp_path, monkeypatch):
    """Ray workers run in another folder: a relative path would scatter the ledger."""
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(Storage("out"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(sent).full_path("a") == str(tmp_path / "out/a")


def test_other_filesystems_write_through_a_rename(tmp_path):
    """On HDFS, say, a reader can see a file that is still being written."""
    fs = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    ray_app.base.filesystem.write_atomically(fs, "a/b", b"x")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("zz://bucket/x", "zz://bucket/x cannot be opened"),
        ("s3://", "needs a bucket"),
        ("s3://bucket/x?regoin=eu", "unknown S3 option 'regoin'"),
        ("http://[oops", "is not a path or URI"),
    ],
)
def test_a_malformed_uri_is_one_line(uri, what):
    assert what in message(lambda: Storage(uri).exists("a"))


@pytest.mark.parametrize(
    "uri", ["s3://KEYID:hunter2@bucket/x", "s3://bucket/x?secret_key=hunter2", "gs://u:hunter2@bucket/x"]
)
def test_credentials_in_a_uri_are_refused_and_not_shown(uri):
    """The URI ends up in manifests, reports and logs."""
    assert "hunter2" not in message(lambda: Storage(uri).exists("a"))
