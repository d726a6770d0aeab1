"""Sources that are made to hurt: bombs, archives that lie, rows that are meant to reach a terminal or pass for our words."""

import bz2
import gzip
import io
import tracemalloc
import zipfile

import pytest

from ray_app.base.config import IngestLimits, TableSource, UbiSource
from ray_app.base.errors import UserError, printable
from ray_app.sources import files
from ray_app.sources.adapters import parquet, table
from ray_app.sources.adapters.chorus import product_files, read_products_file
from ray_app.sources.adapters.table import read_table_file
from ray_app.sources.adapters.ubi import join_ubi, read_ubi_file
from ray_app.sources.files import find_files
from ray_app.sources.validate import check_batch, settle, table_rules

KEY = "ingest.pins.path"


def load(path, name="pins", vectors=None):
    """Valid rows and quarantine."""
    rules = table_rules(name, IngestLimits(), None, vectors)
    batches = [b for f in find_files(str(path), KEY) for b in read_table_file(f, TableSource(path=str(path)), rules)]
    return settle([check_batch(batch, rules) for batch in batches], rules)


def zipped(path, content, name="a.json"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def refused(path, match):
    """That the whole file is."""
    with pytest.raises(UserError, match=match):
        load(path)


def peak(work):
    """Bytes of Python objects that were alive at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def count_batches(monkeypatch):
    """Rows of each batch that is decoded from now on."""
    read, compute = [], parquet._spelled_out

    def counted(array):
        read.append(len(array))
        return compute(array)

    monkeypatch.setattr(parquet, "_spelled_out", counted)
    return read


# --- bombs ---


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(files, "FREE_BYTES", 1_000_000)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_gzip_bomb_is_left_where_it_goes_off(tmp_path, small_limits, ending):
    bomb = tmp_path / f"a.{ending}.gz"
    bomb.write_bytes(gzip.compress(b"pin_id\n" + (b" " * 1000 + b"\n") * 20_000))
    with pytest.raises(UserError, match="unpacks to more than 300 times"):
        load(bomb)


def test_a_zip_bomb_of_products_is_not_unpacked_whole(tmp_path, small_limits):
    zipped(tmp_path / "1.json.zip", b"[" + b" " * 20_000_000 + b"]")
    with pytest.raises(UserError, match="unpacks to more than 300 times"):
        list(read_products_file(product_files(str(tmp_path), KEY)[0], "en-US"))


@pytest.mark.parametrize(("method", "name"), [(zipfile.ZIP_LZMA, "lzma"), (zipfile.ZIP_BZIP2, "bzip2")])
def test_a_zip_of_another_method_is_not_unpacked(tmp_path, method, name):
    """zipfile unpacks all that it read of those in one go: 706 bytes were 800 MB before the bound was looked at."""
    path = tmp_path / "a.jsonl.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.jsonl", bytes(30_000_000))
    assert peak(lambda: refused(path, f"is packed with {name}; pack it with deflate")) < 3_000_000


def test_a_long_text_that_each_row_names_is_one_text(tmp_path):
    """1,527 bytes of Parquet were 382 MB in one batch: the dictionary's one text, spelled out for each of 400 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["x" * 1_000_000]))
    pq.write_table(
        pa.table({"pin_id": [f"p{i}" for i in range(100)], "title": text}), tmp_path / "a.parquet", compression="zstd"
    )

    def look():
        valid, quarantine = load(tmp_path / "a.parquet")
        assert valid.num_rows == 0 and set(quarantine["reason"].to_pylist()) == {
            "too_long: title has 1,000,000 characters, at most 20,000 are allowed"
        }

    assert peak(look) < 10_000_000


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_parquet_bomb_is_left_where_it_goes_off(tmp_path, small_limits, monkeypatch, store_schema):
    """Texts that are short enough for the table, of which a small file has any number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 200_000
    text = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 10_000]))
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"pin_id": pa.array(["p"] * rows), "title": text}), path, compression="zstd", store_schema=store_schema
    )
    read = count_batches(monkeypatch)
    refused(path, "unpacks to more than 300 times")
    assert len(read) == 2, "both columns of the first batch"


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_texts_in_any_encoding_are_read_and_bounded(tmp_path, monkeypatch, encoding):
    """Of prefix-coded texts a row is as long as all of them: few are decoded at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    titles = ["x" * 100_000 + str(i) for i in range(200)]
    table = pa.table({"pin_id": [f"p{i}" for i in range(200)], "title": titles})
    pq.write_table(
        table, tmp_path / "a.parquet", use_dictionary=False, column_encoding={"title": encoding, "pin_id": "PLAIN"}
    )
    monkeypatch.setattr(parquet, "BATCH_BYTES", 1_000_000)
    read = count_batches(monkeypatch)
    assert load(tmp_path / "a.parquet")[1].num_rows == 200
    assert max(read) <= 10


def write_prefix_coded(path, titles):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.table({"pin_id": [f"p{i:05d}" for i in range(len(titles))], "title": titles})
    coding = dict.fromkeys(rows.column_names, "DELTA_BYTE_ARRAY")
    pq.write_table(rows, path, use_dictionary=False, column_encoding=coding, compression="zstd")
    return path


def test_short_texts_that_are_prefix_coded_make_no_batch_per_row(tmp_path, monkeypatch):
    """A row may be as long as all of them: each of a million was a batch of its own, with all that is done per batch."""
    path = write_prefix_coded(tmp_path / "a.parquet", [f"mug {i}" for i in range(5000)])
    monkeypatch.setattr(parquet, "BATCH_BYTES", 20_000)
    decoded, rows_of = [], parquet._batch_rows
    monkeypatch.setattr(parquet, "_batch_rows", lambda *args, **kw: decoded.append(rows_of(*args, **kw)) or decoded[-1])
    read = count_batches(monkeypatch)
    valid, quarantine = load(path)
    assert (valid["title"].to_pylist(), quarantine.num_rows) == ([f"mug {i}" for i in range(5000)], 0)
    assert decoded[-1] == 1 and len(read) <= 2 * 20, "both columns; few rows are decoded at a time"


def test_long_texts_that_are_prefix_coded_are_not_merged(tmp_path, monkeypatch):
    """The first ones are short, so that nobody would expect the others: 3 kB of Parquet are 20 MB."""
    path = write_prefix_coded(tmp_path / "a.parquet", [f"mug {i}" for i in range(500)] + ["x" * 50_000] * 400)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 200_000)
    sizes, merge = [], parquet._merge
    monkeypatch.setattr(parquet, "_merge", lambda some: (sizes.append(b.nbytes) or b for b in merge(some)))
    valid, quarantine = load(path)
    assert (valid.num_rows, quarantine.num_rows) == (500, 400)
    assert sum(sizes) > 20_000_000 and max(sizes) <= 200_000


