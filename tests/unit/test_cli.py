"""What the entry points share: a job that Ray runs in a copy of the folder must not write its results there."""

import json
from pathlib import Path

import pytest

from ray_app.base.errors import UserError
from ray_app.cli import leave_copy
from ray_app.stages.order import load_stage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def in_copy(monkeypatch, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.delenv("OLDPWD", raising=False)
    job = {"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    return tmp_path


@pytest.mark.parametrize("variables", [{"OLDPWD": "home"}, {"OLDPWD": "", "RELEVANCE_ROOT": "home"}])
def test_relative_paths_leave_the_copy_and_the_users_root_goes_first(in_copy, monkeypatch, variables):
    for name, folder in variables.items():
        monkeypatch.setenv(name, str(in_copy / folder))
    leave_copy()
    assert Path.cwd() == in_copy / "home"


def test_without_a_root_it_says_how_to_give_one(in_copy):
    with pytest.raises(UserError, match="RELEVANCE_ROOT"):
        leave_copy()


def test_outside_of_such_a_job_nothing_moves(in_copy, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}}))
    here = Path.cwd()
    leave_copy()
    assert Path.cwd() == here


@pytest.mark.parametrize("program", ["caption", "label", "embed"])
def test_each_stage_with_model_work_estimates_its_cost(program):
    stage = load_stage(program)
    assert f'run_model_stage("{program}"' in (ROOT / "pipelines" / f"{program}.py").read_text()
    assert callable(stage.estimate_cost) and callable(stage.retry_errors)
