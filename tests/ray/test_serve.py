"""The app on a real Ray Serve behind a real HAProxy, over a tiny run: right answers, swaps, and deaths under load."""

import asyncio
import contextlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
from listening import listeners
from ray.serve.generated.serve_pb2 import ASGIRequest
from ray.serve.generated.serve_pb2_grpc import ASGIServiceStub
from serve_load import QUERY, Load, assert_right, copied_run

from ray_app.base.config import load_config
from ray_app.base.locales import UNKNOWN
from ray_app.base.schemas import embedding_results
from ray_app.base.storage import Storage
from ray_app.client import RelevanceClient
from ray_app.cluster.catalogue_tables import load_catalogue
from ray_app.cluster.encoders import student_tower, zero_shot_queries
from ray_app.features.student import StudentFeatures
from ray_app.models.head import expected_grade
from ray_app.models.student import Student
from ray_app.models.text_encoder import stage_dtype
from ray_app.tables.current import current_release, promote, rollback
from ray_app.tables.ledger import Ledger
from ray_app.tables.publish import publish_release
from ray_app.tables.release import open_release
from serve import models
from serve.local import free_port, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def app(finished: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Two replicas over a copy of the finished run."""
    # A deadline so late that no request meets it, however busy the machine: a 503 here is an answer that was lost.
    limits = {"max_concurrent_requests": 8, "deadline_ms": 10_000}
    config = copied_run(tmp_path_factory.mktemp("served"), finished[0].output, source, limits=limits)
    cfg = load_config(config)
    options = {"autoscaling_config": None, "num_replicas": 2}
    with serving(str(config), [], free_port(), **options) as (url, process):
        store = Storage(cfg.output)
        release = current_release(store)
        assert release is not None
        yield SimpleNamespace(
            url=url, cfg=cfg, store=store, release=release, cluster=address_of(process.pid), session=process.pid,
            pins=open_release(store, release)["pin_id"].to_pylist(),
        )  # fmt: skip
    deadline = time.monotonic() + 10
    while (left := alive_in_session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)  # a killed process takes a moment
    assert not left, "what was started is stopped"


def alive_in_session(session: int) -> list[list[str]]:
    """Commands of a session's processes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
    return found


def address_of(pid: int) -> str:
    """Of the Ray cluster that a process started; another test's may run beside it."""
    for child in psutil.Process(pid).children(recursive=True):
        for part in child.cmdline():
            if part.startswith("--gcs-address="):  # of a raylet; the GCS itself was told to find a free port
                return part.partition("=")[2]
    raise AssertionError("that process started no cluster")


class Pickled:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_the_app_leaves_open_asks_for_the_token(app: SimpleNamespace, tmp_path: Path) -> None:
    """Ray binds a port of each replica to all interfaces, and unpickles what comes there; HAProxy's two others say figures only."""
    left = {listener for listener in listeners(app.session) if listener.is_open}
    assert {listener.process.partition(":relevance:")[0] for listener in left} <= {"haproxy", "ray::ServeReplica"}
    ports = {listener.port for listener in left if listener.process != "haproxy"}
    assert ports, "one per replica that is up"
    request = ASGIRequest(pickled_request_metadata=pickle.dumps(Pickled(tmp_path / "marker")))
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
            ASGIServiceStub(channel).HandleRequest(request, timeout=20)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert not (tmp_path / "marker").exists()


def post(app: SimpleNamespace, path: str, body: Any) -> Any:
    answer = httpx.post(f"{app.url}{path}", json=body, timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_answers_have_the_documented_shapes(app: SimpleNamespace) -> None:
    """The app does not validate its own answers, so this does."""
    search = models.SearchResponse.model_validate(post(app, "/v1/search", {"query": QUERY, "top_k": 5}))
    assert len(search.results) == 5
    assert [hit.rank for hit in search.results] == [1, 2, 3, 4, 5]
    assert "green-mug" in {hit.pin_id for hit in search.results if hit.matched_terms.get("title") == ["green", "mug"]}
    models.RerankResponse.model_validate(post(app, "/v1/rerank", {"query": QUERY, "pin_ids": app.pins[:3]}))
    models.EncodeResponse.model_validate(post(app, "/v1/encode", {"queries": [QUERY]}))
    board = models.BoardResponse.model_validate(post(app, "/v1/boards/encode", {"title": "mugs", "pin_ids": ["x"]}))
    assert board.unknown_pin_ids == ["x"]
    related = models.RelatedResponse.model_validate(httpx.get(f"{app.url}/v1/related/{app.pins[0]}?k=4").json())
    assert len(related.results) == 4 and app.pins[0] not in {pin.pin_id for pin in related.results}
    models.About.model_validate(httpx.get(f"{app.url}/v1/about").json())
    assert httpx.get(app.url).headers["content-type"].startswith("text/html")
    assert {"/v1/search", "/v1/rerank", "/v1/encode"} <= set(httpx.get(f"{app.url}/openapi.json").json()["paths"])


@pytest.mark.parametrize("locale", ["en-US", None])
def test_online_scores_are_those_of_the_batch_job(app: SimpleNamespace, locale: str | None) -> None:
    """The same features, vectors, head and calibration as `evaluate` measures; float16 vectors cost the third digit.

    A request without a locale has an unknown one, and is no American.
    """
    cfg, store = app.cfg, app.store
    features = StudentFeatures.load(load_catalogue(cfg, store)[0], store, zero_shot_queries(cfg, store))
    rows = features.catalogue.pairs.pin_rows(app.pins)
    locales = [locale or UNKNOWN] * len(rows)
    student = app.release.sources["student"]
    pins = student_tower(cfg, store, student, "pin").encode([features.catalogue.pairs.rendered[row] for row in rows])
    query = student_tower(cfg, store, student, "query").encode([QUERY])
    computed = features.compute([QUERY], np.zeros(len(rows), np.int64), rows, locales)
    wanted = Student(store, student).score(query, pins, computed, locales)
    said = {} if locale is None else {"locale": locale}
    answer = post(app, "/v1/rerank", {"query": f"  {QUERY.upper()} ", "pin_ids": app.pins} | said)
    found = {hit["pin_id"]: hit for hit in answer["results"]}
    np.testing.assert_allclose([found[pin]["probs"] for pin in app.pins], wanted, atol=2e-3)
    np.testing.assert_allclose([found[pin]["score"] for pin in app.pins], expected_grade(wanted), atol=5e-3)
    scores = [hit["score"] for hit in answer["results"]]
    assert scores == sorted(scores, reverse=True)


def test_the_client_talks_to_the_app(app: SimpleNamespace) -> None:
    with RelevanceClient(app.url) as client:
        assert client.encode([QUERY, "cup"]).shape == (2, app.release.dim)
        assert client.ready()


def test_more_than_the_app_can_take_is_refused_and_told_when_to_come_back(app: SimpleNamespace) -> None:
    """200 at once, 8 per replica: each is answered right or refused, none is lost, and afterwards all is as before."""
    body = {"query": QUERY, "pin_ids": app.pins}

    async def burst() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=30, limits=limits) as client:
            return await asyncio.gather(*(client.post(f"{app.url}/v1/rerank", json=body) for _ in range(200)))

    answers = asyncio.run(burst())
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) <= {200, 429, 503} and counts[200] and counts[429]
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code != 200)
    assert_right([post(app, "/v1/rerank", body), *(answer.json() for answer in answers if answer.status_code == 200)])


