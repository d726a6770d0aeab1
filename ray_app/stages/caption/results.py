"""Answers of the engines -> results for the ledger -> the table of captions."""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import CaptionConfig
from ray_app.base.schemas import CAPTION_RESULTS, CAPTIONS
from ray_app.cluster.cost_estimate import Timing, timing
from ray_app.cluster.executor import LedgerCounts
from ray_app.stages.caption.clean import clean_caption
from ray_app.stages.caption.image_index import Pictures


@dataclass(kw_only=True)
class Done:
    """What one job did."""

    computed: int = 0  # pictures that have a result now
    failed: int = 0  # of them
    transient: dict[str, str] = field(default_factory=dict)  # content key -> error of a picture that gets none
    cleaned: Counter[str] = field(default_factory=Counter)
    decode_sec: float = 0.0  # of one decoder for one picture, reading included
    timing: Timing = field(default_factory=lambda: timing(0, [], 0.0, 0.0))


def clean_answers(answers: pa.Table, cfg: CaptionConfig, done: Done) -> pa.Table:
    """ANSWERS -> CAPTION_RESULTS, without those that another run should try again; counts go to `done`."""
    results = []
    for row in answers.select(["content_key", "text", "error", "transient"]).to_pylist():
        caption, error = None, row["error"]
        if error is not None and row["transient"]:
            done.transient[row["content_key"]] = error
            continue
        if error is None:
            cleaned = clean_caption(row["text"] or "", cfg.prompt, cfg.max_chars)
            caption, error = cleaned.caption, cleaned.error
            done.cleaned.update(cleaned.steps)
        done.failed += error is not None
        results.append({"content_key": row["content_key"], "caption": caption, "error": error})
    done.computed += len(results)
    return pa.Table.from_pylist(results, schema=CAPTION_RESULTS)


def join_captions(pictures: Pictures, found: pa.Table, done: Done) -> tuple[pa.Table, LedgerCounts]:
    """The table CAPTIONS, and counts of distinct pictures, those that could not be read included.

    Args:
        pictures: Of the pins table.
        found: All of the ledger.
        done: What was computed now.
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
                pa.array([done.transient.get(key or "") for key in pictures.keys.to_pylist()], pa.string()),
            ),
        }
    ).cast(CAPTIONS)
    known = found.filter(pc.is_in(found["content_key"], value_set=pictures.sources["content_key"]))
    failed = captions["error"].drop_null()
    counts = LedgerCounts(
        wanted=captions.num_rows,
        unique=pictures.sources.num_rows + pictures.num_unreadable,
        already_present=known.num_rows - done.computed,
        computed=done.computed,
        errors=len(known["error"].drop_null()) + len(done.transient) + pictures.num_unreadable,
        blocks=0,
        repeated_rows=0,
        torn_files=0,
        first_error=failed[0].as_py() if len(failed) else None,
        device_sec=done.timing.engine_sec,
    )
    return captions, counts
