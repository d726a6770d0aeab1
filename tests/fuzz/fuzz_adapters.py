"""Fuzzes the adapters of ingest: `python tests/fuzz/fuzz_adapters.py --seconds 60`.

Whatever a source holds, each of its rows ends in the table or in quarantine, with a known reason; or the whole file is
refused with one line for people. The first byte of an input says which adapter reads the rest, the second how it is packed.
"""

import gzip
import io
import json
import tempfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import driver
import pyarrow as pa
import pyarrow.parquet as pq

with driver.instrumented():
    from ray_app.base.config import IngestLimits, TableSource, UbiSource
    from ray_app.base.errors import UserError
    from ray_app.sources import rows
    from ray_app.sources.adapters.chorus import read_ean_map, read_labels, read_products_file
    from ray_app.sources.adapters.table import read_table_file
    from ray_app.sources.adapters.ubi import MAX_SHOWN, join_ubi, read_ubi_file
    from ray_app.sources.files import SourceFile, find_files
    from ray_app.sources.rows import RawBatch
    from ray_app.sources.validate import TableRules, check_batch, settle, table_rules

LIMITS = IngestLimits(max_id_chars=40, max_query_chars=60, max_text_chars=200, max_image_bytes=100)
CODES = {value for name, value in vars(rows).items() if name.isupper() and isinstance(value, str)}
GRADES = {0: 1, 1: 3, 2: 4, 3: 5}
# (name of the adapter, table)
READERS = (
    ("csv", "pins"), ("jsonl", "pins"), ("parquet", "pins"), ("jsonl", "search_log"), ("csv", "human_labels"),
    ("jsonl", "boards"), ("ubi", "search_log"), ("products", "pins"), ("ratings", "human_labels"),
)  # fmt: skip
# How the content lies in the file; raw: the content is itself what claims to be the archive; the last two: refused.
PACKS = ("plain", "gz", "zip", "raw.gz", "raw.zip", "bzip2.zip", "lzma.zip")
METHODS = {"zip": zipfile.ZIP_DEFLATED, "bzip2.zip": zipfile.ZIP_BZIP2, "lzma.zip": zipfile.ZIP_LZMA}
LATEST_MS = 1_800_000_000_000  # January 2027: what the log's events may not be later than

TOKENS = (
    b"NaN", b"Infinity", b"-1e999", b"1e400", b"9" * 400, b"null", b"true", b"[]", b"{}", b"[[[[", b"[" * 200, b'{"a":' * 200,
    b'"\\ud800"', b'"\\u0000"', b"\\", b'"', b"'", b",", b"\n", b"\r", b"\r\n", b"\t", b"\x00", b"\xff", b"\xef\xbb\xbf",
    b'"_source":', b'"action":', b'"action_name":', b'"user_query":', b'"query_id":', b'"position":', b'"timestamp":',
    b'"client_id":', b"1900000000000", b"2199-12-31", b"0," * 1001, b'"query_response_object_ids":',
    b'"style":', b'"image_bytes":', b"base64,", b'"event_attributes":', b'"object":', b"ubi_events\t", b"0001-01-01",
    b"9999-12-31T23:59:59+14:00", b"\x1b[31m", b"-0", b"PK\x03\x04", b"PK\x01\x02", b"\x1f\x8b\x08", b"PAR1", b"\xed\xa0\x80",
)  # fmt: skip

_folder = tempfile.TemporaryDirectory(prefix="ray_app_fuzz_")


def target(data: bytes) -> None:
    """See the module."""
    if len(data) < 2:
        return
    reader, table = READERS[data[0] % len(READERS)]
    pack = PACKS[data[1] % len(PACKS)]
    file = _write(reader, pack, data[2:])
    rules = _rules(reader, table)
    try:
        batches = _read(file, reader, rules)
    except UserError as error:
        assert str(error).isprintable(), f"not one line for people: {error!r}"
        return
    num_rows = sum(len(batch.rows) + len(batch.broken) for batch in batches)
    valid, refused = settle([check_batch(batch, rules) for batch in batches], rules)
    assert valid.num_rows + refused.num_rows == num_rows, f"{valid.num_rows} + {refused.num_rows} of {num_rows} rows"
    assert pack not in PACKS[-2:], "an archive was unpacked that may be a bomb"
    if table == "search_log":
        assert max(valid["timestamp"].cast(pa.int64()).to_pylist(), default=0) <= LATEST_MS, "an event of the future"
        assert all(len(client) == 32 for client in valid["client_id"].drop_null().to_pylist()), "an id, not its hash"
        per_line = Counter(row for batch in batches for row in batch.rows)
        assert max(per_line.values(), default=0) <= MAX_SHOWN, "one line became a table"
    valid.validate(full=True)
    refused.validate(full=True)
    for reason in refused["reason"].to_pylist():
        assert reason.partition(":")[0] in CODES, f"no code: {reason!r}"


def _rules(reader: str, table: str) -> TableRules:
    vectors = {"style": 2} if reader in ("jsonl", "parquet") and table == "pins" else None
    rules = table_rules(table, LIMITS, GRADES if reader == "ratings" else None, vectors)
    return replace(rules, latest_ms=LATEST_MS, client_key=b"key") if table == "search_log" else rules


def _read(file: SourceFile, reader: str, rules: TableRules) -> list[RawBatch]:
    if reader == "ubi":
        source = UbiSource(path=file.uri)
        return join_ubi([read_ubi_file(file, source)], source, {"111": "p1"})[0]
    if reader == "products":
        read_ean_map([file])
        return list(read_products_file(file, "en-US"))
    if reader == "ratings":
        return list(read_labels([file, file], "en-US"))
    constants = {"board_title": "x"} if rules.table == "boards" else {}
    return list(read_table_file(file, TableSource(path=file.uri, format=reader, constants=constants), rules))


