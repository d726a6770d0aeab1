"""What changes from day to day, and who asks all the while."""

import csv
import random
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from pipeline_world import COLOURS, THINGS, write_csv

_DAYS = 3  # of the log that are kept
_PAUSE_SEC = 0.1
_FEW, _MANY = 3, 12  # pins that change on a day: of 180, so that the models stand, or are made again


def advance(folder: Path, day: int, rng: random.Random) -> None:
    """A new day of the log in place of the oldest one, and pins with new words."""
    with (folder / "log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    today = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
    for number in range(20):
        colour, thing, position = rng.choice(COLOURS), rng.choice(THINGS), rng.randrange(1, 9)
        for action in ("impression", "click", "save")[: rng.randrange(1, 4)]:
            log.append(
                {
                    "event_id": f"{day}-{number}-{action}", "timestamp": f"{today:%Y-%m-%dT%H:%M:%SZ}",
                    "query": f"{colour} {thing}", "locale": "en-US", "pin_id": f"{colour}-{thing}", "position": position,
                    "action": action, "client_id": f"{day}-{number}",
                }
            )  # fmt: skip
    oldest = f"{today - timedelta(days=_DAYS):%Y-%m-%dT%H:%M:%SZ}"
    recent = [row for row in log if row["timestamp"] > oldest or row["timestamp"] < "2026-01-02"]
    write_csv(folder / "log.csv", recent)
    with (folder / "pins.csv").open(newline="") as file:
        pins = list(csv.DictReader(file))
    for place in rng.sample(range(40, len(pins)), _MANY if day % 3 == 0 else _FEW):
        words = " ".join(rng.choices((*COLOURS, *THINGS), k=4))
        pins[place]["title"] = f"the {words} of day {day}"
    write_csv(folder / "pins.csv", pins)


class Traffic(threading.Thread):
    """Some ten searches a second, one after the other, as long as the context is open."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.url, self.rng, self.stop = url, random.Random(seed), threading.Event()
        self.release = ""  # of the last answer
        self.total, self.failed = 0, 0
        self.shown: Counter = Counter()  # what failed
        self._ms: list[float] = []

    def __enter__(self) -> "Traffic":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.join(30)

    def run(self) -> None:
        """Ask."""
        with httpx.Client(timeout=30) as client:
            while not self.stop.wait(_PAUSE_SEC):
                query = f"{self.rng.choice(COLOURS)} {self.rng.choice(THINGS)} {self.rng.randrange(50)}"
                began = time.monotonic()
                try:
                    answer = client.post(f"{self.url}/v1/search", json={"query": query, "top_k": 5})
                    status: Any = answer.status_code
                    if status == 200:
                        self.release = answer.json()["release"]
                except httpx.HTTPError as error:
                    status = type(error).__name__
                self._ms.append(1000 * (time.monotonic() - began))
                self.total += 1
                if status != 200:
                    self.failed += 1
                    self.shown[str(status)] += 1

    def next_cycle(self) -> None:
        """Forget the latencies of the last one."""
        self._ms = []

    def figures(self) -> dict[str, float]:
        """Of this cycle."""
        p50, p99 = np.percentile(self._ms or [np.nan], [50, 99])
        return {"p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1), "requests": len(self._ms)}


def slope(series: list[float]) -> dict[str, float]:
    """Mean, least-squares slope per cycle and its standard error, of three cycles or more."""
    x, y = np.arange(len(series), dtype=float), np.array(series, float)
    (gradient, _), covariance = np.polyfit(x, y, 1, cov="unscaled")
    residual = y - np.polyval(np.polyfit(x, y, 1), x)
    error = float(np.sqrt(covariance[0, 0] * (residual**2).sum() / (len(y) - 2)))
    return {"mean": round(float(y.mean()), 2), "per_cycle": round(float(gradient), 4), "error": round(error, 4)}
