"""Titles of the boards that a pin was saved to, most saves first."""

from collections.abc import Iterable, Mapping

import pandas as pd
import pyarrow as pa

from ray_app.base.text import normalize_query, normalize_text

TITLED_SAVES = pa.schema(
    [
        pa.field("pin_id", pa.string(), nullable=False),
        # What titles have in common that differ only in case or spacing.
        pa.field("title", pa.string(), nullable=False),
        pa.field("form", pa.string(), nullable=False),  # the title as it was written, normalised
    ]
)


def titled_saves(boards: pa.Table) -> pa.Table:
    """The saves of BOARDS under a title that says something. TITLED_SAVES."""
    raw = boards["board_title"].to_pylist()
    form_of = {title: normalize_text(title) for title in set(raw)}
    title_of = {form: normalize_query(form) for form in set(form_of.values())}
    forms = [form_of[title] for title in raw]
    columns = [
        boards["pin_id"],
        pa.array([title_of[form] for form in forms], pa.string()),
        pa.array(forms, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=TITLED_SAVES).filter(
        pa.array([form != "" for form in forms], pa.bool_())
    )


def title_forms(saves: pa.Table) -> dict[str, str]:
    """Display form of titles that users write in several ways: the most frequent one.

    Args:
        saves: TITLED_SAVES, all saves under the titles that it has: over all pins, for a pin's few saves would let it flip
            with every save.

    Returns:
        Title -> form, of those with several.
    """
    frequency = saves.group_by(["title", "form"]).aggregate([([], "count_all")]).to_pandas()
    frequency = frequency[frequency.duplicated("title", keep=False)]
    frequency = frequency.sort_values(["title", "count_all", "form"], ascending=[True, False, True])
    return dict(frequency.drop_duplicates("title")[["title", "form"]].itertuples(index=False, name=None))


def top_board_titles(saves: pa.Table, top_k: int, forms: Mapping[str, str]) -> dict[str, list[str]]:
    """The titles under which a pin was saved most often.

    Equal numbers of saves are ordered by title, so a new save under the first title changes nothing.

    Args:
        saves: TITLED_SAVES.
        top_k: Titles per pin.
        forms: Of `title_forms`.

    Returns:
        pin_id -> 1 to `top_k` titles; pins without any are absent.
    """
    ranked = saves.group_by(["pin_id", "title"]).aggregate([([], "count_all"), ("form", "min")]).to_pandas()
    ranked = ranked.sort_values(["pin_id", "count_all", "title"], ascending=[True, False, True])
    shown = ranked["title"].map(pd.Series(forms, dtype=object)).fillna(ranked["form_min"])
    return lists_by_pin(ranked["pin_id"], shown, top_k)


def lists_by_pin(pin_ids: Iterable[str], values: Iterable[str], most: int) -> dict[str, list[str]]:
    """The first `most` values of each pin, in the order of the rows."""
    found: dict[str, list[str]] = {}
    for pin_id, value in zip(pin_ids, values, strict=True):
        of_pin = found.setdefault(pin_id, [])
        if len(of_pin) < most:
            of_pin.append(value)
    return found