# --- the real HAProxy: sockets that are slow, headers without end, queues ---


def connected(app: SimpleNamespace, data: bytes) -> socket.socket:
    host, port = app.url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)), timeout=60)
    line.sendall(data)
    return line


def answered(line: socket.socket) -> bytes:
    """All that comes until the other side closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := line.recv(65536):
            found += part
    return found


HEAD = b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SLOW = {
    "silent": (b"", b""),
    "half a header": (HEAD, b""),
    "a header that drips": (HEAD, b"x: y\r\n"),
    "a body that does not come": (HEAD + b"Content-Length: 1000\r\n\r\n{", b""),
    "a body that drips": (HEAD + b"Content-Length: 1000\r\n\r\n{", b" "),
    "idle after an answer": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
}


def test_slow_sockets_are_closed_and_others_are_answered_meanwhile(app: SimpleNamespace) -> None:
    """By Ray's defaults each stayed for an hour, or for ever while it dripped."""
    lines = [(name, connected(app, first), drip) for name, (first, drip) in SLOW.items() for _ in range(10)]
    assert_right([post(app, "/v1/rerank", {"query": QUERY, "pin_ids": app.pins})])
    limit = time.monotonic() + 40  # the last ones have 10 s by the proxy
    while lines and time.monotonic() < limit:
        time.sleep(0.5)
        left = []
        for name, line, drip in lines:
            line.setblocking(False)
            try:
                if drip:
                    line.send(drip)
                closed = False
                while not closed:
                    closed = line.recv(65536) == b""
            except BlockingIOError:
                left.append((name, line, drip))
            except OSError:
                pass
        lines = left
    assert not lines, Counter(name for name, _, _ in lines)


