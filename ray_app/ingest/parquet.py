"""Parquet files of strangers, in which a few bytes stand for any number: one long text is named by every row.

So texts stay dictionaries, as they lie in the file, until their lengths are known; a batch has as many rows as fit into
`BATCH_BYTES` by the file's footer; and all rows together, each with its own copy, may come to what an archive may.

A footer that lies about sizes is found out after a batch, not before. Until then a page may unpack to 2 GB.
"""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.ingest.files import SourceFile

BATCH_ROWS = 20_000  # bounds the Python objects alive at once; larger ones are not faster
BATCH_BYTES = 32_000_000  # the same for large rows; guessed

_PREFIXES = "DELTA_BYTE_ARRAY"  # texts as what they add to the one before: a row may be as long as all of them
_NO_DICTIONARY = {
    _PREFIXES,
    "DELTA_LENGTH_BYTE_ARRAY",
}  # pyarrow makes none of these; a file that does not own up to them is corrupt


def iter_parquet(file: SourceFile, choose: Callable[[pa.Schema], Sequence[str]]) -> Iterator[pa.RecordBatch]:
    """Batches of some columns; a text column is a dictionary that holds only what its batch names.

    Args:
        file: Maybe packed.
        choose: Picks names of columns, or raises.

    Raises:
        UserError: the file is corrupt, or comes to more than `SourceFile.most_bytes`.
    """
    with file.open_plain() as raw, pq.ParquetFile(raw) as parquet:
        wanted = list(dict.fromkeys(choose(parquet.schema_arrow)))
        texts, rows = _text_columns(parquet, wanted), _batch_rows(parquet, wanted)
        num_bytes = 0
        with pq.ParquetFile(raw, metadata=parquet.metadata, read_dictionary=texts) as reader:
            for batch in reader.iter_batches(rows, columns=wanted):
                arrays = [_compact(array) if pa.types.is_dictionary(array.type) else array for array in batch.columns]
                num_bytes += sum(map(_spelled_out, arrays))
                if num_bytes > file.most_bytes:
                    file.refuse_bomb()
                yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _text_columns(parquet: pq.ParquetFile, wanted: Sequence[str]) -> list[str]:
    """Columns of text or bytes that can be read as dictionaries."""
    chunks = [found for g in range(parquet.metadata.num_row_groups) for found in _chunks(parquet, g, wanted)]
    never = {column.path for column, chunk in chunks if _NO_DICTIONARY & set(chunk.encodings)}
    return sorted({column.path for column, _ in chunks if column.physical_type == "BYTE_ARRAY"} - never)


def _batch_rows(parquet: pq.ParquetFile, wanted: Sequence[str]) -> int:
    """Rows that are decoded at a time."""
    most = BATCH_ROWS
    for g in range(parquet.metadata.num_row_groups):
        num_rows, num_bytes = max(parquet.metadata.row_group(g).num_rows, 1), 0
        for column, chunk in _chunks(parquet, g, wanted):
            if _PREFIXES in chunk.encodings:
                num_bytes += num_rows * chunk.total_uncompressed_size
            elif column.physical_type == "BYTE_ARRAY":
                num_bytes += chunk.total_uncompressed_size
            else:
                num_bytes += chunk.num_values * max(8, column.length)
        most = min(most, num_rows * BATCH_BYTES // max(num_bytes, 1))
    return max(most, 1)


def _chunks(
    parquet: pq.ParquetFile, group: int, wanted: Sequence[str]
) -> Iterator[tuple[pq.ColumnSchema, pq.ColumnChunkMetaData]]:
    """The wanted columns of a row group, and what lies in them as the footer says, which may give a column another name."""
    about = parquet.metadata.row_group(group)
    for i in range(min(about.num_columns, len(parquet.schema))):
        column = parquet.schema.column(i)
        if any(column.path == name or column.path.startswith(f"{name}.") for name in wanted):
            yield column, about.column(i)


def _compact(array: pa.DictionaryArray) -> pa.DictionaryArray:
    used = array.indices.unique().drop_null()
    return pa.DictionaryArray.from_arrays(pc.index_in(array.indices, used), array.dictionary.take(used))


def _spelled_out(array: pa.Array) -> int:
    """Bytes of an array whose rows all have their own copy."""
    if not pa.types.is_dictionary(array.type):
        return int(array.nbytes)
    values = array.dictionary
    if not (pa.types.is_string(values.type) or pa.types.is_binary(values.type)):
        return int(array.nbytes)
    lengths = pc.binary_length(values).take(array.indices)
    return int(array.indices.nbytes) + (pc.sum(lengths).as_py() or 0)
