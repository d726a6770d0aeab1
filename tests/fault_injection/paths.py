"""Import this first: it makes the other test folders, the pipelines and the benchmarks importable, here and in children."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT / part) for part in ("tests/fault_injection", "tests/ray", "tests", "pipelines", "benchmarks", ".")]

sys.path[:0] = PATHS  # in front: pipelines have names that are common
os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
