"""Parquet files of strangers, in which a few bytes stand for any number: one long text is named by every row.

So texts stay dictionaries, as they lie in the file, until their lengths are known; a batch has as many rows as fit into
`BATCH_BYTES` by the file's footer; and all rows together, each with its own copy, may come to what an archive may.

A footer that lies about sizes, and lists of more numbers than they should hold, are found out after a batch, not before. Until then a
page may unpack to 2 GB. Of the footer only row groups are looked at: pyarrow ends the process on some broken column chunks.
"""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.sources.files import SourceFile

BATCH_ROWS = 20_000  # bounds the Python objects alive at once; larger ones are not faster
BATCH_BYTES = 32_000_000  # the same for large rows; guessed
_MERGED = 1_000  # batches at most: each has some 2 kB beside its rows

# What pyarrow says of encodings that it reads as no dictionary: texts as what they add to the one before, of which a row may be as
# long as all of them, and texts after all of their lengths.
_PREFIXES, _LENGTHS = (
    f"DecodeArrow of DictAccumulator for {name}Decoder" for name in ("DeltaByteArray", "DeltaLengthByteArray")
)


def iter_parquet(
    file: SourceFile, choose: Callable[[pa.Schema], Sequence[str]], vector_bytes: int = 0
) -> Iterator[pa.RecordBatch]:
    """Batches of some columns; a text column is a dictionary that holds only what its batch names.

    Args:
        vector_bytes: Of the lists of numbers in a row, as they should be.

    Raises:
        UserError: the file is corrupt, or comes to more than `SourceFile.most_bytes`.
    """
    with file.open_plain() as raw, pq.ParquetFile(raw) as parquet:
        wanted = list(dict.fromkeys(choose(parquet.schema_arrow)))
        num_bytes = 0
        for batch in _batches(raw, parquet, wanted, vector_bytes):
            arrays = [_compact(array) if pa.types.is_dictionary(array.type) else array for array in batch.columns]
            num_bytes += sum(map(_spelled_out, arrays))
            if num_bytes > file.most_bytes:
                file.refuse_bomb()
            yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _batches(raw: object, parquet: pq.ParquetFile, wanted: list[str], vector_bytes: int) -> Iterator[pa.RecordBatch]:
    columns = [parquet.schema.column(i) for i in range(len(parquet.schema))]
    texts = [c.path for c in columns if c.path in wanted and c.physical_type == "BYTE_ARRAY"]
    numbers = [max(8, c.length) for c in columns if c.path in wanted and c.physical_type != "BYTE_ARRAY"]
    rows, start = _batch_rows(parquet, sum(numbers) + vector_bytes, whole=False), 0
    try:
        with pq.ParquetFile(raw, metadata=parquet.metadata, read_dictionary=sorted(set(texts))) as reader:
            for batch in reader.iter_batches(rows, columns=wanted):
                yield batch
                start += batch.num_rows
            return
    except OSError as error:
        if _PREFIXES not in str(error) and _LENGTHS not in str(error):
            raise
        rows = _batch_rows(parquet, sum(numbers) + vector_bytes, whole=_PREFIXES in str(error))
    with pq.ParquetFile(raw, metadata=parquet.metadata) as reader:
        # One thread: to start others takes longer than to decode a batch of one row.
        yield from _merge(_skip(start, reader.iter_batches(rows, columns=wanted, use_threads=False)))


def _skip(num_rows: int, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if batch.num_rows > num_rows:
            yield batch.slice(num_rows)
        num_rows = max(num_rows - batch.num_rows, 0)


def _merge(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of few rows, together: that a row *may* be large decides how many are decoded at a time, not how many are."""
    merged: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch in batches:
        num_rows += batch.num_rows
        num_bytes += batch.get_total_buffer_size()
        if merged and (len(merged) == _MERGED or num_rows > BATCH_ROWS or num_bytes > BATCH_BYTES):
            yield pa.concat_batches(merged)
            merged, num_rows, num_bytes = [], batch.num_rows, batch.get_total_buffer_size()
        merged.append(batch)
    if merged:
        yield pa.concat_batches(merged)


def _batch_rows(parquet: pq.ParquetFile, number_bytes: int, whole: bool) -> int:
    """Rows that are decoded at a time.

    Args:
        number_bytes: Of a row's numbers, which may be run-length encoded to nothing.
        whole: A single row may hold all the texts of a row group.
    """
    most = BATCH_ROWS
    for g in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(g)
        num_rows, num_bytes = max(group.num_rows, 1), max(group.total_byte_size, 0)
        num_bytes = num_rows * (num_bytes if whole else 0) + num_bytes + num_rows * number_bytes
        most = min(most, num_rows * BATCH_BYTES // max(num_bytes, 1))
    return max(most, 1)


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
