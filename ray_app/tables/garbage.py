"""Delete what nothing refers to: old table and model versions, ledger rows of no release, left-over temporary files."""

import logging
from dataclasses import dataclass
from datetime import date, timedelta

from ray_app.base.storage import Storage
from ray_app.tables.current import read_current
from ray_app.tables.keys import KeySet
from ray_app.tables.ledger import Ledger, today
from ray_app.tables.manifest import manifest_path, read_manifest, read_output_files
from ray_app.tables.release import list_releases, read_parts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class GarbageCounts:
    """Counts of what was deleted."""

    folders: int  # versions of tables and models, and recipes of ledgers
    ledger_rows: int
    temporary_files: int


def collect_all(store: Storage, keep_days: int = 0) -> GarbageCounts:
    """Delete unreferenced data under a run's root. Must not run beside a job that writes there.

    Kept are: every file that a manifest or a release names, those of experiments included (delete `manifests/variants/NAME`
    to let go of one), ledger rows that a release or a `soft_labels` table holds, and the zero-shot vectors, which any later stage may look up again. Whatever else is needed later is computed
    again.

    Args:
        store: Of the run.
        keep_days: Results of today and the days before it, so many in all, stay: other days' samples may need their labels.
    """
    names = [path.removeprefix("manifests/").removesuffix(".json") for path in store.list_files("manifests", ".json")]
    manifests = [manifest for name in names if (manifest := read_manifest(store, name)) is not None]
    releases = list_releases(store)
    named = [output.path for manifest in manifests for output in manifest.outputs.values()]
    # What the next changes are measured from (`RetrainPolicy`): without it all models would be trained again.
    named += [manifest.pin_texts.path for manifest in manifests if manifest.pin_texts is not None]
    named += [source.path for release in releases for source in release.sources.values()]
    files = [path for root in ("tables", "models") for path in store.list_files(root)]
    dropped = sorted(set(map(_version, files)) - set(map(_version, named)))
    for folder in [*dropped, "tmp"]:  # of jobs that were killed, and whose inputs have changed since
        store.delete(folder)

    rows, since = 0, today() - timedelta(days=keep_days - 1) if keep_days else None
    if releases:
        rows += _collect(store, "pin_embeddings", referenced_keys(store), since)
    labels = {made.content_hash: made for m in manifests if (made := m.outputs.get("soft_labels")) is not None}
    if labels:
        tables = (read_output_files(store, made, ["content_key"]) for made in labels.values())
        kept = KeySet.of(table["content_key"] for some in tables for table in some)
        rows += _collect(store, "soft_labels", kept, since)
    counts = GarbageCounts(folders=len(dropped), ledger_rows=rows, temporary_files=store.delete_temporary_files())
    logger.info("garbage: %s (manifests kept: %s)", counts, [manifest_path(m.stage) for m in manifests])
    return counts


def collect_releases(store: Storage, keep: int) -> list[str]:
    """Delete old and half-written releases; returns their ids. Must not run beside a publish.

    Args:
        keep: How many of the newest stay. The one that is served and the one served before always stay.
    """
    now = read_current(store)
    complete = [release.id for release in list_releases(store)]
    staying = set(complete[-keep:]) if keep > 0 else set()
    if now is not None:
        staying.add(now.id)
        staying.update(release_id for release_id in complete if release_id == now.previous)  # unreadable: no way back
    folders = {path.split("/")[1] for path in store.list_files("releases") if path.count("/") > 1}
    dropped = sorted(folders - staying)
    for release_id in dropped:
        store.delete(f"releases/{release_id}/release.json")  # first: then a crash leaves what counts as half-written
        store.delete(f"releases/{release_id}")
    return dropped


def referenced_keys(store: Storage) -> KeySet:
    """Content keys that some release holds: what `Ledger.collect_garbage` must keep."""
    parts = (part for release in list_releases(store) for part in read_parts(store, release))
    return KeySet.of(part["content_key"] for part in parts)


def _version(path: str) -> str:
    """The folder of one version of a table or a model."""
    return "/".join(path.split("/")[:3])


def _collect(store: Storage, table: str, keys: KeySet, since: date | None) -> int:
    """Rows dropped from the ledgers of all recipes, each of which has a schema of its own, such as vectors of another dimension."""
    ledgers = (Ledger.found(store, table, recipe) for recipe in store.list_folders(f"ledger/{table}"))
    return sum(ledger.collect_garbage(keys, since) for ledger in ledgers if ledger is not None)
