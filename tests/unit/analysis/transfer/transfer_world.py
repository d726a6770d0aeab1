"""Boards on a screen: six pins a..f, boards by id with their saves in order of time."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from ray_app.analysis.transfer.systems import vectors
from ray_app.analysis.transfer.tasks import Saves, build_tasks
from ray_app.base.config import TransferConfig
from ray_app.base.schemas import BOARDS

PINS = list("abcdef")


def boards_table(boards, titles=None, untimed=()):
    """Schema BOARDS: board id -> its pins, first saved first; `untimed` pins have no time."""
    rows = [
        {
            "board_id": board,
            "pin_id": pin,
            "board_title": (titles or {}).get(board, f"Title {board}"),
            "saved_at": None if pin in untimed else datetime(2024, 1, 1 + day, tzinfo=UTC),
        }
        for board, pins in boards.items()
        for day, pin in enumerate(pins)
    ]
    return pa.Table.from_pylist(rows, schema=BOARDS)


def tasks_of(table, held_out, **changes):
    return build_tasks(Saves.of(table, PINS), np.array(held_out, np.int64), TransferConfig(**changes), seed=1)


def letters(matrix, row):
    """The pins of a row's nonzero entries, as letters in order."""
    return "".join(PINS[i] for i in sorted(matrix[[row]].nonzero()[1]))


def boards_and_vectors():
    """Two held-out boards; vectors that know the boards, and the same turned against them."""
    titles = np.eye(2, dtype=np.float32)
    knows = vectors("knows", np.repeat(titles, 3, axis=0), titles)
    return (
        tasks_of(boards_table({"b1": "abc", "b2": "def"}), [0, 1]),
        knows,
        vectors("mixed", np.tile(titles, (3, 1)), titles),
    )
