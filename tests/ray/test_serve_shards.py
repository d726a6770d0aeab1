"""The app with its pins in two shards: the tests of one process again, and what happens when a shard dies or hangs."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from test_serve import (  # the tests among these run here too, over the `app` of this file
    QUERY,
    Load,
    assert_right,
    copied_run,
    processes,
    test_a_damaged_release_is_refused_and_the_old_one_goes_on,  # noqa: F401
    test_a_new_release_and_a_rollback_drop_no_request,  # noqa: F401
    test_answers_have_the_documented_shapes,  # noqa: F401
    test_online_scores_are_those_of_the_batch_job,  # noqa: F401
)

from ray_app.base.config import load_config
from ray_app.base.hashing import shards_of
from ray_app.base.storage import Storage
from ray_app.tables.current import current_release
from ray_app.tables.release import open_release
from serve import local

SHARD = "ServeReplica:relevance:Shard1"


@pytest.fixture(scope="module")
def app(finished: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Two replicas that ask two shards, one of them of two replicas, over a copy of the finished run."""
    folder = tmp_path_factory.mktemp("sharded")
    config = copied_run(folder, finished[0].output, source, shards=2)
    cfg = load_config(config)
    about = yaml.safe_load(local.CONFIG.read_text())
    about["applications"][0]["deployments"].append({"name": "Shard0", "num_replicas": 2})
    (folder / "serve.yaml").write_text(yaml.safe_dump(about))
    options = {"autoscaling_config": None, "num_replicas": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "CONFIG", folder / "serve.yaml")
        with local.serving(str(config), [], local.free_port(), **options) as (url, _):
            store = Storage(cfg.output)
            release = current_release(store)
            assert release is not None
            pins = open_release(store, release)["pin_id"].to_pylist()
            assert set(shards_of(pins, 2).tolist()) == {0, 1}
            yield SimpleNamespace(url=url, cfg=cfg, store=store, release=release, pins=pins)


def test_a_pin_of_each_shard_is_found_by_name(app: SimpleNamespace) -> None:
    """Related pins and pictures are asked of the shard that holds the pin."""
    for shard in (0, 1):
        pin = app.pins[shards_of(app.pins, 2).tolist().index(shard)]
        near = httpx.get(f"{app.url}/v1/related/{pin}?k=100").json()["results"]
        assert {found["pin_id"] for found in near} == {*app.pins} - {pin}
        assert httpx.get(f"{app.url}/v1/pins/{pin}/image").json()["error"] == "no_image"
    assert httpx.get(f"{app.url}/v1/pins/nowhere/image").json()["error"] == "unknown_pin"


def refusal(app: SimpleNamespace, load: Load) -> Any:
    """An answer other than 200."""
    found: list[Any] = []

    def refused() -> bool:
        answer = httpx.post(f"{app.url}/v1/rerank", json={"query": QUERY, "pin_ids": app.pins}, timeout=10)
        found.append(answer)
        return answer.status_code != 200

    load.wait(refused)
    return found[-1]


def assert_unavailable(answer: Any) -> None:
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert answer.json().keys() == {"error", "message"} and "Traceback" not in answer.text


def test_a_shard_that_hangs_costs_no_more_than_the_deadline(app: SimpleNamespace) -> None:
    (process,) = processes(SHARD)
    with Load(app, clients=1) as load:
        load.wait(lambda: load.statuses[200] > 5)
        os.kill(process, signal.SIGSTOP)
        try:
            assert_unavailable(refusal(app, load))
        finally:
            os.kill(process, signal.SIGCONT)
        answered = load.statuses[200]
        load.wait(lambda: load.statuses[200] > answered + 20)
    assert set(load.statuses) <= {200, 503}


def test_a_shard_that_dies_is_missed_until_it_is_back(app: SimpleNamespace) -> None:
    """Without it there is no answer, rather than one without its pins; the new one loads what is served."""
    (process,) = processes(SHARD)
    with Load(app) as load:
        load.wait(lambda: load.statuses[200] > 20)
        os.kill(process, signal.SIGKILL)
        assert_unavailable(refusal(app, load))
        load.wait(lambda: bool({*processes(SHARD)} - {process}), 120)
        answered = load.statuses[200]
        load.wait(lambda: load.statuses[200] > answered + 50, 120)
        late = len(load.answers)
        load.wait(lambda: len(load.answers) > late + 30)
    assert set(load.statuses) <= {200, 503}
    assert {status for status, _ in load.answers[late:]} == {200}
    answers = [answer for status, answer in load.answers if status == 200]
    assert {len(answer["results"]) for answer in answers} == {len(app.pins)}
    assert_right(answers)
