"""The wheel works without the checkout: programs, configs, the page, and the demo's words and models are in it."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USE = """
import json, ray_app, serve.local
from importlib.resources import files
from ray_app.tables.provenance import git_commit
cfg = ray_app.load_config("demo.yaml", ["output=run", "demo.num_pins=200", "demo.ground_truth_queries=20", "demo.labelled_queries=5"])
made = ray_app.run(cfg, ["demo", "ingest"])
page = sorted(path.name for path in (files("serve") / "page").iterdir())
print(json.dumps({
    "home": ray_app.__file__, "pins": made["ingest"].counts["pins_out"], "version": made["ingest"].versions["ray-app-relevance"],
    "page": page, "serves": serve.local.CONFIG.exists(), "commit": git_commit(),
    "experiments": [ray_app.load_config("chorus.yaml").output, len(cfg.experiments)],
}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python of an environment with the wheel, and with what this one has but for the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    tree = (
        folder / "tree"
    )  # setuptools would leave its files in the checkout, and take old ones from there into the next wheel
    for name in ("ray_app", "serve", "pipelines", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", folder, tree], check=True, capture_output=True, text=True
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env/bin/python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    # Not through a .pth of that folder: what is editable there stays out.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", wheel], check=True, capture_output=True, text=True
    )
    return python


def test_it_runs_outside_the_checkout(python, tmp_path):
    done = subprocess.run([python, "-c", USE], cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not Path(found["home"]).is_relative_to(ROOT)
    assert (found["pins"], found["commit"], found["serves"]) == (200, None, True)
    assert found["version"].count(".") == 2
    assert {"app.js", "index.html", "style.css"} <= set(found["page"])
    assert found["experiments"][1] >= 1


def test_its_programs_find_its_configs_by_name(python, tmp_path):
    command = [python, "-m", "pipelines.report", "--config", "demo.yaml", "--set", f"output={tmp_path}/nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "pipelines/" in done.stderr
    missing = subprocess.run([*command[:4], "absent.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert "demo.yaml" in missing.stderr and missing.returncode == 2
