"""Titles of the boards that a pin was saved to, most saves first."""

import pandas as pd
import pyarrow as pa

from ray_app.text import normalise_query, normalise_text


def top_board_titles(boards: pa.Table, top_k: int) -> pd.Series:
    """The titles under which a pin was saved most often.

    Titles that differ only in case or spacing are one; it is shown in its most frequent form. Equal numbers of saves
    are ordered by title, so a new save under the first title changes nothing.

    Args:
        boards: BOARDS; one row is one save.
        top_k: Titles per pin.

    Returns:
        pin_id -> list of 1 to `top_k` titles; pins without any are absent.
    """
    saves = boards.select(["pin_id", "board_title"]).to_pandas().dropna()
    forms = {title: (normalise_query(title), normalise_text(title)) for title in saves["board_title"].unique()}
    saves["title"] = saves["board_title"].map(lambda title: forms[title][0])
    saves["form"] = saves["board_title"].map(lambda title: forms[title][1])
    saves = saves[saves["title"] != ""]
    # Most frequent form of each title over all pins: a pin's few saves would let it flip with every save.
    frequency = saves.groupby(["title", "form"]).size().rename("num").reset_index()
    frequency = frequency.sort_values(["title", "num", "form"], ascending=[True, False, True])
    shown = frequency.drop_duplicates("title").set_index("title")["form"]
    ranked = saves.groupby(["pin_id", "title"]).size().rename("num_saves").reset_index()
    ranked = ranked.sort_values(["pin_id", "num_saves", "title"], ascending=[True, False, True])
    ranked = ranked.groupby("pin_id", sort=False).head(top_k)
    ranked["shown"] = ranked["title"].map(shown)
    return ranked.groupby("pin_id", sort=False)["shown"].agg(list)
