"""Model folders in storage: `transformers` files, plus one small head file and `model.json`.

`files.json` is written last: a folder without it was never finished and is not a model.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray_app.base.config import DistillConfig, TeacherConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.models.calibration import FILE as CALIBRATION_FILE
from ray_app.models.calibration import Calibration
from ray_app.tables.manifest import Output, hash_files
from ray_app.tables.model_files import model_files, read_model_file


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
