"""enrich: pins, captions, boards and search log -> pin_texts."""

import pyarrow.compute as pc

from ray_app.config import Config
from ray_app.enrich.pin_texts import PIN_COLUMNS, build_pin_texts, num_without_text
from ray_app.manifest import Manifest, StageRun, read_output, require_output
from ray_app.storage import Storage
from ray_app.text import TEXT_VERSION

VERSION = 1


def run(cfg: Config, store: Storage) -> Manifest:
    """Write pin_texts. Every human-labelled query counts as under evaluation: which of them train is decided later.

    It is group-bys over columns, seconds for millions of rows, so it runs here and starts no Ray task.

    Raises:
        UserError: ingest has not run, or the caption stage, if there is a model for captions.
    """
    names = ("pins", "boards", "search_log", "human_labels")
    outputs = {name: require_output(store, "ingest", name) for name in names}
    captions = None if cfg.caption.model is None else require_output(store, "caption", "captions")
    inputs = [*outputs.values(), *([captions] if captions else [])]
    stage = StageRun("enrich", cfg, store, version=VERSION, settings=[cfg.enrich, TEXT_VERSION], inputs=inputs)
    if (finished := stage.finished) is not None:
        return finished

    pins = read_output(store, outputs["pins"], PIN_COLUMNS.names)
    boards, log = read_output(store, outputs["boards"]), read_output(store, outputs["search_log"])
    labelled = pc.unique(read_output(store, outputs["human_labels"], columns=["query"])["query"]).to_pylist()
    texts = build_pin_texts(
        pins, boards, log, set(labelled), cfg.enrich, read_output(store, captions) if captions else None
    )
    rows_per_file = cfg.ingest.rows_per_file
    parts = [texts.slice(start, rows_per_file) for start in range(0, max(texts.num_rows, 1), rows_per_file)]
    stage.write_table("pin_texts", parts)
    counts = {
        "rows_in": pins.num_rows,
        "rows_out": texts.num_rows,
        "rows_quarantined": 0,
        "pins_without_text": num_without_text(texts),
        "pins_with_caption": texts.num_rows - texts["caption"].null_count,
        "pins_with_board_titles": texts.num_rows - texts["board_titles"].null_count,
        "pins_with_engaged_queries": texts.num_rows - texts["engaged_queries"].null_count,
        "excluded_queries": len(labelled),
    }
    return stage.finish(counts)
