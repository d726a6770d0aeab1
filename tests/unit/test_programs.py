"""Programs answer `--help` and a wrong argument at once: nothing heavy is imported before the arguments are known."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(path.stem for path in (ROOT / "pipelines").glob("*.py"))

# One interpreter, forked once per program.
PROBE = """
import contextlib, io, json, os, runpy, sys
HEAVY = ("matplotlib", "numpy", "pandas", "pyarrow", "pydantic", "ray", "scipy", "torch", "transformers")
for name in sys.argv[1:]:
    if os.fork() == 0:
        sys.argv, shown, code = [name, "--help"], io.StringIO(), None
        try:
            with contextlib.redirect_stdout(shown):
                runpy.run_path(f"pipelines/{name}.py", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        print(json.dumps([name, code, shown.getvalue(), [heavy for heavy in HEAVY if heavy in sys.modules]]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def helped():
    """Program -> (exit code, help, heavy modules that it has loaded)."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *PROGRAMS], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return {name: found for name, *found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_nothing_heavy(helped, program):
    code, shown, heavy = helped[program]
    assert (code, heavy) == (0, [])
    assert f"pipelines/{program}.py --config" in shown or program == "release"
