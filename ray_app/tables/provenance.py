"""Versions of packages and of this code, for manifests."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("ray-app-relevance", "ray", "torch", "transformers", "pyarrow", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def git_commit() -> str | None:
    """Commit of the checkout that this code runs from; None outside a checkout, in a repository of others too."""
    try:
        out = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "--short=12", "HEAD"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    top, _, commit = out.stdout.strip().partition("\n")
    return commit if Path(top) == _ROOT else None
