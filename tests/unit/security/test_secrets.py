"""Secrets: none in a configuration, and so in no manifest, release, report or log; queries are no keys of a shared cache."""

import asyncio
import os
import pickle
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import redis
import yaml
from fake_encoder import Lengths
from minimal import message
from tiny_config import finished_stage

from ray_app.base.config import CacheConfig, Config, load_config
from ray_app.base.config.credentials import read_secret
from ray_app.base.config.loading import with_overrides
from ray_app.base.storage import Storage
from ray_app.base.umask import VARIABLE as UMASK
from ray_app.base.umask import keep_private
from ray_app.online.query_cache import QueryEmbeddingCache
from ray_app.tables.manifest import manifest_path
from serve.app import AppArgs, Relevance, build_app
from serve.local import free_port

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "configs/demo.yaml")
PASSWORD = "hunter2/with@odd:signs"
HMAC_KEY = "0123456789abcdef" * 2
QUERY = "jane doe 12 elm street divorce lawyer"


# --- URLs of the configuration ---


WITH_CREDENTIALS = {  # a slash, question mark or # in a password makes its URL another one
    "serve.cache.redis_url": [
        "redis://:hunter2@redis:6379/0", "redis://user:hunter2@redis:6379/0", "redis://:hunter2/x@redis:6379/0",
        "redis://:12/hunter2@redis:6379/0", "redis://user:12/hunter2@redis:6379/0", "redis://redis:6379/0?password=hunter2",
        "rediss://hunter2@redis", "redis://user:12/hunter2@host",
    ],
    "output": [
        "s3://KEY:hunter2@bucket/run", "s3://hunter2@bucket/run", "s3://bucket/run?secret_key=hunter2",
        "s3://bucket/run?endpoint_override=http://u:hunter2@host",
        "s3://bucket/run?endpoint_override=http%3A%2F%2Fu%3Ahunter2%40host", "redis://user:12/hunter2@host",
        "redis://user:12?hunter2@host", "https://u:8#hunter2@h", "https://[::1]:8#hunter2@h", "s3://AKIA:1/hunter2@b",
        "//user:hunter2@host/x", "https://cdn/https://user:hunter2@host/x",
    ],
    "ingest.pins.path": [
        "gs://u:hunter2@bucket/pins", "abfs://c@account/x?sig=hunter2", "https://hunter2@host/pins.csv",
        "https://host/pins.csv?X-Amz-Signature=hunter2", "https://h/?key=hunter2", "https://h/#token=hunter2",
        "https://h/#a=1&access_token=hunter2", "https://h/?AWSAccessKeyId=hunter2", "https://h/?clientsecret=hunter2",
        "https://h/?api%5Fkey=hunter2", "https://h/?auth=hunter2",
    ],
    "caption.limits.allow_roots": ["[/data, 's3://u:hunter2@bucket/pins']"],
    "train_teacher.base_model": ["https://u:hunter2@hub/model"],
    "caption.engine_args.x": ["{a: {b: ['https://u:hunter2@hub']}}"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, urls in WITH_CREDENTIALS.items() for value in urls])
def test_credentials_in_a_url_are_refused_by_key_and_not_shown(key, value):
    said = message(lambda: load_config(DEMO, [f"{key}={value}"]))
    assert key in said and "environment" in said
    assert "hunter2" not in said
    if not value.startswith(("[", "{")):
        said = message(lambda: with_overrides(load_config(DEMO), {key: value}))
        assert key in said and "hunter2" not in said


@pytest.mark.parametrize(
    "value",
    [
        "s3://bucket/run?region=eu-west-1&scheme=http&endpoint_override=http://host:9000", "gs://anonymous@bucket/run",
        "abfs://container@account.dfs.core.windows.net/run", "hdfs://user@host:8020/run", "s3://bucket/me@example.com/run",
        "/data/a@b:c/run", "s3://bucket/part-[0-9]/run", "gs://bucket/run?page_token=1", "gs://bucket/run?nextPageToken=1",
        "https://host/x?tokenizer=a&secretary=b&sort_key=c&design=d&author=e", "https://host/@name/x",
        "https://[::1]/@name", "https://[::1]:8080/x",
    ],
)  # fmt: skip
def test_urls_without_credentials_are_taken(value):
    assert load_config(DEMO, [f"output={value}"]).output == value


