"""What counts as right, and what a system may read: an answer that can be read in the question measures nothing."""

import numpy as np
import pyarrow as pa
import pytest
from transfer_world import PINS, boards_table, letters, tasks_of

from ray_app.analysis.transfer.tasks import UNKNOWN_TIME, Saves, held_out_boards, readable
from ray_app.base.config import TransferConfig


def test_saves_are_distinct_known_and_in_order_of_time():
    table = boards_table({"b2": "ca", "b1": "bz"}, {"b1": "  My  ZOO ", "b2": None})
    again = table.slice(0, 1).set_column(3, "saved_at", pa.array([10**12], pa.timestamp("ms", tz="UTC")))
    saves = Saves.of(pa.concat_tables([table, again]), PINS)  # pin c was first saved in 2001
    assert saves.board_ids == ["b1", "b2"]
    assert saves.titles == ["my zoo", ""]
    assert (saves.board.tolist(), saves.pin.tolist()) == ([0, 1, 1], [1, 2, 0])
    assert saves.time[1] == 10**12


def test_saves_do_not_depend_on_the_order_of_rows():
    table = boards_table({"b1": "abc", "b2": "cb"}, untimed="b")
    a, b = Saves.of(table, PINS), Saves.of(table.take([4, 0, 3, 2, 1]), PINS)
    assert a.pin.tolist() == b.pin.tolist() == [0, 2, 1, 2, 1]
    assert (a.time == UNKNOWN_TIME).tolist() == [False, False, True, False, True]


def test_small_boards_are_not_held_out_and_a_bound_keeps_the_first():
    table = boards_table({f"b{i:03d}": "abc" if i % 2 else "ab" for i in range(400)})
    saves = Saves.of(table, PINS)
    found = held_out_boards(saves, TransferConfig(min_saves=3, holdout_fraction=0.3), seed=5)
    assert all(i % 2 for i in found)
    assert 35 <= len(found) <= 85  # 30% of 200
    few = held_out_boards(saves, TransferConfig(min_saves=3, holdout_fraction=0.3, max_boards=7), seed=5)
    assert len(few) == 7
    assert set(few) < set(found)


def test_a_new_board_changes_nothing_about_the_others():
    boards = {f"b{i:03d}": "abc" for i in range(100)}
    cfg = TransferConfig(min_saves=2)

    def chosen(boards):
        saves = Saves.of(boards_table(boards), PINS)
        return {saves.board_ids[i] for i in held_out_boards(saves, cfg, seed=1)}

    assert chosen(boards | {"a-new-one": "abc"}) - {"a-new-one"} == chosen(boards)


def test_nothing_of_a_held_out_board_is_readable():
    table = boards_table({"b1": "abc", "b2": "cd", "b3": "ef"})
    left = readable(table, Saves.of(table, PINS), np.array([0, 2]))
    assert left["board_id"].to_pylist() == ["b2", "b2"]


def test_related_pins_want_the_rest_of_the_board():
    task = tasks_of(boards_table({"b1": "abc"}), [0])[0]
    shown = [[letters(matrix, row) for row in range(3)] for matrix in (task.asks, task.wanted, task.aside)]
    assert shown == [["a", "b", "c"], ["bc", "ac", "ab"], ["a", "b", "c"]]  # a pin is not related to itself


def test_pins_related_by_another_board_are_neither_right_nor_wrong():
    # d is with a on a readable board, e on a held-out one; b is wanted although it is on the other board too
    task = tasks_of(boards_table({"b1": "ab", "b2": "adb", "b3": "ae"}), [0, 2])[0]
    row = next(r for r in range(len(task)) if task.board[r] == 0 and letters(task.asks, r) == "a")
    assert letters(task.wanted, row) == "b"
    assert letters(task.aside, row) == "ade"


def test_a_title_wants_the_pins_of_its_board_and_none_is_no_query():
    task = tasks_of(boards_table({"b1": "ab", "b2": "cd", "b3": "ef"}, {"b2": None}), [1, 2])[1]
    assert task.board.tolist() == [1]
    assert task.asks.toarray().tolist() == [[0.0, 1.0]]  # the second held-out title
    assert letters(task.wanted, 0) == "ef"


def test_the_next_save_is_asked_for_by_those_before_it_only():
    task = tasks_of(boards_table({"b1": "cab"}), [0])[2]
    shown = [[letters(matrix, row) for row in range(2)] for matrix in (task.asks, task.wanted, task.aside)]
    assert shown == [["c", "ac"], ["a", "b"], ["c", "ac"]]  # what is on the board is not offered again
    assert task.asks.toarray().sum(1).tolist() == [1.0, 1.0]


def test_saves_without_a_time_are_no_next_saves():
    task = tasks_of(boards_table({"b1": "abc", "b2": "de"}, untimed="bde"), [0, 1])[2]
    assert len(task) == 1
    assert (letters(task.asks, 0), letters(task.wanted, 0)) == ("a", "c")


def test_a_large_board_asks_no_more_than_the_bound():
    related, _, following = tasks_of(boards_table({"b1": "abcdef", "b2": "ab"}), [0, 1], queries_per_board=2)
    assert np.bincount(related.board).tolist() == [2, 2]
    assert np.bincount(following.board).tolist() == [2, 1]


@pytest.mark.parametrize("held_out", [[], [0]])
def test_a_task_may_have_no_query(held_out):
    tasks = tasks_of(boards_table({"b1": "a"}, {"b1": ""}), held_out)
    assert [len(task) for task in tasks] == [0, 0, 0]
    assert all(task.wanted.shape == task.aside.shape == (0, len(PINS)) for task in tasks)