def test_a_column_of_lists_is_refused_and_named(tmp_path):
    """What a list comes to is not known before it is decoded, and none belongs there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"pin_id": ["p1"], "title": [["a", "b"]]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "column 'title' of .* is of the type list<.*>, which title cannot be made of")


def test_numbers_that_a_column_repeats_are_decoded_in_parts(tmp_path, monkeypatch):
    """A run of equal numbers is a few bytes, however long: the footer's count decides how many rows are a batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.array([[1.0] * 50_000] * 40, pa.list_(pa.float32()))
    pq.write_table(pa.table({"pin_id": [f"p{i}" for i in range(40)], "style": vectors}), tmp_path / "a.parquet")
    monkeypatch.setattr(parquet, "BATCH_BYTES", 1_000_000)
    read = count_batches(monkeypatch)
    assert load(tmp_path / "a.parquet", vectors={"style": 50_000})[0].num_rows == 40
    assert max(read) <= 3


def test_a_line_of_commas_is_counted_and_not_spelled_out(tmp_path):
    """2 kB of .gz were 405 MB: two million empty fields, as a dict and as JSON."""
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"pin_id,title\n" + b"," * 2_000_000 + b"\np1,mug\n" + b"," * 1000 + b"\n"))

    def look():
        valid, quarantine = load(path)
        assert valid["pin_id"].to_pylist() == ["p1"]
        assert [row["reason"].partition(":")[0] for row in quarantine.to_pylist()] == ["too_long", "corrupt_row"]
        assert quarantine["reason"][1].as_py() == "corrupt_row: 1,001 fields where the header has 2"
        assert max(map(len, quarantine["content"].to_pylist())) < 50

    assert peak(look) < 20_000_000