def test_a_parameter_that_asks_for_a_login_is_none():
    assert load_config(DEMO, ["ingest.pins.path=https://host/x?auth=1"]).ingest.pins.path == "https://host/x?auth=1"


def test_the_error_says_which_part_is_taken_for_a_secret():
    """Else who is stopped by a false alarm does not know what to change."""
    parts = {
        "https://host/x?v=1&myToken=hunter2": "a parameter with token in its name",
        "s3://hunter2@bucket": "before @",
    }
    for url, part in parts.items():
        assert part in message(lambda url=url: load_config(DEMO, [f"output={url}"]))


def test_a_url_of_redis_may_have_options():
    url = "rediss://h:6379/0?ssl_ca_certs=/x&username=app"
    assert load_config(DEMO, redis_overrides(url)).serve.cache.redis_url == url


@pytest.mark.parametrize("override", ["serve.cache.redis_url:redis://:hunter2@h", "a..b=redis://:hunter2@h", "seed.x=redis://:hunter2@h", "serve.cache.redis_url=[redis://:hunter2@h", "serve.cache.redis_url={redis://:hunter2@h: 1}", "seed=redis://:hunter2@h", "sed=redis://:hunter2@h"])  # fmt: skip
def test_no_error_repeats_what_was_set(override):
    assert "hunter2" not in message(lambda: load_config(DEMO, [override]))


@pytest.mark.parametrize("text", ["x: [redis://:hunter2@h", "x: 'redis://:hunter2@h", "x: a: redis://:hunter2@h"])
def test_no_error_repeats_a_line_of_the_file(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    said = message(lambda: load_config(tmp_path / "a.yaml"))
    assert "hunter2" not in said and "line 1" in said


def test_not_even_pydantics_own_error_shows_a_value():
    """A traceback would."""
    with pytest.raises(ValueError) as caught:
        Config.model_validate({"output": {"x": "hunter2"}})
    assert "hunter2" not in str(caught.value)


def test_a_malformed_uri_is_not_repeated():
    assert "hunter2" not in message(lambda: Storage("s3://u:hunter2@[oops").exists("a"))


# --- Redis ---


def set_variable(monkeypatch, name, value):
    """None: it is not set."""
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)


def redis_config(url, **more):
    return {"redis_url": url, "redis_key_env": "TEST_HMAC_KEY", **more}


def ask(cfg, queries):
    async def main():
        vectors = QueryEmbeddingCache(Lengths(), CacheConfig(**cfg), namespace="space")
        try:
            for query in queries:
                found = await vectors.get([query])
                await asyncio.gather(*vectors._writes)
            return found, vectors.counts()
        finally:
            await vectors.close()

    return asyncio.run(main())


def keys_in(url):
    return redis.Redis.from_url(url).keys()


def test_queries_are_no_keys_of_redis(redis_server, monkeypatch):
    """Whoever reads its disk, or its memory, would read what people searched for, or test whether somebody did."""
    monkeypatch.setenv("TEST_HMAC_KEY", HMAC_KEY)
    ask(redis_config(redis_server), [QUERY])
    (key,) = keys_in(redis_server)
    assert b"jane" not in key
    monkeypatch.setenv("TEST_HMAC_KEY", HMAC_KEY[::-1])
    ask(redis_config(redis_server), [QUERY])
    assert len(keys_in(redis_server)) == 2  # so it cannot be made, or tested, without the secret


