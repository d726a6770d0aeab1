"""The pin_texts table: what each pin says, field by field."""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import TEXT_FIELDS, EnrichConfig
from ray_app.base.schemas import CAPTIONS, PIN_TEXTS, PINS, SEARCH_LOG, cast_to, require_columns
from ray_app.base.text import FIELD_SEPARATOR, normalize_text
from ray_app.stages.enrich.board_titles import TITLED_SAVES, title_forms, top_board_titles
from ray_app.stages.enrich.engaged_queries import top_engaged_queries

PIN_COLUMNS = pa.schema([field for field in PINS if field.name not in ("image", "image_bytes", "created_at")])


def build_pin_texts(
    pins: pa.Table,
    saves: pa.Table,
    search_log: pa.Table,
    excluded_queries: Collection[str],
    cfg: EnrichConfig,
    captions: pa.Table | None = None,
    forms: Mapping[str, str] | None = None,
) -> pa.Table:
    """One row per pin, in the order of `pins`; a pin without any text stays, with nulls.

    Args:
        pins: PIN_COLUMNS, the columns of PINS that are text.
        saves: TITLED_SAVES.
        search_log: SEARCH_LOG.
        excluded_queries: Queries under evaluation, never among the engaged queries.
        cfg: How many titles and queries, and how they are weighted.
        captions: CAPTIONS; None: there are none.
        forms: Of `title_forms`, if `saves` are only those of some pins.

    Returns:
        PIN_TEXTS; texts normalised, empty ones null.

    Raises:
        UserError: a table lacks a column.
    """
    for table, schema in ((pins, PIN_COLUMNS), (saves, TITLED_SAVES), (search_log, SEARCH_LOG)):
        require_columns(table, schema, "enrich")
    caption_of: dict[str, str | None] = {}
    if captions is not None:
        require_columns(captions, CAPTIONS, "enrich")
        caption_of = dict(zip(captions["pin_id"].to_pylist(), captions["caption"].to_pylist(), strict=True))
    forms = title_forms(saves) if forms is None else forms
    links = zip(pins["link_title"].to_pylist(), pins["link_description"].to_pylist(), strict=True)
    texts = pa.table(
        {
            "pin_id": pins["pin_id"],
            "title": _texts(map(normalize_text, pins["title"].to_pylist())),
            "description": _texts(map(normalize_text, pins["description"].to_pylist())),
            "caption": _texts(normalize_text(caption_of.get(pin_id)) for pin_id in pins["pin_id"].to_pylist()),
            "link_text": _texts(_link_text(title, description) for title, description in links),
            "board_titles": _lists(pins["pin_id"], top_board_titles(saves, cfg.top_boards, forms)),
            "engaged_queries": _lists(pins["pin_id"], top_engaged_queries(search_log, excluded_queries, cfg)),
            "locale": pins["locale"],
        }
    )
    return cast_to(texts, PIN_TEXTS, "enrich")


def num_without_text(pin_texts: pa.Table) -> int:
    """Pins that say nothing in any field."""
    silent = np.ones(pin_texts.num_rows, dtype=bool)
    for name in TEXT_FIELDS:
        silent &= pc.is_null(pin_texts[name]).to_numpy()
    return int(silent.sum())


def _link_text(title: str | None, description: str | None) -> str:
    """Both texts of the link; one that the other contains adds nothing."""
    a, b = normalize_text(title), normalize_text(description)
    if b.casefold() in a.casefold():
        return a
    if a.casefold() in b.casefold():
        return b
    return a + FIELD_SEPARATOR + b


def _texts(values: Iterable[str]) -> pa.Array:
    return pa.array([value or None for value in values], pa.string())


def _lists(pin_ids: pa.ChunkedArray, lists: Mapping[str, list[str]]) -> pa.Array:
    """Each pin's list, null where it has none. Shape (num_pins,), list<string>."""
    return pa.array([lists.get(pin_id) for pin_id in pin_ids.to_pylist()], pa.list_(pa.string()))
