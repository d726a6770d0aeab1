"""Storage on S3, against a real HTTP server that speaks S3 (moto's) on this machine."""

import socket
import time

import boto3
import pyarrow as pa
import pytest
from minimal import message

from ray_app.base.errors import UserError
from ray_app.base.schemas import embedding_results
from ray_app.base.storage import Storage
from ray_app.tables.current import current_release
from ray_app.tables.ledger import Ledger
from ray_app.tables.publish import publish_release
from ray_app.tables.release import open_release

pytestmark = pytest.mark.slow

SECRET = "testing-secret-value"


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


def uri(endpoint, bucket):
    return f"s3://{bucket}/prefix?endpoint_override={endpoint}&scheme=http&region=us-east-1"


@pytest.fixture
def store(endpoint, request):
    bucket = f"bucket-{abs(hash(request.node.name))}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return Storage(uri(endpoint, bucket))


def test_files_come_back_are_listed_under_the_prefix_and_deleted_with_their_folder(store):
    store.write_bytes("a/b/c.txt", b"x")
    assert (store.list_files(""), store.read_bytes("a/b/c.txt"), store.exists("a")) == (["a/b/c.txt"], b"x", True)
    store.delete("a")
    assert store.list_files("") == []


def test_a_missing_object_is_one_line(store):
    assert "no such file" in message(lambda: store.read_bytes("nowhere"))


def test_ledger_and_release_work_on_s3(store):
    ledger = Ledger(store, "pin_embeddings", "r" * 16, embedding_results(2))
    results = {"content_key": ["k1", "k2"], "embedding": [[1.0, 0.0], [0.0, 1.0]], "error": [None, None]}
    ledger.commit(pa.table(results))
    pins = pa.table({"pin_id": ["p1", "p2", "p3"], "content_key": ["k1", "k2", "k1"]})
    publish_release(store, lambda _: pins, ledger, 2, "5" * 16, sources={}, config={})
    table = open_release(store, current_release(store))
    assert table["embedding"].to_pylist() == [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]


def test_a_missing_bucket_is_one_line(endpoint):
    text = message(lambda: Storage(uri(endpoint, "no-such-bucket")).write_bytes("a", b"x"))
    assert "s3://no-such-bucket/prefix/a" in text


@pytest.mark.parametrize(
    "act", [lambda s: s.write_bytes("a", b"x"), lambda s: s.read_table("a"), lambda s: s.list_files("a"), lambda s: s.exists("a")],
    ids=["write", "read", "list", "exists"],
)  # fmt: skip
def test_an_unreachable_bucket_is_one_line_soon_and_without_credentials(act):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    started = time.monotonic()
    text = message(lambda: act(Storage(uri(f"http://127.0.0.1:{port}", "bucket"))))
    assert time.monotonic() - started < 15
    assert "check that the address, the bucket and the credentials are right" in text
    assert SECRET not in text
    assert "testing-key-id" not in text


def test_an_unreachable_ledger_is_not_taken_for_a_torn_one(store, monkeypatch):
    """Else a network failure would have every result computed again, and garbage collection would delete them."""
    ledger = Ledger(store, "pin_embeddings", "r" * 16, embedding_results(1))
    ledger.commit(pa.table({"content_key": ["k"], "embedding": [[1.0]], "error": [None]}))
    path = store.list_files("")[0]
    monkeypatch.setattr(Storage, "list_files", lambda self, folder, suffix="": [path])
    broken = Ledger(Storage(uri("http://127.0.0.1:1", "bucket")), ledger.table, ledger.recipe, ledger.schema)
    with pytest.raises(UserError, match=r"cannot (read|look up)"):
        broken.present_keys()
