"""What this machine keeps, native code among it, lies where nobody else can write."""

import os
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest
from minimal import message

from ray_app.base.cache_folder import CACHE_ROOT, cache_folder, private_folder
from ray_app.base.config import load_config, section_hash
from ray_app.base.storage import Storage
from ray_app.models import packed
from ray_app.online.compiled_tower import CompiledTower
from serve.app import local_cache_dir

pytestmark = pytest.mark.usefixtures("machine")

STRANGER = 54_321  # a user id that nobody has
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user takes root")


def serve_folder(*overrides):
    cfg = load_config("configs/demo.yaml", ["output=s3://bucket/run", *overrides])
    return local_cache_dir(cfg, Storage("s3://bucket/run"))


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def make_folder(path, mode=0o700, owner=None):
    """With parents, whatever the umask."""
    path.mkdir(parents=True)
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner, owner)
    return path


def link(path, target, owner=None):
    path.symlink_to(target)
    if owner is not None:
        os.chown(path, owner, owner, follow_symlinks=False)


# --- where ---


def test_a_replica_keeps_its_files_in_the_users_cache_and_nobody_else_can_read_them(machine):
    before = os.umask(0)
    try:
        found = serve_folder()
    finally:
        os.umask(before)
    assert found.parents[1] == machine / "home/.cache/relevance"
    assert [mode(path) for path in (found, *found.parents[:3])] == [0o700] * 4


def test_the_standards_variable_is_followed_and_a_relative_one_ignored(machine, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(machine / "elsewhere"))
    assert cache_folder("models") == machine / "elsewhere/relevance/models"
    monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
    assert cache_folder("models") == machine / "home/.cache/relevance/models"


@pytest.mark.parametrize("home", ["/proc/no/home", "/dev/null", "relative"])
def test_without_a_home_that_can_be_written_it_is_a_folder_of_this_user(machine, monkeypatch, home):
    monkeypatch.chdir(machine)
    monkeypatch.setenv("HOME", home)
    found = cache_folder("models")
    assert found == machine / f"tmp/relevance-{os.geteuid()}/models"
    assert mode(found.parent) == mode(found) == 0o700


def test_a_pod_says_which_folder_is_its_own(machine, monkeypatch):
    """An emptyDir is root's and writable by all, without the sticky bit."""
    volume = make_folder(machine / "volume", 0o777)
    assert "can be written by others" in message(lambda: private_folder(volume / "x"))
    monkeypatch.setenv(CACHE_ROOT, str(volume))
    assert cache_folder("models") == volume / f"relevance-{os.geteuid()}/models"
    assert serve_folder(f"serve.local_cache_dir={volume}").parent == volume
    make_folder(volume / "mine", 0o777)
    assert "can be written by others" in message(lambda: private_folder(volume / "mine/x"))


# --- what is refused ---


def strangers_link(home):
    make_folder(home / "other")
    link(home / ".cache", home / "other", STRANGER)


def link_into_a_writable_folder(home):
    make_folder(home / "open", 0o777)
    make_folder(home / "open/x")
    link(home / ".cache", "open/x")


PLANTS = {
    "writable cache": lambda home: make_folder(home / ".cache", 0o777),
    "writable by the group": lambda home: make_folder(home / ".cache/relevance", 0o770),
    # Sticky protects the names in it from others, not from holding what others wrote.
    "writable itself": lambda home: make_folder(home / ".cache/relevance/serve" / section_hash("s3://bucket/run"), 0o1777),
    "of a stranger": lambda home: make_folder(home / ".cache/relevance", owner=STRANGER),
    "a stranger's home": lambda home: os.chown(home, STRANGER, STRANGER),
    "a stranger's link": strangers_link,
    "a link into a writable folder": link_into_a_writable_folder,
}  # fmt: skip


@needs_root
@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_a_folder_that_others_can_change_is_refused(machine, plant):
    plant(machine / "home")
    said = message(serve_folder)
    assert str(machine / "home") in said
    assert "serve.local_cache_dir" in said and CACHE_ROOT in said


@needs_root
@pytest.mark.parametrize("options", [{"owner": STRANGER}, {"mode": 0o777}], ids=["planted", "left open"])
def test_local_dir_of_the_config_is_looked_at_too(machine, options):
    local = make_folder(machine / "tmp/local", **options)
    assert str(local) in message(lambda: serve_folder(f"serve.local_cache_dir={local}"))


@needs_root
def test_a_planted_folder_in_the_temporary_one_is_refused(machine, monkeypatch):
    """The name of the last resort can be guessed; who comes first must not decide what is loaded."""
    monkeypatch.setenv("HOME", "/proc/no/home")
    planted = make_folder(machine / f"tmp/relevance-{os.geteuid()}", owner=STRANGER)
    assert str(planted) in message(lambda: cache_folder("models"))
    planted.rmdir()  # nothing was put into it either
    link(planted, machine / "home", STRANGER)
    assert str(planted) in message(lambda: cache_folder("models"))


def test_links_of_ones_own_are_followed(machine):
    """As to a larger disk."""
    (machine / "disk").mkdir()
    (machine / "home/.cache").symlink_to("../disk")
    assert (cache_folder("models") / ".").resolve() == machine / "disk/relevance/models"


def test_links_in_a_circle_are_one_line(machine):
    (machine / "home/.cache").symlink_to(machine / "home/.cache")
    said = message(lambda: private_folder(machine / "home/.cache/x"))
    assert "cannot be used" in said


def test_a_folder_that_others_could_only_read_is_closed(machine):
    """An older version made it so."""
    old = make_folder(machine / "home/.cache/relevance/models", 0o755)
    (old / "kept").write_text("x")
    assert (mode(cache_folder("models")), (old / "kept").read_text()) == (0o700, "x")


# --- native code ---


@pytest.fixture
def package(machine):
    """A .pt2 whose code leaves a mark, saying from which file it was loaded, when it is mapped."""
    source, library = machine / "code.c", machine / "code.so"
    source.write_text(
        """
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdio.h>
        __attribute__((constructor)) static void run(void) {
            Dl_info info; dladdr((void *)run, &info);
            FILE *file = fopen("%s", "w"); fputs(info.dli_fname, file); fclose(file);
        }
        """
        % (machine / "mark")
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    folder = make_folder(machine / "home/engines")
    with zipfile.ZipFile(folder / "x.pt2", "w") as archive:
        archive.write(library, "data/model.so")
    (folder / "x.pt2").chmod(0o600)
    return folder / "x.pt2"


def test_native_code_is_loaded_from_its_own_folder_and_from_nowhere_else(machine, package):
    """Not by way of the temporary folder either."""
    with pytest.raises(AttributeError, match="AOTInductor"):  # there is no model in it
        CompiledTower(package)
    assert Path((machine / "mark").read_text()).is_relative_to(package.parent)
    assert list(package.parent.iterdir()) == [package]


@needs_root
@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("how", ["open", "strange"])
def test_native_code_that_others_could_have_written_is_not_loaded(machine, package, what, how):
    path = package if what == "file" else package.parent
    if how == "open":
        path.chmod(0o777)
    else:
        os.chown(path, STRANGER, STRANGER)
    assert str(path) in message(lambda: CompiledTower(package))
    assert not (machine / "mark").exists()


def test_torchs_compiled_code_lies_in_the_cache_too(machine, monkeypatch):
    """Its default is a folder of /tmp with the user's name, whoever made it."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr("torch.compile", lambda function, **_: function)
    packed._flex.__wrapped__("cuda")
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert (folder, mode(folder)) == (machine / "home/.cache/relevance/torchinductor", 0o700)