@pytest.mark.parametrize("value", [None, "", "short"])
def test_redis_without_a_secret_is_refused(monkeypatch, value):
    """Plain hashes of queries can be tested by whoever sees them."""
    set_variable(monkeypatch, "TEST_HMAC_KEY", value)
    overrides = ["serve.cache.redis_url=redis://redis:6379/0", "serve.cache.redis_key_env=TEST_HMAC_KEY"]
    said = message(lambda: build_app(AppArgs(config=DEMO, set=overrides)))
    assert "serve.cache.redis_key_env" in said and "TEST_HMAC_KEY" in said
    assert "serve.cache" in message(lambda: load_config(DEMO, overrides[:1]))


@pytest.mark.parametrize("value", [None, ""])
def test_no_replica_answers_without_the_token_that_the_config_names(monkeypatch, value):
    """Of a replica on another node than the driver: it was a bare KeyError, and an empty one was taken for a token."""
    set_variable(monkeypatch, "TEST_TOKEN", value)
    cfg = load_config(DEMO, ["serve.auth_token_env=TEST_TOKEN"])
    replica = SimpleNamespace(cfg=cfg, service=None, metrics=SimpleNamespace(observe=None))
    said = message(lambda: Relevance.__serve_build_asgi_app__(replica))
    assert "serve.auth_token_env" in said and "TEST_TOKEN" in said


@pytest.mark.parametrize(("value", "state"), [(None, "is not set"), ("", "is not set"), ("s" * 15, "fewer than 16")])
def test_a_secret_that_is_missing_or_short_is_named_and_not_shown(monkeypatch, value, state):
    set_variable(monkeypatch, "TEST_KEY", value)
    said = message(lambda: read_secret("TEST_KEY", "a.b_env", min_chars=16))
    assert said.startswith("a.b_env: ") and "TEST_KEY" in said and state in said and "sss" not in said
    monkeypatch.setenv("TEST_KEY", "s" * 16)
    assert read_secret("TEST_KEY", "a.b_env", min_chars=16) == "s" * 16


def redis_overrides(url):
    names = {"redis_url": url, "redis_key_env": "TEST_HMAC_KEY", "redis_password_env": "TEST_REDIS"}
    return [f"serve.cache.{name}={value}" for name, value in names.items()]


def test_a_password_that_is_not_set_is_named(monkeypatch):
    monkeypatch.setenv("TEST_HMAC_KEY", HMAC_KEY)
    set_variable(monkeypatch, "TEST_REDIS", None)
    said = message(lambda: build_app(AppArgs(config=DEMO, set=redis_overrides("redis://redis:6379/0"))))
    assert "serve.cache.redis_password_env" in said and "TEST_REDIS" in said


def test_no_secret_of_redis_is_in_a_manifest_a_pickle_or_a_log(tmp_path, monkeypatch, caplog):
    """The server is away, so that the client has something to complain about."""
    monkeypatch.setenv("TEST_HMAC_KEY", HMAC_KEY)
    monkeypatch.setenv("TEST_REDIS", PASSWORD)
    cfg = load_config(DEMO, [f"output={tmp_path}", *redis_overrides("redis://127.0.0.1:1/0")])
    store = Storage(cfg.output)
    finished_stage(cfg, store, "enrich", pin_texts=pa.table({"pin_id": ["a"]}))
    ask(cfg.serve.cache.model_dump(), [QUERY])
    seen = store.read_bytes(manifest_path("enrich")).decode() + repr(pickle.dumps(cfg)) + caplog.text
    assert "left out" in caplog.text  # it did complain
    assert PASSWORD not in seen and HMAC_KEY not in seen and QUERY not in seen


