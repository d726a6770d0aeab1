"""The example of docs/python_api.md, as its reader runs it: three CSV files to answers over HTTP, through the Python API."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ray_app

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "csv_to_ranker.py"


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The tutorial's files."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(import csv.*?)^```", (ROOT / "docs/own_data.md").read_text(), re.M | re.S)
    exec(compile(code, "shop.py", "exec"), {})
    return [str(tmp_path / "runs/shop" / f"{name}.csv") for name in ("products", "searches", "grades")]


def test_the_example_ends_with_ranked_products(shop, tiny_encoder, tmp_path):
    small = [
        f"{section}={tiny_encoder}"
        for section in ("features.zero_shot_model", "train_teacher.base_model", "distill.base_model")
    ]
    small += [
        "train_teacher.num_layers=1",
        "train_teacher.train.epochs=1",
        "distill.train.epochs=1",
        "distill.feature_train.epochs=1",
    ]
    small += [
        "sample.num_pairs=400",
        "evaluate.num_resamples=40",
        "serve.query_encoder_backend=torch",
        f"serve.local_cache_dir={tmp_path}/kept",
    ]
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *shop, *small], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=800
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    shown = done.stdout.splitlines()
    assert any("'system': 'student'" in line for line in shown)
    results = [line.split() for line in shown if re.match(r"S\d{3} ", line)]
    assert all(1 <= float(words[1]) <= 5 for words in results)
    assert len({words[0] for words in results}) == 5


def test_the_documented_names_are_the_api():
    page = (ROOT / "docs" / "python_api.md").read_text()
    assert [name for name in ray_app.__all__ if not hasattr(ray_app, name)] == []
    assert [name for name in ray_app.__all__ if f"`{name}" not in page] == []


def test_a_stage_that_the_config_lacks_is_named(tmp_path):
    cfg = ray_app.load_config("demo.yaml", [f"output={tmp_path}"])
    with pytest.raises(ray_app.UserError, match=r"stages: 'lable' is none of this config's stages: demo, ingest"):
        ray_app.run(cfg, ["lable"])
