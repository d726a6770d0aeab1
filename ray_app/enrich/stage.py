"""enrich: pins, boards and search log -> pin_texts."""

import pyarrow.compute as pc

from ray_app.config import Config
from ray_app.enrich.pin_texts import build_pin_texts, num_without_text
from ray_app.manifest import Manifest, StageRun, read_output, require_output
from ray_app.storage import Storage
from ray_app.text import TEXT_VERSION

VERSION = 1


def run(cfg: Config, store: Storage) -> Manifest:
    """Write pin_texts. Every human-labelled query counts as under evaluation: which of them train is decided later.

    It is group-bys over columns, seconds for millions of rows, so it runs here and starts no Ray task.

    Raises:
        UserError: ingest has not run.
    """
    names = ("pins", "boards", "search_log", "human_labels")
    outputs = {name: require_output(store, "ingest", name) for name in names}
    inputs = list(outputs.values())
    stage = StageRun("enrich", cfg, store, version=VERSION, settings=[cfg.enrich, TEXT_VERSION], inputs=inputs)
    if (finished := stage.finished) is not None:
        return finished

    pins, boards, log = (read_output(store, outputs[name]) for name in ("pins", "boards", "search_log"))
    labelled = pc.unique(read_output(store, outputs["human_labels"], columns=["query"])["query"]).to_pylist()
    texts = build_pin_texts(pins, boards, log, set(labelled), cfg.enrich)
    rows_per_file = cfg.ingest.rows_per_file
    parts = [texts.slice(start, rows_per_file) for start in range(0, max(texts.num_rows, 1), rows_per_file)]
    stage.write_table("pin_texts", parts)
    counts = {
        "rows_in": pins.num_rows,
        "rows_out": texts.num_rows,
        "rows_quarantined": 0,
        "pins_without_text": num_without_text(texts),
        "pins_with_board_titles": texts.num_rows - texts["board_titles"].null_count,
        "pins_with_engaged_queries": texts.num_rows - texts["engaged_queries"].null_count,
        "excluded_queries": len(labelled),
    }
    return stage.finish(counts)
