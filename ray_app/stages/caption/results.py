"""Answers of the engines -> results in the ledger -> the table of captions."""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import CaptionConfig
from ray_app.base.schemas import CAPTIONS
from ray_app.cluster.blocks import TRANSIENT, commit_block
from ray_app.cluster.failures import BlockFailedError, fatal_line
from ray_app.stages.caption.clean import clean_caption
from ray_app.stages.caption.image_index import IMAGES
from ray_app.tables.ledger import Ledger

CLEANED = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("error", pa.string()),
        pa.field(TRANSIENT, pa.bool_()),
    ]
)
CAPTIONED = pa.schema(  # images that a bucket of pins shows, with their captions
    [
        *(IMAGES.field(name) for name in ("bucket", "pin_rows", "content_key")),
        pa.field("caption", pa.string()),
        pa.field("error", pa.string()),  # of reading the image, or of its caption
    ]
)


def commit_answers(answers: pa.Table, cfg: CaptionConfig, ledger: Ledger) -> pa.Table:
    """A Ray Data task: ANSWERS -> captions in the ledger; returns rows of STATS."""
    try:
        results, steps = clean_answers(answers, cfg)
        answered = answers.filter(pc.is_valid(answers["started"]))
        spans = zip(answered["started"].to_pylist(), answered["finished"].to_pylist(), strict=True)
        decode_sec: float = pc.sum(answers["decode_sec"]).as_py() or 0.0
        return commit_block(ledger, results, spans, counters={**steps, "decode_sec": decode_sec})
    except Exception as error:
        raise BlockFailedError(fatal_line("captions", error)) from error


def clean_answers(answers: pa.Table, cfg: CaptionConfig) -> tuple[pa.Table, Counter[str]]:
    """ANSWERS -> CLEANED, and how many answers each step of cleaning changed."""
    results, steps = [], Counter[str]()
    for row in answers.select(["content_key", "text", "error", "transient"]).to_pylist():
        caption, error = None, row["error"]
        if error is None:
            cleaned = clean_caption(row["text"] or "", cfg.prompt, cfg.max_chars)
            caption, error = cleaned.caption, cleaned.error
            steps.update(cleaned.steps)
        results.append(row | {"caption": caption, "error": error})
    return pa.Table.from_pylist([{name: row[name] for name in CLEANED.names} for row in results], schema=CLEANED), steps


def with_captions(images: pa.Table, ledger: Ledger, bucket: int, transient: Mapping[str, str]) -> pa.Table:
    """Rows of IMAGES -> of CAPTIONED.

    Args:
        images: Whose captions are in one bucket of the ledger.
        ledger: Of captions.
        bucket: Of the ledger.
        transient: Content key -> error that the ledger does not keep.

    Raises:
        KeyError: an image has neither a result nor such an error.
    """
    keys = images["content_key"].drop_null().unique()
    kept = keys.filter(pc.invert(pc.is_in(keys, value_set=pa.array(list(transient), pa.string()))))
    found, place = ledger.lookup(kept, bucket), pc.index_in(images["content_key"], value_set=kept)
    lost = pa.array([transient.get(key or "") for key in images["content_key"].to_pylist()], pa.string())
    errors = pc.coalesce(images["error"], found["error"].take(place), lost)
    columns = [images["bucket"], images["pin_rows"], images["content_key"], found["caption"].take(place), errors]
    return pa.table(columns, schema=CAPTIONED)


def captions_of_pins(images: pa.Table, pin_ids: pa.ChunkedArray) -> pa.Table:
    """CAPTIONS of a bucket's pins that have an image, in the order of the pins.

    Args:
        images: Rows of CAPTIONED in any order, all that the bucket shows.
        pin_ids: Of all pins of the bucket.
    """
    pin_rows = images["pin_rows"].combine_chunks()
    rows = pc.list_flatten(pin_rows)
    order = pc.sort_indices(rows)
    found = images.take(pc.list_parent_indices(pin_rows).take(order))
    return found.select(CAPTIONS.names[1:]).add_column(0, "pin_id", pin_ids.take(rows.take(order))).cast(CAPTIONS)
