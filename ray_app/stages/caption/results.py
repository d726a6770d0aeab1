"""Answers of the engines -> results in the ledger -> the table of captions."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import CaptionConfig
from ray_app.base.schemas import CAPTIONS
from ray_app.cluster.blocks import TRANSIENT, commit_block
from ray_app.cluster.executor import LedgerCounts
from ray_app.cluster.failures import BlockFailedError, fatal_line
from ray_app.stages.caption.clean import clean_caption
from ray_app.stages.caption.image_index import ImageIndex
from ray_app.tables.ledger import Ledger

CLEANED = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("error", pa.string()),
        pa.field(TRANSIENT, pa.bool_()),
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


def join_captions(pictures: ImageIndex, found: pa.Table, counts: LedgerCounts) -> tuple[pa.Table, int, str | None]:
    """The table CAPTIONS, the number of distinct pictures that failed, unreadable ones included, and one of the errors.

    Args:
        pictures: Of the pins table.
        found: All of the ledger.
        counts: Of what was computed now.
    """
    index = pc.index_in(pictures.keys, value_set=found["content_key"])
    captions = pa.table(
        {
            "pin_id": pictures.pin_ids,
            "content_key": pictures.keys,
            "caption": found["caption"].take(index),
            "error": pc.coalesce(
                pictures.errors,
                found["error"].take(index),
                pa.array([counts.transient.get(key or "") for key in pictures.keys.to_pylist()], pa.string()),
            ),
        }
    ).cast(CAPTIONS)
    failed = captions["error"].drop_null()
    return captions, counts.errors + pictures.num_unreadable, failed[0].as_py() if len(failed) else None
