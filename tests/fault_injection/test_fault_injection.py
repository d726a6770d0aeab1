"""A few faults of each kind that are cheap, from a seed: the whole harness is `make fault-injection`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from checks import compare, published_half
from stage_cases import Runner
from world import World

from ray_app.base.config import load_config
from ray_app.base.schemas import embedding_results
from ray_app.base.storage import Storage
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Output, read_output
from ray_app.tables.publish import publish_release
from ray_app.tables.stage_run import StageRun

pytestmark = [pytest.mark.fault_injection, pytest.mark.timeout(400)]

RUN = Path(__file__).parent / "run.py"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder and the JSON line of a short run."""
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, str(RUN), "--seed", "1", "--quick", "--keep", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=390, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def world(quick):
    return World.of(quick[0] / "world")


def test_no_fault_leaves_a_trace(quick):
    figures = quick[1]
    assert figures["injected"] >= 3
    assert figures["survived"] == figures["injected"]
    assert figures["lost_rows"] == figures["duplicated_rows"] == figures["other_differences"] == 0


def test_lost_and_doubled_rows_are_seen(world, tmp_path):
    """Else the harness would find nothing for ever."""
    store = Storage(str(world.copy_before("enrich", tmp_path / "run")))
    texts = read_output(Storage(str(world.reference)), Output(**world.manifests["enrich"]["outputs"]["pin_texts"]))
    run = StageRun("enrich", load_config(world.config), store, 1, settings=[], inputs=[])
    run.write_table("pin_texts", pa.concat_tables([texts.slice(2), texts.slice(5, 1)]))
    run.finish(world.manifests["enrich"]["counts"])
    verdict = compare(world, store, "enrich")
    assert (verdict.lost, verdict.duplicated) == (2, 1)


@pytest.fixture
def store(world, tmp_path):
    """A copy of the fault-free run."""
    shutil.copytree(world.reference, tmp_path / "run")
    return Storage(str(tmp_path / "run"))


def test_a_row_that_stands_twice_in_a_ledger_is_seen(world, store):
    """As two jobs would leave it that cut their blocks differently; tables show one of them."""
    assert compare(world, store, "zero_shot").good
    path = store.list_files("ledger/text_embeddings", ".parquet")[0]
    store.write_table(f"{path.rpartition('/')[0]}/other.parquet", store.read_table(path).slice(0, 1))
    assert compare(world, store, "zero_shot").duplicated == 1


def test_a_table_that_is_published_half_is_seen(world, store):
    assert published_half(store, "enrich") == []
    store.delete(world.manifests["enrich"]["outputs"]["pin_texts"]["files"][0])
    assert published_half(store, "enrich")


def test_a_release_that_is_published_half_is_seen(tmp_path):
    store = Storage(str(tmp_path))
    ledger = Ledger(store, "pin_embeddings", "r" * 16, embedding_results(1))
    ledger.commit(pa.table({"content_key": ["k"], "embedding": [[1.0]], "error": [None]}))
    pins = pa.table({"pin_id": ["p"], "content_key": ["k"]})
    release = publish_release(store, lambda _: pins, ledger, 1, "5" * 16, sources={}, config={})
    assert published_half(store, "embed") == []
    store.delete(next(iter(release.files)))
    assert published_half(store, "embed")


def test_a_case_of_a_seed_is_the_same_again(tmp_path):
    """A failure that cannot be reproduced cannot be fixed."""
    one, other = Runner(tmp_path, 1), Runner(tmp_path, 1)
    numbers = range(3 * len(one.deck))
    dealt, again, differing = ([r.deal(n)[:2] for n in numbers] for r in (one, other, Runner(tmp_path, 2)))
    assert dealt == again != differing
    assert one.deal(5)[2].random() == other.deal(5)[2].random()
    assert sorted(dealt[: len(one.deck)]) == sorted(one.deck)