def test_headers_without_end_are_refused_by_the_proxy(app: SimpleNamespace) -> None:
    """Behind it they would fill the memory of a replica: uvicorn has no bound on them."""
    line = connected(app, HEAD)
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            line.sendall((b"a: " + b"b" * 60 + b"\r\n") * 100)
    assert answered(line).startswith(b"HTTP/1.1 400")


def test_encode_requests_whose_callers_are_gone_leave_search_its_vector(app: SimpleNamespace) -> None:
    for i in range(60):
        body = json.dumps({"queries": [f"word{i} number{j}" for j in range(64)]}).encode()
        head = HEAD.replace(b"rerank", b"encode") + b"Content-Length: %d\r\n\r\n" % len(body)
        connected(app, head + body).close()
    with Load(app, clients=1) as load:
        load.wait(lambda: load.statuses[200] > 0)  # places are free again
    answers = [post(app, "/v1/rerank", {"query": f"{QUERY} {i}", "pin_ids": app.pins}) for i in range(4)]
    assert not any(answer["degraded"] for answer in answers)


def test_another_name_is_refused_and_a_probe_by_address_is_answered(app: SimpleNamespace) -> None:
    headers = {"host": "evil.example"}
    assert httpx.get(f"{app.url}/v1/about", headers=headers).status_code == 421
    for path in ("/healthz", "/readyz", "/-/healthz"):
        assert httpx.get(f"{app.url}{path}", headers={"host": "10.1.2.3:8000"}).status_code == 200


def releases_of(app: SimpleNamespace, num: int = 12) -> set[str]:
    """Which releases new connections meet; two replicas, so some tries."""
    return {httpx.get(f"{app.url}/v1/about").json()["release"] for _ in range(num)}


def codes(app: SimpleNamespace, num: int = 12) -> set[str]:
    """What replicas say of themselves to strangers."""
    return {httpx.get(f"{app.url}/readyz").json()["code"] for _ in range(num)}


def publish(app: SimpleNamespace, num_pins: int) -> str:
    """Another release of the same student, with fewer pins."""
    release = app.release
    table = open_release(app.store, release).select(["pin_id", "content_key"]).slice(0, num_pins)
    ledger = Ledger(app.store, "pin_embeddings", release.info["recipe"], embedding_results(release.dim))
    return publish_release(
        app.store, lambda _: table, ledger, release.dim, release.student_id, release.info, sources=release.sources,
        config=release.config,
    ).id  # fmt: skip


def test_a_new_release_and_a_rollback_drop_no_request(app: SimpleNamespace) -> None:
    with Load(app) as load:
        smaller = publish(app, len(app.pins) - 5)
        load.wait(lambda: releases_of(app) == {smaller})
        assert rollback(app.store).id == app.release.id
        load.wait(lambda: releases_of(app) == {app.release.id})
    load.assert_all_answered()
    for _, answer in load.answers:  # each answer is of one release, whole
        missing = {smaller: 5, app.release.id: 0}[answer["release"]]
        assert (len(answer["results"]), len(answer["unknown_pin_ids"])) == (len(app.pins) - missing, missing)


