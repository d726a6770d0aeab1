"""Files of a model folder, checked against the hashes that were stored with them."""

import hashlib
from collections.abc import Callable

import pyarrow as pa

from ray_app.base.columns import aligned
from ray_app.base.errors import UserError
from ray_app.base.storage import CorruptFileError, Storage, StoredFile, is_below
from ray_app.tables.buckets import write_by_pin
from ray_app.tables.manifest import Manifest, Output, check_output, is_hash, read_output
from ray_app.tables.stage_run import StageRun


def model_files(store: Storage, folder: str) -> list[StoredFile] | None:
    """The files of a finished model folder, or None if it was never finished.

    Raises:
        CorruptFileError: its list names files elsewhere, or is none.
    """
    path = f"{folder}/files.json"
    if not store.exists(path):
        return None
    try:
        files = [StoredFile(**file) for file in store.read_json(path)]
    except TypeError:
        files = []
    if not files or not all(is_below(file.path, folder) and is_hash(file.sha256) for file in files):
        raise CorruptFileError(
            f"{store.shown}/{path} is not a valid list of that model's files; delete {folder} and train it again"
        )
    return files


def intact_files(store: Storage, output: Output) -> list[StoredFile]:
    """The files of a model with their hashes, for which the output's own hash vouches.

    Raises:
        UserError: it was never finished, or its list was changed.
    """
    files = model_files(store, output.path)
    if files is None:
        raise UserError(f"the {output.name} model lacks files.json; delete {output.path} and train it again")
    check_output(store, output, {file.path: file.sha256 for file in files})
    return files


def read_model_file(store: Storage, output: Output, name: str) -> bytes:
    """One file of a model as it was written.

    Raises:
        UserError: the model has none of that name, or it is gone or was changed.
    """
    path = f"{output.path}/{name}"
    for file in intact_files(store, output):
        if file.path == path:
            return read_file(store, file)
    raise UserError(f"the {output.name} model lacks {path}; delete {output.path} and train it again")


def read_file(store: Storage, file: StoredFile) -> bytes:
    """A file's bytes, compared with its stored hash."""
    data = store.read_bytes(file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise changed_error(store, file)
    return data


def changed_error(store: Storage, file: StoredFile) -> CorruptFileError:
    """The error of a file that is not what its stage wrote."""
    folder = file.path.rpartition("/")[0]
    return CorruptFileError(f"{store.shown}/{file.path} was changed; delete {folder} and run its stage again")


def add_model(run: StageRun, name: str, folder: str) -> Output:
    """Register a finished model folder as an output of the run."""
    files = model_files(run.store, folder)
    assert files is not None, f"{folder} has no list of its files: the model was never finished"
    return run.add_output(name, folder, files)


def keep_model(
    run: StageRun, finished: Manifest, *, model: str, pins: str, others: str, counts: Callable[[pa.Table], dict[str, int]]
) -> Manifest:  # fmt: skip
    """Finish a run of which few pins have changed with the model and the tables of the earlier one (`Stage.adapt`).

    The next change is measured from the pins that the model was trained on, so small changes add up.

    Args:
        finished: The earlier run, as `run.finished` tolerates it.
        model: Name of the model output, which is kept.
        pins: Name of the table by pin_id, which gets the present pins' rows; new pins have nulls.
        others: Name of the table that is copied unchanged.
        counts: Table of pins -> counts of the manifest.
    """
    store, policy = run.store, run.retrain_policy
    assert policy is not None and finished.pin_texts is not None
    table = aligned(
        read_output(store, finished.output(pins)), read_output(store, policy.pin_texts, ["pin_id"])["pin_id"]
    )
    write_by_pin(run, pins, table, policy.pin_texts.num_buckets)
    run.write_table(others, read_output(store, finished.output(others)))
    add_model(run, model, finished.output(model).path)
    info = {"kept": finished.fingerprint} | finished.info
    return run.finish(counts(table), info=info, pin_texts=finished.pin_texts)
