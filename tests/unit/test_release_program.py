"""`pipelines/release.py`: what an operator sees, and that a wrong word changes nothing."""

import json
import sys

import pyarrow as pa
import pytest
import yaml
from tiny_config import config_tree

from pipelines.release import main
from ray_app.base.schemas import embedding_results
from ray_app.base.storage import Storage
from ray_app.tables.current import current_release, promote
from ray_app.tables.ledger import Ledger
from ray_app.tables.publish import publish_release


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config_tree(tmp_path / "run")))
    return path


@pytest.fixture
def store(tmp_path):
    return Storage(str(tmp_path / "run"))


@pytest.fixture
def releases(store):
    """Three; the third is current."""
    ledger = Ledger(store, "pin_embeddings", "r1", embedding_results(1))
    keys = ["k0", "k1", "k2"]
    ledger.commit(pa.table({"content_key": keys, "embedding": [[0.0], [1.0], [2.0]], "error": pa.nulls(3)}))
    pins = [pa.table({"pin_id": ["p"], "content_key": [key]}) for key in keys]
    return [
        publish_release(store, lambda _, table=table: table, ledger, 1, "5111111111111111", sources={}, config={})
        for table in pins
    ]


@pytest.fixture
def run(config, monkeypatch, capsys):
    """Runs the program; returns its exit code, its lines of output, and what it said on stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["release.py", *words, "--config", str(config)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


def test_the_list_marks_what_is_served_and_what_was_before(run, releases):
    code, lines, _ = run("list")
    assert code == 0
    assert [line.split()[0] for line in lines[1:-1]] == [release.id for release in releases]
    assert [line.split()[-1] for line in lines[1:-1]] == ["5111111111111111", "previous", "current"]
    assert json.loads(lines[-1]) == {
        "stage": "release", "action": "list", "current": releases[2].id, "previous": releases[1].id,
        "releases": [release.id for release in releases],
    }  # fmt: skip


def test_an_empty_list_is_no_error(run):
    code, lines, _ = run("list")
    assert (code, len(lines)) == (0, 2)
    assert json.loads(lines[-1])["current"] is None


def test_promote_and_rollback_move_current(run, store, releases):
    code, lines, _ = run("promote", releases[0].id[:12])
    assert (code, json.loads(lines[-1])["current"], current_release(store)) == (0, releases[0].id, releases[0])
    code, lines, _ = run("rollback")
    assert (code, json.loads(lines[-1])["current"], current_release(store)) == (0, releases[2].id, releases[2])


def test_what_cannot_be_served_is_one_line_and_changes_nothing(run, store, releases):
    store.write_bytes(next(iter(releases[0].files)), b"torn")
    code, lines, err = run("promote", releases[0].id)
    assert (code, lines) == (2, []) and "is damaged" in err
    code, _, err = run("promote", "nope")
    assert code == 2
    assert err.strip() == f"error: there is no release 'nope'; there are: {', '.join(r.id for r in releases)}"
    assert current_release(store) == releases[2]


@pytest.mark.parametrize("words", [[], ["promote"], ["remove"], ["rollback", "x"]])
def test_a_wrong_word_changes_nothing(run, store, releases, words):
    promote(store, releases[0].id)
    code, _, err = run(*words)
    assert code == 2
    assert "usage" in err
    assert current_release(store) == releases[0]