def _write(reader: str, pack: str, content: bytes) -> SourceFile:
    """The content as a file of a source, found as a source is."""
    if pack == "gz":
        content = gzip.compress(content, 1)
    elif pack in METHODS:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", METHODS[pack]) as archive:
            archive.writestr("inner", content)
        content = out.getvalue()
    name = f"data.{reader}" + ("" if pack == "plain" else f".{pack.rpartition('.')[2]}")
    path = Path(_folder.name) / name
    path.write_bytes(content)
    return find_files(str(path), "ingest.pins.path")[0]


def seeds() -> list[bytes]:
    """A small honest source for each adapter, plain and packed, and some odd ones."""
    pins = [
        {"pin_id": "p1", "title": "red mug", "locale": "en-US", "created_at": "2024-01-01T10:00:00Z", "style": [0.5, 1],
         "image_bytes": "aGVsbG8="},
        {"pin_id": 2, "title": None, "description": "für dich\n", "locale": "de-DE", "created_at": 1717527761998},
    ]  # fmt: skip
    log = [
        {"event_id": "e1", "timestamp": 1717527761, "query": "mug", "locale": "en-US", "pin_id": "p1", "position": 1.0, "action": "click"},
        {"event_id": "e2", "timestamp": "2024-01-01", "query": "mug", "locale": "en-US", "pin_id": None, "action": "impression"},
    ]  # fmt: skip
    times = (4_000_000_000, "2199-12-31", LATEST_MS)
    log += [log[0] | {"event_id": f"f{at}", "client_id": 7, "timestamp": at} for at in times]
    boards = [{"board_id": "b", "pin_id": "p1", "saved_at": 1.5e9}]
    ubi = [
        {"query_id": "q1", "user_query": "shoe", "query_response_object_ids": ["111", "p2"], "timestamp": 1717527761998},
        {"action_name": "item_click", "query_id": "q1", "client_id": "c", "timestamp": 1717527761999,
         "event_attributes": {"object": {"object_id": "p2", "object_id_field": "ean"}, "position": {"ordinal": 2}}},
        {"_source": {"query_id": "q2", "user_query": "nothing", "timestamp": 1717527761998}},
        {"query_id": "q3", "client_id": 7, "user_query": "much", "query_response_object_ids": [1] * (MAX_SHOWN + 1), "timestamp": 1.7e9},
        {"query_id": "q4", "user_query": "as much as may be", "query_response_object_ids": [1] * MAX_SHOWN, "timestamp": 4e12},
    ]  # fmt: skip
    products = [
        {"id": "7", "title": "Acme mouse", "name": "MX", "supplier": "Acme", "ean": ["111"], "attr_t_product_type": "Mouse",
         "date_released": "2009-12-10T00:00:00Z", "img_high": "http://i/h.jpg", "short_description": "x"},
        {"id": 8, "ean": None},
    ]  # fmt: skip
    parquet = io.BytesIO()
    vectors = pa.array([[0.5, 1.0], [2.0, 3.0]], pa.list_(pa.float32(), 2))
    pins_columns = {"pin_id": ["p1", "p2"], "title": ["a", None], "locale": ["en", "en"], "style": vectors}
    pq.write_table(pa.table(pins_columns), parquet)
    repeated = io.BytesIO()  # each row names the dictionary's one long text
    named = pa.DictionaryArray.from_arrays(pa.array([0, 0, None, 1] * 50, pa.int32()), ["x" * 5000, "mug"])
    pq.write_table(pa.table({"pin_id": [str(i) for i in range(200)], "title": named}), repeated, row_group_size=80)
    prefixed = io.BytesIO()
    columns = pa.table({"pin_id": ["p1", "p2"], "title": ["a" * 100, "a" * 100 + "b"], "locale": ["en", "en"]})
    pq.write_table(columns, prefixed, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    contents = {
        0: b'pin_id,title,locale,created_at\np1,"red, mug",en-US,2024-01-01\np2,,de-DE,\n\n3,x,en-US\n',
        1: _lines(pins), 2: parquet.getvalue(), 3: _lines(log),
        4: b"query,locale,pin_id,rater_id,grade\nmug,en-US,p1,r1,5\nmug,en-US,p1,r1,4\nmug,en-US,p2,r1,9\n",
        5: _lines(boards), 6: _lines(ubi) + b"\nubi_events\t" + json.dumps(ubi[1]).encode(),
        7: json.dumps(products).encode(),
        8: b"query,docid,rating,agent_1_rating,final_rating\nmouse,7,3,2,3\nmouse,8,0,1,0\n",
    }  # fmt: skip
    packed = [bytes([kind, pack]) + content for kind, content in contents.items() for pack in range(3)]
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.json", contents[7])
    refused = [bytes([kind, pack]) + contents[kind] for kind in (1, 7) for pack in (5, 6)]
    parquets = [b"\x02\x00" + file.getvalue() for file in (repeated, prefixed)]
    commas = b"\x00\x00pin_id,title\n" + b"," * 10_000 + b'\n"' + b'","\n' * 3000
    more = [b"\x07\x04" + zipped.getvalue(), b"\x01\x03" + gzip.compress(contents[1]), commas]
    return [*packed, *more, *refused, *parquets]


def _lines(documents: list[dict]) -> bytes:
    return "\n".join(json.dumps(document) for document in documents).encode()


if __name__ == "__main__":
    driver.main(__file__, target, seeds(), TOKENS)
