"""Training curves reach TensorBoard's files and an MLflow server."""

import json
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from minimal import http_server

from ray_app.base.config import TrainConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.training.tracking import start_tracking


def test_without_a_switch_nothing_is_written(tmp_path: Path) -> None:
    start_tracking(TrainConfig(), Storage(str(tmp_path)), "run", "models/teacher/x")({"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_curve(tmp_path: Path) -> None:
    track = start_tracking(TrainConfig(report_to=["tensorboard"]), Storage(str(tmp_path)), "run", "models/teacher/x")
    track({"train_loss": 1.5}, 20)
    (events,) = (tmp_path / "tracking/models/teacher/x").glob("events*")
    deadline = time.monotonic() + 30
    while b"train_loss" not in events.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)  # a thread writes
    assert b"train_loss" in events.read_bytes()


class Server(BaseHTTPRequestHandler):
    """The five calls of MLflow's REST API that we make."""

    def do_GET(self) -> None:
        name = parse_qs(urlparse(self.path).query).get("experiment_name")
        self._answer({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": str(name)}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("log-metric"):
            self.server.metrics.append(body)
        run = {"info": {"run_id": "r1", "run_uuid": "r1", "experiment_id": "7", "status": "RUNNING"}, "data": {}}
        self._answer({"experiment_id": "7", "run": run}, 200)

    def _answer(self, body: dict, status: int) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def test_mlflow_gets_the_curve_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    with http_server(Server, metrics=[]) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        track = start_tracking(TrainConfig(report_to=["mlflow"]), Storage(str(tmp_path)), "run", "models/teacher/x")
        track({"train_loss": 1.5}, 20)
    (metric,) = server.metrics
    assert (metric["key"], metric["value"], int(metric["step"]), metric["run_id"]) == ("train_loss", 1.5, 20, "r1")


def test_mlflow_without_a_server_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        start_tracking(TrainConfig(report_to=["mlflow"]), Storage(str(tmp_path)), "run", "models/teacher/x")
