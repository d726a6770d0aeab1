"""Makes the harness importable; it runs in a process of its own, since it changes the environment of its children."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parent / "ray")]
