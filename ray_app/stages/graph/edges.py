"""Edges of the pin-board graph."""

import numpy as np
import pandas as pd
import pyarrow as pa

from ray_app.base.text import normalize_query


def board_edges(saves: pa.Table, pin_ids: list[str]) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """The distinct saves of known pins.

    Args:
        saves: Schema BOARDS.
        pin_ids: The catalogue.

    Returns:
        Boards with a known pin, sorted; their titles, normalised as queries are ("" without one; of several the first
        by alphabet); and for each save the number of its board and of its pin, sorted.
    """
    frame = saves.select(["board_id", "pin_id", "board_title"]).to_pandas()
    frame["pin"] = pd.Index(pin_ids).get_indexer(frame["pin_id"])
    frame = frame[frame["pin"] >= 0]
    named = frame.groupby("board_id")["board_title"].agg(lambda titles: min(titles.dropna(), default=""))
    edges = frame[["board_id", "pin"]].drop_duplicates().sort_values(["board_id", "pin"])
    board = named.index.get_indexer(edges["board_id"]).astype(np.int64)
    return list(named.index), [normalize_query(t) for t in named], board, edges["pin"].to_numpy(np.int64)
