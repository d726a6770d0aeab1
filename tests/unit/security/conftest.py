"""A machine on which an attacker may have been first."""

import pytest

from ray_app.base.cache_folder import CACHE_ROOT


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of its own, as a folder: `home`, `tmp`, and no settings of caches."""
    folder = tmp_path / "machine"
    for name in ("home", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    for name in ("XDG_CACHE_HOME", CACHE_ROOT):
        monkeypatch.delenv(name, raising=False)
    return folder