def test_a_damaged_release_is_refused_and_the_old_one_goes_on(app: SimpleNamespace) -> None:
    broken = publish(app, len(app.pins) - 3)
    promote(app.store, app.release.id)
    part = next(Path(app.cfg.output).glob(f"releases/{broken}/bucket=*/part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-10])
    shutil.rmtree(Path(app.cfg.serve.local_cache_dir), ignore_errors=True)  # what the machine kept of it
    (Path(app.cfg.output) / "releases/CURRENT").write_text(json.dumps({"id": broken, "previous": app.release.id}))
    with Load(app, clients=1) as load:
        load.wait(lambda: codes(app) == {"release_refused"})
    load.assert_all_answered()
    assert {answer["release"] for _, answer in load.answers} == {app.release.id}
    promote(app.store, app.release.id)


def processes(name: str) -> list[int]:
    """Of this test's own cluster: beside it others may run."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


@pytest.mark.parametrize("victim", ["ServeReplica:relevance", "haproxy -"])
def test_a_death_under_load_costs_little_and_recovers(app: SimpleNamespace, victim: str) -> None:
    """kill -9 of a replica, and of the proxy: no wrong answer, few errors, and both are back without a person."""
    before = processes(victim)
    assert before
    with Load(app) as load:
        load.wait(lambda: load.statuses[200] > 20)
        os.kill(before[0], signal.SIGKILL)
        load.wait(lambda: len([pid for pid in processes(victim) if pid != before[0]]) >= len(before), 120)
        answered = load.statuses[200]
        load.wait(lambda: load.statuses[200] > answered + 50)
        time.sleep(1.0)
        late = len(load.answers)
        load.wait(lambda: len(load.answers) > late + 30)
    assert {status for status, _ in load.answers[late:]} == {200}
    assert_right([answer for status, answer in load.answers if status == 200])
    assert max(np.diff(load.answered_at)) < 20, "seconds without any answer"


def embed_command(app: SimpleNamespace) -> list[str]:
    """Embeds all pins anew, in blocks of two: another dtype than that of `auto` on this machine is another recipe."""
    config = Path(app.cfg.output).parent / "config.yaml"
    dtype = "float32" if stage_dtype(app.cfg.embed) == "bfloat16" else "bfloat16"
    settings = [f"embed.dtype={dtype}", "embed.rows_per_block=2"]
    command = [sys.executable, str(ROOT / "pipelines/embed.py"), "--config", str(config)]
    return [*command, *(part for setting in settings for part in ("--set", setting))]


def test_the_death_of_the_batch_job_under_load_changes_nothing_that_is_served(app: SimpleNamespace) -> None:
    """kill -9 of the embed job's driver on the cluster that serves: every request is answered; the next run goes on."""
    env = os.environ | {"RAY_ADDRESS": app.cluster}
    folder = Path(app.cfg.output) / "ledger/pin_embeddings"
    before = set(folder.rglob("*.parquet"))
    with Load(app) as load:
        job = subprocess.Popen(embed_command(app), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        load.wait(lambda: bool(set(folder.rglob("*.parquet")) - before) or job.poll() is not None, 120)
        job.kill()
        assert job.wait() == -signal.SIGKILL, "the job was over before it was killed"
        answered = load.statuses[200]
        load.wait(lambda: load.statuses[200] > answered + 50)
        assert releases_of(app) == {app.release.id}
        subprocess.run(embed_command(app), env=env, check=True, capture_output=True, timeout=600)
        newest = current_release(app.store)
        assert newest is not None and newest.id != app.release.id and newest.num_pins == app.release.num_pins
        load.wait(lambda: releases_of(app) == {newest.id})
    load.assert_all_answered()
    promote(app.store, app.release.id)
    with Load(app, clients=1) as load:
        load.wait(lambda: releases_of(app) == {app.release.id})
