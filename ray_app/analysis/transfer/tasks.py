"""Three tasks that the student was not trained for, made of boards that are held out.

The protocol, the same for every system:

- Held-out boards are chosen by a hash of their id. Whatever a system reads or learns from is made of the other boards:
  `readable` is what is left of the table.
- Related pins: a pin of a held-out board asks, the board's other pins are wanted. Pins that share any other board with
  the asking pin are related too, only not by this board: they are set aside, neither right nor wrong.
- Board from its title: the title asks, the board's pins are wanted.
- Next save: what was saved to the board before asks together, the one next save is wanted among all pins that are not
  yet on the board. The tables know no users: a board stands for one, which has several boards in real life.
- A board counts once, whatever its size: its figure is the mean over its queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from ray_app.base.config import TransferConfig
from ray_app.base.content_key import content_keys
from ray_app.base.text import normalize_query

UNKNOWN_TIME = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Saves:
    """The distinct saves of known pins: sorted by board, then time (unknown ones last), then pin."""

    board_ids: list[str]  # boards with a known pin, sorted
    titles: list[str]  # of each board, normalised as queries are; "" without one. Of several the first by alphabet
    board: np.ndarray  # (num_saves,) int64 into `board_ids`
    pin: np.ndarray  # (num_saves,) int64 into the catalogue
    time: np.ndarray
    """(num_saves,) int64 milliseconds, of the first save of the pin to the board; UNKNOWN_TIME: not told."""
    num_pins: int  # of the catalogue

    @classmethod
    def of(cls, boards: pa.Table, pin_ids: Sequence[str]) -> "Saves":
        """From a table of schema BOARDS and the catalogue's pins, which are distinct."""
        frame = boards.select(["board_id", "pin_id", "board_title"]).to_pandas()
        frame["time"] = pc.fill_null(boards["saved_at"].cast(pa.int64()), UNKNOWN_TIME).to_numpy()
        frame["pin"] = pd.Index(list(pin_ids)).get_indexer(frame["pin_id"])
        frame = frame[frame["pin"] >= 0]
        titles = frame.groupby("board_id")["board_title"].agg(lambda found: min(found.dropna(), default=""))
        frame["late"] = frame["time"] == UNKNOWN_TIME
        frame = frame.sort_values(["board_id", "late", "time", "pin"]).drop_duplicates(["board_id", "pin"])
        return cls(
            board_ids=list(titles.index), titles=[normalize_query(title) for title in titles],
            board=titles.index.get_indexer(frame["board_id"]).astype(np.int64), pin=frame["pin"].to_numpy(np.int64),
            time=frame["time"].to_numpy(np.int64), num_pins=len(pin_ids),
        )  # fmt: skip

    def rows_of(self, board: int) -> np.ndarray:
        """Positions of a board's saves."""
        return np.arange(*np.searchsorted(self.board, [board, board + 1]))

    def matrix(self) -> csr_array:
        """(num_boards, num_pins) with 1 for each save."""
        shape = (len(self.board_ids), self.num_pins)
        return csr_array((np.ones(len(self.board), np.float32), (self.board, self.pin)), shape=shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Queries with what they ask by and what they want."""

    name: str  # for people
    asks_by: Literal["pins", "titles"]
    """Meaning of the columns of `asks`: pins of the catalogue, or titles of the held-out boards."""
    board: np.ndarray  # (num_queries,) int64, which of the held-out boards
    asks: csr_array  # (num_queries, pins or titles) float32 weights that sum to 1 in each row
    wanted: csr_array  # (num_queries, num_pins), 1 where a pin is right; never empty in a row
    aside: csr_array  # (num_queries, num_pins), nonzero where a pin is not ranked

    def __len__(self) -> int:
        return len(self.board)


def held_out_boards(saves: Saves, cfg: TransferConfig, seed: int) -> np.ndarray:
    """Boards that are measured, sorted; (num_held_out,) int64 into `saves.board_ids`.

    Whether a board is chosen depends on its id and the seed alone, until `max_boards` is reached.
    """
    sizes = np.bincount(saves.board, minlength=len(saves.board_ids))
    drawn = content_keys(f"reuse {seed}", saves.board_ids).to_pylist()
    bound = f"{int(cfg.holdout_fraction * 16**8):08x}"
    chosen = [i for i in range(len(drawn)) if sizes[i] >= cfg.min_saves and drawn[i][:8] < bound]
    chosen.sort(key=lambda i: drawn[i])
    return np.array(sorted(chosen[: cfg.max_boards]), np.int64)


def readable(boards: pa.Table, saves: Saves, held_out: np.ndarray) -> pa.Table:
    """The rows of BOARDS that are not of a held-out board."""
    hidden = pa.array([saves.board_ids[i] for i in held_out], pa.string())
    return boards.filter(pc.invert(pc.is_in(boards["board_id"], value_set=hidden)))


def build_tasks(saves: Saves, held_out: np.ndarray, cfg: TransferConfig, seed: int) -> list[Task]:
    """The three tasks, in the order of this file's docstring, of the held-out boards; one may have no query.

    The seed decides which queries are drawn, the same for every system.
    """
    rng = np.random.default_rng(seed)
    return [
        _related_pins(saves, held_out, cfg.queries_per_board, rng),
        _from_titles(saves, held_out),
        _next_saves(saves, held_out, cfg.queries_per_board, rng),
    ]


def _related_pins(saves: Saves, held_out: np.ndarray, most: int, rng: np.random.Generator) -> Task:
    board, asking = [], []
    for i, number in enumerate(held_out):
        pins = np.sort(saves.pin[saves.rows_of(number)])
        chosen = _draw(len(pins) if len(pins) > 1 else 0, most, rng)
        board += [i] * len(chosen)
        asking += pins[chosen].tolist()
    member = saves.matrix()
    shape = (len(asking), saves.num_pins)
    own = _ones(np.arange(len(asking)), np.array(asking, np.int64), shape)
    wanted = member[held_out[board]] if asking else csr_array(shape, dtype=np.float32)
    # Boards that two pins share, this one not counted: the product with all boards, less one for the pins of this one.
    shared = (own @ member.T) @ member - wanted
    wanted = _without(wanted, own)
    return Task(
        name="related pins", asks_by="pins", board=np.array(board, np.int64), asks=own, wanted=wanted,
        aside=csr_array(_without(shared, wanted) + own),
    )  # fmt: skip


def _from_titles(saves: Saves, held_out: np.ndarray) -> Task:
    board = np.array([i for i, number in enumerate(held_out) if saves.titles[number]], np.int64)
    shape = (len(board), saves.num_pins)
    empty = csr_array(shape, dtype=np.float32)
    return Task(
        name="board from its title", asks_by="titles", board=board,
        asks=_ones(np.arange(len(board)), board, (len(board), len(held_out))),
        wanted=saves.matrix()[held_out[board]] if len(board) else empty, aside=empty,
    )  # fmt: skip


def _next_saves(saves: Saves, held_out: np.ndarray, most: int, rng: np.random.Generator) -> Task:
    board: list[int] = []
    target: list[int] = []
    before: list[np.ndarray] = []
    for i, number in enumerate(held_out):
        rows = saves.rows_of(number)
        pins = saves.pin[rows[saves.time[rows] != UNKNOWN_TIME]]
        for place in _draw(max(len(pins) - 1, 0), most, rng) + 1:
            board.append(i)
            before.append(pins[:place])
            target.append(int(pins[place]))
    shape = (len(board), saves.num_pins)
    sizes = np.array([len(pins) for pins in before], np.int64)
    query = np.repeat(np.arange(len(board)), sizes)
    earlier = _ones(query, np.concatenate(before) if before else np.zeros(0, np.int64), shape)
    return Task(
        name="next save", asks_by="pins", board=np.array(board, np.int64),
        asks=csr_array(earlier.multiply(1.0 / np.maximum(sizes, 1)[:, None]).tocsr(), dtype=np.float32),
        wanted=_ones(np.arange(len(board)), np.array(target, np.int64), shape), aside=earlier,
    )  # fmt: skip


def _draw(num: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most `most` of `num` places, sorted."""
    return np.sort(rng.permutation(num)[:most])


def _ones(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_array:
    return csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)


def _without(matrix: csr_array, other: csr_array) -> csr_array:
    """The nonzero entries of a matrix with no entry at the places of `other`, which holds ones."""
    left = csr_array(matrix - matrix.multiply(other))
    left.eliminate_zeros()
    return left
