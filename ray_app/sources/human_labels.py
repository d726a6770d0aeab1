"""Human labels from a file outside of `ingest`, checked against the catalogue."""

from collections.abc import Callable

import pyarrow as pa

from ray_app.base.config import Config
from ray_app.sources.source_reader import open_human_labels, read_human_labels
from ray_app.sources.validate import PinIds, settle


def load_human_labels(
    cfg: Config,
    path: str,
    known_pins: Callable[[list[str | None]], pa.ChunkedArray],
    key: str = "evaluate.human_labels",
) -> tuple[pa.Table, pa.Table]:
    """Human labels of another file, read and checked like those of `ingest.human_labels`.

    Args:
        cfg: Its adapter settings apply: a Chorus file has the columns query, docid, rating; a table its column map.
        known_pins: Ids that the labels name -> those that a pin of the catalogue has.

    Returns:
        Valid rows (HUMAN_LABELS) and the others (QUARANTINE).

    Raises:
        UserError: there is no such file, or it lacks a column.
    """
    opened = open_human_labels(cfg, path, key)
    labels = read_human_labels(opened)
    return settle([labels], opened.rules, PinIds.of(known_pins(labels["pin_id"].to_pylist())))
