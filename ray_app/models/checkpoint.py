"""Model folders in storage: what `transformers` reads, plus one small head file and `model.json`.

`files.json` is written last: a folder without it was never finished and is not a model.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray_app.config import DistillConfig, TeachConfig
from ray_app.errors import UserError
from ray_app.manifest import Output, hash_files
from ray_app.models.calibration import FILE as CALIBRATION_FILE
from ray_app.models.calibration import Calibration
from ray_app.storage import Storage, StoredFile


def save_model(
    model: Any, store: Storage, folder: str, history: Sequence[dict[str, float | None]], extra_files: dict[str, str]
) -> None:
    """Write a model (anything with `save_pretrained(path)`), its training history and further texts under `folder`."""
    with tempfile.TemporaryDirectory() as temp:
        model.save_pretrained(Path(temp))
        paths = sorted(p for p in Path(temp).rglob("*") if p.is_file())
        files = [store.write_bytes(f"{folder}/{p.relative_to(temp).as_posix()}", p.read_bytes()) for p in paths]
    files += [store.write_bytes(f"{folder}/{name}", text.encode()) for name, text in sorted(extra_files.items())]
    files.append(store.write_json(f"{folder}/history.json", history))
    store.write_json(f"{folder}/files.json", [asdict(file) for file in files])


def model_files(store: Storage, folder: str) -> list[StoredFile] | None:
    """The files of a finished model folder, or None if it was never finished."""
    if not store.exists(f"{folder}/files.json"):
        return None
    return [StoredFile(**file) for file in store.read_json(f"{folder}/files.json")]


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
    path = f"{output.path}/{CALIBRATION_FILE}"
    return Calibration.from_json(store.read_bytes(path).decode()) if path in output.files else None


def calibration_info(store: Storage, output: Output) -> dict[str, Any] | None:
    """A model's temperatures for a manifest."""
    calibration = load_calibration(store, output)
    return None if calibration is None else asdict(calibration)


def local_folder(store: Storage, output: Output, weights: bool = True) -> Path:
    """A folder of this machine with the model's files: the storage itself if it is local, else a download.

    Args:
        store: Where the model lies.
        output: The model.
        weights: False: the language model's weights need not be there, only tokenizer, settings and head.

    Raises:
        UserError: a file of the model is missing.
    """
    if store.is_local:
        path = Path(store.full_path(output.path))
        missing = [f for f in output.files if not store.exists(f)]
        if missing:
            raise UserError(f"the {output.name} model lacks {missing[0]}; delete {output.path} and train it again")
        return path
    path = Path(tempfile.gettempdir()) / "ray_app_models" / (output.content_hash + ("" if weights else "-light"))
    if not (path / "complete").exists():
        for file in output.files:
            if not weights and "/lm/" in file and file.endswith(".safetensors"):
                continue
            target = path / file.removeprefix(f"{output.path}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(store.read_bytes(file))
        (path / "complete").write_text(json.dumps(output.files))
    return path


def read_about(folder: Path) -> dict[str, Any]:
    """What a model's folder says of itself: `model.json`."""
    about: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return about


def read_teach_config(folder: Path) -> TeachConfig:
    """The settings that a teacher's folder was trained with."""
    return TeachConfig.model_validate(read_about(folder)["config"])


def reads_segments(folder: Path) -> bool:
    """Whether a teacher was trained with token_type_ids; one of before there were any was not."""
    return bool(read_about(folder).get("token_type_ids", False))


def read_distill_config(folder: Path) -> DistillConfig:
    """The settings that a student's folder was trained with."""
    return DistillConfig.model_validate(read_about(folder)["config"])
