"""Model folders on this machine's disk, where libraries can open and map their files."""

import os
import time
from functools import lru_cache, partial
from pathlib import Path

from ray_app.base.cache_folder import cache_folder, found_or_made, lock_path, put_in_place, remove
from ray_app.base.errors import UserError, one_line
from ray_app.base.hashing import sha256_of
from ray_app.base.storage import Storage, StoredFile
from ray_app.tables.manifest import Output
from ray_app.tables.model_files import changed_error, intact_files, read_file

_WEIGHTS = ".safetensors"
_UNUSED_SEC = 30 * 86_400.0


def local_folder(store: Storage, output: Output, weights: bool = True) -> Path:
    """Local folder with the model's unchanged files: the storage itself if it is local, else a copy.

    All files are read once per process to compare their hashes (some 2 s per GB). A copy is made by the first process that needs
    it, next to its place, and renamed: it is never seen incomplete, and mapped files are never written to.

    Args:
        weights: False: the language model's weights need not be there, only tokenizer, settings and head.

    Raises:
        UserError: a file of the model is missing or was changed.
    """
    files = [f for f in intact_files(store, output) if weights or "/lm/" not in f.path or not f.path.endswith(_WEIGHTS)]
    if store.is_local:
        path = Path(store.full_path(output.path))
        for file in files:
            name = file.path.removeprefix(f"{output.path}/")
            if not (path / name).is_file():
                raise UserError(f"the {output.name} model lacks {file.path}; delete {output.path} and train it again")
            if _sha256(path / name) != file.sha256:
                raise changed_error(store, file)
        return path
    models = cache_folder("models")
    path = models / (output.content_hash + ("" if weights else "-light"))
    wanted = {file.path.removeprefix(f"{output.path}/"): file for file in files}
    found_or_made(path, lambda: _is_whole(path, wanted) or None, partial(_download, store, wanted, path))
    os.utime(path)  # see `_drop_unused`
    return path


def _is_whole(path: Path, wanted: dict[str, StoredFile]) -> bool:
    try:
        return all(_sha256(path / name) == file.sha256 for name, file in wanted.items())
    except OSError:
        return False


def _download(store: Storage, wanted: dict[str, StoredFile], path: Path) -> None:
    _drop_unused(path.parent)
    try:
        with put_in_place(path) as temp:
            for name, file in wanted.items():
                (temp / name).parent.mkdir(parents=True, exist_ok=True)
                (temp / name).write_bytes(read_file(store, file))
            remove(path)
    except OSError as error:
        raise UserError(f"cannot copy a model to {path}: {one_line(error)}; is the disk full?") from None


def _drop_unused(models: Path) -> None:
    """Delete copies unused for a month, as each night may bring a new student."""
    for path in models.iterdir():
        if path.is_dir() and path.stat().st_mtime < time.time() - _UNUSED_SEC:
            remove(path)
            lock_path(path).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    found = path.stat()
    return _sha256_of(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1000)
def _sha256_of(path: Path, *_: int) -> str:
    """Check once per process and state of the file, as stages request the same folder for each block."""
    return sha256_of(path)
