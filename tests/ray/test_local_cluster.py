"""A cluster that our programs start: no other machine reaches it, and who has not its token cannot use it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from listening import Listener, listeners

from ray_app.base.config import Config
from ray_app.tables.manifest import Manifest

Finished = tuple[Config, dict[str, Manifest]]

ROOT = Path(__file__).parents[2]
CLUSTER = """
import ray, sys
from ray_app.cluster.resources import connect, on_connect
on_connect(lambda: None, num_cpus=2, include_dashboard=True, object_store_memory=100_000_000, log_to_driver=False)
connect()
print(ray.get_runtime_context().gcs_address, ray.get(ray.remote(lambda: 6 * 7).remote()), flush=True)
sys.stdin.read()
"""
DRIVER = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.get(ray.remote(lambda: 6 * 7).remote()))"


def environment(home: Path) -> dict[str, str]:
    """Of a user who has set nothing of Ray."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return kept | {"PYTHONPATH": str(ROOT), "HOME": str(home)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[tuple[str, int]]:
    """Address and session of a program that has connected to Ray, as each of ours does, and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], cwd=ROOT, env=environment(home), start_new_session=True, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin and process.stdout
    address, result = process.stdout.readline().split()
    assert result == "42"
    yield address, process.pid
    process.stdin.close()
    assert process.wait(60) == 0


def test_ray_listens_on_loopback_alone(cluster: tuple[str, int]) -> None:
    found = listeners(cluster[1])
    assert {"gcs_server", "raylet"} <= {listener.process for listener in found}
    assert not {listener for listener in found if listener.is_open}


def test_another_user_of_the_machine_cannot_join(cluster: tuple[str, int], home: Path) -> None:
    """Loopback is open to them; the token is in the environment of the cluster's own processes only."""
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else Ray asks at the address of the network
    tried = subprocess.run(
        [sys.executable, "-c", DRIVER, cluster[0]], env=environment(home) | loopback | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert tried.returncode != 0 and "42" not in tried.stdout
    assert "auth" in tried.stderr.lower(), tried.stderr[-2000:]


def test_no_token_is_left_behind(cluster: tuple[str, int], home: Path) -> None:
    """A file in the home directory would turn authentication on for the user's other clusters."""
    assert not (home / ".ray").exists()


def test_training_opens_no_port(finished: Finished, source: Path, home: Path, tmp_path: Path) -> None:
    """Torch's store, where workers of one training meet, knows no token."""
    shutil.copytree(finished[0].output, tmp_path / "run")
    command = [sys.executable, "pipelines/train_teacher.py", "--config", str(source / "config.yaml")]
    command += ["--set", f"output={tmp_path / 'run'}", "--set", "train_teacher.train.epochs=3"]
    seen: set[Listener] = set()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(home), start_new_session=True, stdout=log, stderr=log
        )
        while process.poll() is None:
            seen |= listeners(process.pid)
            time.sleep(0.1)
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert any("TrainWorker" in listener.process for listener in seen)
    assert not {listener for listener in seen if listener.is_open}
