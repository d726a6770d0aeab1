"""Arrow columns as numpy arrays, and back."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def matrix_or_zero(column: pa.ChunkedArray) -> np.ndarray:
    """A nullable vector column as a matrix, zeros where null. Shape (N, dim), float32."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    dim = array.type.list_size
    matrix = np.zeros((len(array), dim), np.float32)
    valid = np.asarray(pc.is_valid(array).to_numpy(zero_copy_only=False), bool)
    if valid.any():
        matrix[valid] = np.asarray(array.drop_null().flatten().to_numpy(zero_copy_only=False)).reshape(-1, dim)
    return matrix


def aligned(table: pa.Table, pin_ids: pa.ChunkedArray) -> pa.Table:
    """A table by pin_id with one row per pin of `pin_ids`, in their order; pins that it lacks have nulls."""
    if table.num_columns == 1:
        return pa.table({"pin_id": pin_ids})  # without a column Arrow forgets how many rows there are
    found = table.drop_columns(["pin_id"]).take(pc.index_in(pin_ids, value_set=table["pin_id"]))
    return found.add_column(0, "pin_id", pin_ids)


def matrix_of(column: pa.ChunkedArray | pa.FixedSizeListArray) -> np.ndarray:
    """A fixed-size list column without nulls as a matrix, shape (N, list size), float32, writable."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # no chunk at all
        array = pa.array([], column.type)
    return np.array(array.flatten(), dtype=np.float32).reshape(len(array), array.type.list_size)


def matrix_column(matrix: np.ndarray, known: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """A matrix (N, width) as a fixed-size list column of float32, null where `known` (N,) is False; None: without nulls."""
    width = matrix.shape[1]
    if width == 0:  # Arrow cannot tell how many empty lists an empty array makes
        return pa.array([[] for _ in range(len(matrix))], pa.list_(pa.float32(), 0))
    numbers = pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1))
    nulls = None if known is None else pa.array(~np.asarray(known, bool))
    return pa.FixedSizeListArray.from_arrays(numbers, width, mask=nulls)
