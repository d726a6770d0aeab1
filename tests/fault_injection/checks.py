"""What must hold after a fault: nothing is published half, and after a rerun all is as if there had been none."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from world import LEDGERS, World

from ray_app.base.errors import UserError
from ray_app.base.storage import Storage, decode_table
from ray_app.tables.current import current_release
from ray_app.tables.manifest import Manifest, Output, read_manifest, read_output
from ray_app.tables.release import is_complete, open_release

_SAME_COUNTS = ("rows_in", "rows_out", "rows_quarantined", "without_vector", "errors")


@dataclass
class Verdict:
    """What a disturbed and repeated stage has made of the rows. Without faults all is 0 and empty."""

    lost: int = 0  # rows of the fault-free tables that are not there
    duplicated: int = 0  # rows that are there more often than in them, and keys that stand twice in a ledger
    repeated: int = 0  # rows whose work was begun again; the price of a fault, no harm
    wrong: list[str] = field(default_factory=list)  # what else differs

    @property
    def good(self) -> bool:
        """Whether the fault left no trace."""
        return not (self.lost or self.duplicated or self.wrong)


def published_half(store: Storage, stage: str) -> list[str]:
    """What is official after the fault, before it is fixed, and is not complete."""
    found = []
    try:
        manifest = read_manifest(store, stage)
        for output in manifest.outputs.values() if manifest else ():
            _require_whole(store, output)
    except UserError as error:
        found.append(f"manifest of {stage}: {error}")
    try:
        release = current_release(store)
        if release is not None:
            open_release(store, release)
            # Of another stage's outputs, which the harness has taken away, the release may lack some before the fault.
            if stage == "embed" and not is_complete(store, release.id):
                found.append(f"CURRENT names {release.id}, which lacks files")
    except UserError as error:
        found.append(f"CURRENT: {error}")
    return found


def compare(world: World, store: Storage, stage: str) -> Verdict:
    """A finished stage against the fault-free run."""
    verdict = Verdict()
    reference = read_manifest(Storage(str(world.reference)), stage)
    assert reference is not None
    try:
        manifest = read_manifest(store, stage)
        if manifest is None:
            verdict.wrong.append(f"{stage} never finished")
            return verdict
        _compare_outputs(stage, world, store, reference, manifest, verdict)
        verdict.wrong += published_half(store, stage)
    except UserError as error:
        verdict.wrong.append(str(error))
        return verdict
    verdict.repeated = manifest.counts.get("recomputed_rows", 0)
    for name in _SAME_COUNTS:
        if manifest.counts.get(name) != reference.counts.get(name):
            verdict.wrong.append(f"{name} is {manifest.counts.get(name)}, not {reference.counts.get(name)}")
    if stage == "evaluate" and manifest.info["rows"] != reference.info["rows"]:
        verdict.wrong.append("the report has other figures")
    if stage == "embed":
        current = current_release(store)
        if current is None or current.id != reference.info["release"]:
            verdict.wrong.append(f"CURRENT is {current and current.id}, not {reference.info['release']}")
    if stage in LEDGERS:
        verdict.duplicated += _repeated_keys(store, LEDGERS[stage])
    return verdict


def _compare_outputs(
    stage: str, world: World, store: Storage, reference: Manifest, manifest: Manifest, verdict: Verdict
) -> None:
    if manifest.outputs.keys() != reference.outputs.keys():
        verdict.wrong.append(f"outputs are {sorted(manifest.outputs)}, not {sorted(reference.outputs)}")
        return
    for name, wanted in reference.outputs.items():
        found = manifest.outputs[name]
        _require_whole(store, found)
        if found.content_hash == wanted.content_hash:
            continue
        if not _is_table(wanted):
            if stage != "evaluate":  # its report tells how long things took; its figures are compared below
                verdict.wrong.append(f"{name} is another one")
            continue
        theirs = _rows(read_output(Storage(str(world.reference)), wanted))
        ours = _rows(read_output(store, found))
        lost, more = (theirs - ours).total(), (ours - theirs).total()
        verdict.lost += lost
        verdict.duplicated += more
        if not lost and not more:
            verdict.wrong.append(f"{name} has the same rows with other values")


def _require_whole(store: Storage, output: Output) -> None:
    """Raises UserError where a file is gone or not what was written."""
    if _is_table(output):
        read_output(store, output)
    else:
        for path in output.files:
            store.read_bytes(path)


def _is_table(output: Output) -> bool:
    return all(path.endswith(".parquet") for path in output.files)


def _rows(table: pa.Table) -> Counter:
    """Rows by what they are, which is all but numbers that were computed."""
    names = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_integer(f.type)]
    return Counter(tuple(row.values()) for row in table.select(names).to_pylist())


def _repeated_keys(store: Storage, table: str) -> int:
    """Keys that stand more than once in the files of a recipe."""
    keys: dict[str, list[Any]] = {}
    for path in store.list_files(f"ledger/{table}", ".parquet"):
        block = decode_table(store.read_bytes(path), path, ["content_key"])
        keys.setdefault(path.split("/")[2], []).extend(block["content_key"].to_pylist())
    return sum(len(found) - len(set(found)) for found in keys.values())
