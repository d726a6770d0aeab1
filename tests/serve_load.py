"""A served copy of the finished tiny run, and load on it that remembers every answer."""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import yaml

QUERY = "green mug"


def copied_run(folder: Path, output: str, source: Path, **serve: Any) -> Path:
    """Config of a copy of a finished run (`output`, made with `source`/config.yaml), with these settings in section `serve`."""
    shutil.copytree(output, folder / "run")
    config = yaml.safe_load((source / "config.yaml").read_text())
    config["output"] = str(folder / "run")
    config["serve"] = {
        "query_encoder_backend": "torch",
        "poll_interval_sec": 0.3,
        "local_cache_dir": str(folder / "local"),
    } | serve
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def assert_right(answers: list[Any]) -> None:
    """All to one question: equal but for the rounding of batches; those without the query's vector say so."""
    for degraded in (False, True):
        found = [answer["results"] for answer in answers if answer["degraded"] == degraded]
        for results in found:
            assert [hit["pin_id"] for hit in results] == [hit["pin_id"] for hit in found[0]]
            np.testing.assert_allclose([h["score"] for h in results], [h["score"] for h in found[0]], atol=1e-3)


class Load:
    """Asks from several threads until told to stop; remembers each answer."""

    def __init__(self, app: SimpleNamespace, clients: int = 4) -> None:
        self.app, self.stop = app, threading.Event()
        self.answers: list[tuple[int, Any]] = []
        self.answered_at: list[float] = []
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(30)

    def _run(self) -> None:
        body = {"query": QUERY, "pin_ids": self.app.pins}
        with httpx.Client(timeout=10) as client:
            while not self.stop.is_set():
                try:
                    answer = client.post(f"{self.app.url}/v1/rerank", json=body)
                    self.answers.append(
                        (answer.status_code, answer.json() if answer.status_code == 200 else answer.text)
                    )
                    if answer.status_code == 200:
                        self.answered_at.append(time.monotonic())
                except httpx.HTTPError:
                    self.answers.append((0, "no answer"))
                    time.sleep(0.1)  # as a client would before it tries again

    def wait(self, done: Callable[[], bool], seconds: float = 60) -> None:
        limit = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < limit, "it did not happen in time"
            time.sleep(0.1)

    @property
    def statuses(self) -> Counter:
        return Counter(status for status, _ in self.answers)

    def assert_all_answered(self) -> None:
        refused = [said for status, said in self.answers if status != 200]
        assert not refused, refused[:3]
