"""Ray's own token: who lacks it can neither run code on the cluster nor read its dashboard.

A head of its own, ended by the processes of its session; nothing of another cluster is touched.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from serve.local import free_port

RAY = str(Path(sys.executable).with_name("ray"))
DRIVER = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.get(ray.remote(lambda: 6 * 7).remote()))"


class Head:
    """A running head that asks for a token."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, secrets.token_hex(32)
        (folder / "token").write_text(self.token)
        (folder / "wrong").write_text(secrets.token_hex(32))
        port, self.dashboard_port = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{self.dashboard_port}"
        command = [
            RAY, "start", "--head", f"--port={port}", f"--dashboard-port={self.dashboard_port}", "--num-cpus=2",
            f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
            f"--temp-dir={folder / 'ray'}", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000",
            "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats",
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            started = subprocess.Popen(command, stdout=log, stderr=log, env=self.env("token"), start_new_session=True)
        self.session = started.pid
        assert started.wait(120) == 0, (folder / "log").read_text()[-2000:]

    def env(self, token: str | None) -> dict[str, str]:
        """Of a process that has that file's token, or none at all."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_AUTH", "RAY_ADDRESS"))}
        path = str(self.folder / (token or "absent"))
        return env | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": path, "HOME": str(self.folder)}

    def run(self, *command: str, token: str | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.env(token), capture_output=True, text=True, timeout=600, check=False)

    def status(self, path: str, token: str | None, body: bytes | None = None) -> int:
        """Of an HTTP request to the dashboard; waits until that is there."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(self.dashboard + path, body, headers | {"Content-Type": "application/json"})
        for _ in range(600):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                return error.code
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the dashboard did not start")

    def kill(self) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(process.pid) == self.session:
                    process.kill()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))  # short: sockets lie in it
    found = Head(folder)
    yield found
    found.kill()
    shutil.rmtree(folder, ignore_errors=True)


def test_the_dashboard_and_its_jobs_need_the_token(head: Head) -> None:
    job = json.dumps({"entrypoint": "true"}).encode()
    assert head.status("/api/jobs/", head.token) == 200
    for token, refused in ((None, 401), (secrets.token_hex(32), 403)):
        assert head.status("/api/jobs/", token) == refused
        assert head.status("/api/jobs/", token, job) == refused
        assert head.status("/api/serve/applications/", token) == refused
        assert head.status("/nodes?view=summary", token) == refused


def test_nobody_joins_without_the_token(head: Head) -> None:
    done = head.run(sys.executable, "-c", DRIVER, head.address, token=None)
    assert done.returncode != 0 and "42" not in done.stdout
    assert "auth" in (done.stdout + done.stderr).lower() or "token" in (done.stdout + done.stderr).lower()


def test_with_the_token_a_driver_and_a_job_run_and_without_it_no_job(head: Head) -> None:
    """Else the tests above would pass on a head that refuses everybody."""
    done = head.run(sys.executable, "-c", DRIVER, head.address, token="token")
    assert (done.returncode, done.stdout.strip()) == (0, "42"), done.stderr[-2000:]
    submit = (RAY, "job", "submit", "--address", head.dashboard, "--", sys.executable, "-c", "print(6 * 7 * 1000)")
    done = head.run(*submit, token="token")
    assert done.returncode == 0 and "42000" in done.stdout, (done.stdout + done.stderr)[-2000:]
    done = head.run(*submit, token=None)
    assert done.returncode != 0 and "42000" not in done.stdout