def test_a_record_whose_quotes_never_end_is_given_up(tmp_path, monkeypatch):
    """It was read to the end of the file as one record, field by field."""
    monkeypatch.setattr(table, "MAX_LINE_BYTES", 2000)
    (tmp_path / "a.csv").write_bytes(b'pin_id,title\np1,"' + b'","\n' * 501)
    reasons = load(tmp_path / "a.csv")[1]["reason"].to_pylist()
    assert reasons[0] == "too_long: the record has 2,000 characters or more"
    assert set(reasons[1:]) == {"corrupt_row: 1 fields where the header has 2"} and len(reasons) == 3


def test_large_rows_make_small_batches(tmp_path, monkeypatch):
    """20,000 rows of 16 MB are 320 GB."""
    monkeypatch.setattr(table, "BATCH_BYTES", 10_000)
    for name, line in (("a.jsonl", '{"pin_id": "p", "title": "%s"}\n'), ("a.csv", "p,%s\n")):
        (tmp_path / name).write_text(("pin_id,title\n" if name == "a.csv" else "") + line % ("x" * 3000) * 50)
        (file,) = find_files(str(tmp_path / name), KEY)
        rules = table_rules("pins", IngestLimits())
        sizes = [len(batch.rows) for batch in read_table_file(file, TableSource(path=name), rules)]
        assert sum(sizes) == 50 and max(sizes) <= 4


def test_a_file_that_packs_well_but_is_small_is_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"pin_id": "p", "title": "' + b"x" * 1000 + b'"}\n' + b"\n" * 1_000_000))
    assert load(path)[0].num_rows == 1


def test_a_packed_parquet_file_can_be_read_in_any_order(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"pin_id": [f"p{i:06d}" for i in range(50_000)]}), out, row_group_size=1000)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(out.getvalue()))
    assert load(tmp_path / "a.parquet.gz")[0].num_rows == 50_000


