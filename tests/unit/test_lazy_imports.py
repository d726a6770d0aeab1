"""A room that pulls in Ray or torch makes every import of it cost seconds, and ties pure code to a cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PACKAGE = Path(__file__).parents[2] / "ray_app"
ROOMS = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")} - {"__init__"})  # fmt: skip
# A torch module's class statement needs torch: whoever uses these imports them late.
EXEMPT = (
    "train_worker.py",
    "trainer.py",
    "cross_encoder.py",
    "grade_head.py",
    "bi_encoder.py",
    "tower_encoder.py",
)

# One interpreter with the light libraries loaded, forked once per room: each room is imported into a fresh copy of it.
PROBE = """
import json, os, sys, importlib, traceback
import numpy, pyarrow, pyarrow.compute, pyarrow.fs, pyarrow.parquet, pydantic, yaml
HEAVY = ("ray", "torch", "transformers", "vllm")
assert not [name for name in HEAVY if name in sys.modules]
for room, modules in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        found = []
        try:
            for name in modules:
                before = set(sys.modules)
                importlib.import_module(name)
                found += [f"{name} loads {heavy}" for heavy in HEAVY if heavy in set(sys.modules) - before]
        except BaseException:
            found.append("failed: " + traceback.format_exc())
        print(json.dumps([room, found]), flush=True)
        os._exit(0)
    os.wait()
"""


def modules_of(room):
    """Dotted names of a room's modules, but for the exempt ones."""
    files = sorted((PACKAGE / room).rglob("*.py")) if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]
    paths = [path.relative_to(PACKAGE.parent).with_suffix("") for path in files if path.name not in EXEMPT]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


@pytest.fixture(scope="module")
def loaded():
    """room -> its modules that have loaded a heavy package."""
    rooms = json.dumps({room: modules_of(room) for room in ROOMS})
    done = subprocess.run([sys.executable, "-c", PROBE, rooms], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_loads_nothing_heavy(loaded, room):
    assert loaded[room] == []
