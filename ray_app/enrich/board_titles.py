"""Titles of the boards that a pin was saved to, most saves first."""

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa

from ray_app.text import normalise_query, normalise_text


def title_keys(titles: pa.ChunkedArray) -> list[str]:
    """What titles have in common that differ only in case or spacing; empty: says nothing."""
    found = {title: normalise_query(title) if title else "" for title in titles.unique().to_pylist()}
    return [found[title] for title in titles.to_pylist()]


def title_forms(boards: pa.Table) -> dict[str, str]:
    """How a title is shown that users write in several forms: in its most frequent one.

    Args:
        boards: BOARDS, all saves under the titles that it has: over all pins, for a pin's few saves would let it flip with
            every save.

    Returns:
        `title_keys` -> form, of those with several.
    """
    saves = _saves(boards)
    frequency = saves.groupby(["title", "form"]).size().rename("num").reset_index()
    frequency = frequency[frequency.duplicated("title", keep=False)]
    frequency = frequency.sort_values(["title", "num", "form"], ascending=[True, False, True])
    return dict(frequency.drop_duplicates("title")[["title", "form"]].itertuples(index=False, name=None))


def top_board_titles(boards: pa.Table, top_k: int, forms: Mapping[str, str]) -> pd.Series:
    """The titles under which a pin was saved most often.

    Equal numbers of saves are ordered by title, so a new save under the first title changes nothing.

    Args:
        boards: BOARDS; one row is one save.
        top_k: Titles per pin.
        forms: Of `title_forms`.

    Returns:
        pin_id -> list of 1 to `top_k` titles; pins without any are absent.
    """
    saves = _saves(boards)
    ranked = saves.groupby(["pin_id", "title"])["form"].agg(["size", "first"]).reset_index()
    ranked = ranked.sort_values(["pin_id", "size", "title"], ascending=[True, False, True])
    ranked = ranked.groupby("pin_id", sort=False).head(top_k)
    ranked["shown"] = ranked["title"].map(forms).fillna(ranked["first"])
    return ranked.groupby("pin_id", sort=False)["shown"].agg(list)


def _saves(boards: pa.Table) -> pd.DataFrame:
    """Columns pin_id, title (its key) and form of the saves under a title that says something."""
    saves = pd.DataFrame({"pin_id": boards["pin_id"].to_pandas(), "title": title_keys(boards["board_title"])})
    form_of = {title: normalise_text(title) for title in boards["board_title"].unique().to_pylist()}
    saves["form"] = [form_of[title] for title in boards["board_title"].to_pylist()]
    return saves[saves["title"] != ""]
