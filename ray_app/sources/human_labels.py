"""Human labels from a file outside of `ingest`, checked against the catalogue."""

import pyarrow as pa

from ray_app.base.config import Config
from ray_app.sources.source_reader import open_human_labels, read_human_labels
from ray_app.sources.validate import PinIds, settle


def load_human_labels(
    cfg: Config, path: str, pin_ids: pa.Array | pa.ChunkedArray, key: str = "evaluate.human_labels"
) -> tuple[pa.Table, pa.Table]:
    """Human labels of another file, read and checked like those of `ingest.human_labels`.

    Args:
        cfg: Its adapter settings apply: a Chorus file has the columns query, docid, rating; a table its column map.

    Returns:
        Valid rows (HUMAN_LABELS) and the others (QUARANTINE).

    Raises:
        UserError: there is no such file, or it lacks a column.
    """
    opened = open_human_labels(cfg, path, key)
    return settle([read_human_labels(opened)], opened.rules, PinIds.of(pin_ids))