@pytest.fixture
def guarded_server(tmp_path, monkeypatch):
    """A real redis-server, started by the command of the manifest; the password is odd, but for what the manifest cannot say."""
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server here")
    port, command = free_port(), container()["args"]
    options = f"redis-server - --port {port} --dir {tmp_path}"
    script = command[2].replace("/data", str(tmp_path)).replace("redis-server -", options)
    monkeypatch.setenv("REDIS_PASSWORD", "0123abcd" * 8)
    process = subprocess.Popen([*command[:2], script], stdout=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        yield process.pid, f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


def container():
    parts = yaml.safe_load_all((ROOT / "deploy/kuberay/redis.yaml").read_text())
    (server,) = (part for part in parts if part["kind"] == "StatefulSet")
    (found,) = server["spec"]["template"]["spec"]["containers"]
    return found


def test_redis_gets_its_password_past_its_command_line(tmp_path, monkeypatch):
    """Which every process of the node can read."""
    fake = tmp_path / "redis-server"
    fake.write_text('#!/bin/sh\necho "$0 $@" > "$SEEN/arguments"\ncat > "$SEEN/config"\n')
    fake.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(tmp_path), "REDIS_PASSWORD": "0123abcd" * 8}
    subprocess.run(container()["args"], env=env, check=True, timeout=10)
    assert "0123abcd" not in (tmp_path / "arguments").read_text()
    assert "requirepass 0123abcd" in (tmp_path / "config").read_text().replace('"', "")


def test_redis_of_the_manifest_asks_for_the_password_that_the_cache_gives(guarded_server, monkeypatch):
    pid, url = guarded_server
    assert "0123abcd" not in Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis.from_url(url).ping()
    monkeypatch.setenv("TEST_HMAC_KEY", HMAC_KEY)
    monkeypatch.setenv("TEST_REDIS", "0123abcd" * 8)
    cfg = redis_config(url, redis_password_env="TEST_REDIS")
    ask(cfg, [QUERY])
    assert ask(cfg, ["own", QUERY])[1]["second_level_hits"] == 1


# --- files ---


def modes_below(folder):
    return {stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize(("variable", "folder", "file"), [(None, 0o700, 0o600), ("027", 0o750, 0o640), ("007", 0o770, 0o660)])  # fmt: skip
@pytest.mark.parametrize("process", [0o022, 0o077])
def test_files_of_a_run_are_private_unless_the_operator_says_otherwise(
    tmp_path, monkeypatch, process, variable, folder, file
):
    """Whatever the umask that Ray's workers got from their node: logs of queries and quarantine are among them."""
    set_variable(monkeypatch, UMASK, variable)
    before = os.umask(process)
    try:
        store = Storage(str(tmp_path / "a/run"))
        store.write_bytes("tables/x/part", b"x")
        store.write_bytes("tables/x/part", b"y")
    finally:
        os.umask(before)
    assert modes_below(tmp_path / "a") == {folder, file}


def test_folders_below_one_of_a_group_belong_to_that_group(tmp_path, monkeypatch):
    """Else `RELEVANCE_UMASK=007` below a folder such as `chmod 2770` would share with each writer's own group only."""
    monkeypatch.setenv(UMASK, "007")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    Storage(str(shared / "run")).write_bytes("tables/x/part", b"x")
    for folder in (shared / "run", shared / "run/tables/x"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o2770, folder


@pytest.mark.parametrize("text", ["x", "777", "-1", "0o999", "100"])
def test_an_umask_that_is_none_is_named(monkeypatch, text):
    monkeypatch.setenv(UMASK, text)
    assert UMASK in message(keep_private)


@pytest.mark.parametrize("program", ["pipelines/release.py list --config {}", "-m serve.local --config {}", "pipelines/report.py --config {}"])  # fmt: skip
def test_entry_points_write_no_file_that_others_may_read(program, tmp_path):
    """Also what libraries write. The program is ended where it would look for its config."""
    spy = "import os, atexit\natexit.register(lambda: open(os.environ['SEEN'], 'w').write(oct(os.umask(0))))\n"
    (tmp_path / "sitecustomize.py").write_text(spy)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "SEEN": str(tmp_path / "seen")}
    arguments = program.format(tmp_path / "no.yaml").split()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, umask=0o022)
    assert "no.yaml does not exist" in done.stderr
    assert (tmp_path / "seen").read_text() == "0o77"
