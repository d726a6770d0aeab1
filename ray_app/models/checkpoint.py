"""Model folders in storage: `transformers` files, plus one small head file and `model.json`.

`files.json` is written last: a folder without it was never finished and is not a model.
"""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ray_app.base.cache_folder import cache_folder, found_or_made, lock_path, put_in_place, remove
from ray_app.base.config import DistillConfig, TeacherConfig
from ray_app.base.errors import UserError, one_line
from ray_app.base.hashing import sha256_of
from ray_app.base.storage import Storage, StoredFile
from ray_app.models.calibration import FILE as CALIBRATION_FILE
from ray_app.models.calibration import Calibration
from ray_app.tables.manifest import Output, hash_files
from ray_app.tables.model_files import changed_error, intact_files, model_files, read_file, read_model_file

_WEIGHTS = ".safetensors"
_UNUSED_SEC = 30 * 86_400.0


def save_model(
    model: Any, store: Storage, folder: str, history: Sequence[dict[str, float | None]], extra_files: dict[str, str]
) -> None:
    """Write a model (anything with `save_pretrained(path)`), its training history and further texts under `folder`."""
    with tempfile.TemporaryDirectory() as temp:
        model.save_pretrained(Path(temp))
        files = store.write_folder(folder, Path(temp))
    files += [store.write_bytes(f"{folder}/{name}", text.encode()) for name, text in sorted(extra_files.items())]
    files.append(store.write_json(f"{folder}/history.json", history))
    store.write_json(f"{folder}/files.json", [asdict(file) for file in files])


def finished_model(store: Storage, folder: str) -> Output:
    """A finished model folder as an output.

    Raises:
        UserError: it was never finished.
    """
    files = model_files(store, folder)
    if files is None:
        raise UserError(f"{folder} holds no finished model; run the stage that trains it again")
    name = folder.split("/")[-2]
    content = hash_files(folder, {file.path: file.sha256 for file in files})
    return Output(name=name, path=folder, files=[file.path for file in files], rows=0, content_hash=content)


def load_calibration(store: Storage, output: Output) -> Calibration | None:
    """A model's temperatures; None if it has none."""
    if f"{output.path}/{CALIBRATION_FILE}" not in output.files:
        return None
    return Calibration.from_json(read_model_file(store, output, CALIBRATION_FILE).decode())


def calibration_info(store: Storage, output: Output) -> dict[str, Any] | None:
    """A model's temperatures for a manifest."""
    calibration = load_calibration(store, output)
    return None if calibration is None else asdict(calibration)


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


def read_about(folder: Path) -> dict[str, Any]:
    """Content of a model folder's `model.json`."""
    about: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return about


def read_teacher_config(folder: Path) -> TeacherConfig:
    """The settings that a teacher's folder was trained with."""
    return TeacherConfig.model_validate(read_about(folder)["config"])


def reads_segments(folder: Path) -> bool:
    """Return True if a teacher was trained with token_type_ids; teachers older than this setting were not."""
    return bool(read_about(folder).get("token_type_ids", False))


def read_distill_config(folder: Path) -> DistillConfig:
    """The settings that a student's folder was trained with."""
    return DistillConfig.model_validate(read_about(folder)["config"])