def test_a_csv_without_line_ends_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.csv"
    path.write_bytes(b"pin_id\n" + b"x" * 50_000 + b"\np1\n")
    (file,) = find_files(str(path), KEY)
    with file.open_plain() as plain:
        assert max(map(len, file.text_lines(plain))) == 1000


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_lines_end_does_not_count(tmp_path, end):
    """A line of just the bytes that are allowed was too long by its line end, unless it was the last."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(end.join([b"x" * 10, b"y" * 11, b"z" * 30, b"", b"v" * 10]))
    (file,) = find_files(str(path), KEY)
    assert list(file.lines(10)) == [(0, b"x" * 10), (1, b"y" * 11), (2, b"z" * 11), (4, b"v" * 10)]


def test_ends_within_a_line_count(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"x" * 10 + b"\r\r\n" + b"y" * 10 + b"\rz\n" + b" " * 40 + b"\nlast")
    (file,) = find_files(str(tmp_path / "a.jsonl"), KEY)
    assert list(file.lines(10)) == [(0, b"x" * 10 + b"\r"), (1, b"y" * 10 + b"\r"), (3, b"last")]


# --- archives that lie ---


def test_an_encrypted_zip_says_so(tmp_path):
    data = bytearray(zipped(tmp_path / "1.json.zip", b"[]").read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    (tmp_path / "1.json.zip").write_bytes(data)
    with pytest.raises(UserError, match="encrypted"):
        list(read_products_file(product_files(str(tmp_path), KEY)[0], "en-US"))


def test_names_in_an_archive_decide_nothing(tmp_path):
    """Nothing is unpacked to disk, so a member called ../../x is just read."""
    path = zipped(tmp_path / "a.jsonl.zip", b'{"pin_id": "p1"}', "../../etc/evil.jsonl")
    assert load(path)[0]["pin_id"].to_pylist() == ["p1"]
    assert [found.name for found in tmp_path.iterdir()] == ["a.jsonl.zip"]


def test_a_member_without_a_name_is_one(tmp_path):
    """`ZipInfo.is_dir` raises an IndexError for it."""
    with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("x"), b'{"pin_id": "p1"}')
    data = (tmp_path / "a.jsonl.zip").read_bytes()
    local, central = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    data = bytearray(data)
    for at in (central + 46, local + 30):  # the names, last one first
        del data[at]
    data[local + 26] = data[central - 1 + 28] = 0  # their lengths
    end = data.index(b"PK\x05\x06")
    data[end + 12] -= 1  # size of the directory
    data[end + 16] -= 1  # its place
    (tmp_path / "a.jsonl.zip").write_bytes(data)
    assert load(tmp_path / "a.jsonl.zip")[0]["pin_id"].to_pylist() == ["p1"]


def test_a_parquet_file_whose_column_has_no_readable_name_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"pin_id": ["p1"], "zqzq": ["x"]}), tmp_path / "a.parquet", store_schema=False)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(b"zqzq", b"\xff\xfe\xff\xfe"))
    with pytest.raises(UserError, match="corrupt"):
        load(tmp_path / "a.parquet")


def test_bz2_is_not_opened_at_all(tmp_path):
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(b'{"pin_id": "p1"}'))
    with pytest.raises(UserError, match="cannot tell it from the name"):
        load(tmp_path / "a.jsonl.bz2")


# --- rows that once stopped the job ---


def test_nan_as_an_action_costs_one_row_of_nothing_else(tmp_path):
    line = '{"event_id": "%s", "timestamp": 1717527761, "query": "q", "locale": "en", "action": %s}\n'
    (tmp_path / "a.jsonl").write_text(line % ("a", "NaN") + line % ("b", '"impression"'))
    valid, refused = load(tmp_path / "a.jsonl", "search_log")
    assert (valid["event_id"].to_pylist(), refused["row"].to_pylist()) == (["b"], [0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", ["9" * 400, "1e39", "-1e308"])
def test_a_number_beyond_all_floats_costs_one_vector(tmp_path, number):
    (tmp_path / "a.jsonl").write_text(
        f'{{"pin_id": "a", "style": [1, {number}]}}\n{{"pin_id": "b", "style": [1, 2]}}\n'
    )
    valid, refused = load(tmp_path / "a.jsonl", "pins", {"style": 2})
    assert (valid["pin_id"].to_pylist(), refused["reason"][0].as_py().partition(":")[0]) == (["b"], "bad_vector")


def test_a_log_cannot_write_its_own_reason(tmp_path):
    """`_source` that is a text was taken for the reason why its line is refused, and stood in the quarantine as our words."""
    (tmp_path / "log.jsonl").write_text('{"_source": "all is well"}\n')
    source = UbiSource(path=str(tmp_path))
    batches, _ = join_ubi([read_ubi_file(f, source) for f in find_files(source.path, KEY)], source, None)
    rules = table_rules("search_log", IngestLimits())
    _, refused = settle([check_batch(batch, rules) for batch in batches], rules)
    assert refused["reason"].to_pylist() == ["corrupt_row: not a JSON object"]


# --- what reaches the terminal ---


def test_columns_of_a_file_cannot_write_to_the_terminal(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'"sku\x1b]0;owned\x07","\ndone, all is well"\n1,2\n')
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).isprintable() and "\\x1b]0;owned\\x07" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("für 日本", "für 日本"),
        ("a\nb", "a\\nb"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202eevil", "\\u202eevil"),
        ("\udc80", "\\udc80"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown
