"""Sources that are made to hurt: bombs, archives that lie, rows that are meant to reach a terminal or pass for our words."""

import bz2
import gzip
import io
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from minimal import message, peak_bytes

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


def source_file(path):
    (file,) = find_files(str(path), KEY)
    return file


def load(path, name="pins", vectors=None):
    """Valid rows and quarantine."""
    rules = table_rules(name, IngestLimits(), None, vectors)
    batches = read_table_file(source_file(path), TableSource(path=str(path)), rules)
    return settle([check_batch(batch, rules) for batch in batches], rules)


def products(folder):
    return list(read_products_file(product_files(str(folder), KEY)[0], "en-US"))


def zipped(path, content, name="a.json", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    return path


def write_parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def refused(path, match, read=load):
    """That the whole file is."""
    with pytest.raises(UserError, match=match):
        read(path)


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
    refused(bomb, "unpacks to more than 300 times")


def test_a_zip_bomb_of_products_is_not_unpacked_whole(tmp_path, small_limits):
    zipped(tmp_path / "1.json.zip", b"[" + b" " * 20_000_000 + b"]")
    refused(tmp_path, "unpacks to more than 300 times", products)


@pytest.mark.parametrize(("method", "name"), [(zipfile.ZIP_LZMA, "lzma"), (zipfile.ZIP_BZIP2, "bzip2")])
def test_a_zip_of_another_method_is_not_unpacked(tmp_path, method, name):
    """zipfile unpacks all that it read of those in one go: 706 bytes were 800 MB before the bound was looked at."""
    path = zipped(tmp_path / "a.jsonl.zip", bytes(30_000_000), method=method)
    assert peak_bytes(lambda: refused(path, f"is packed with {name}; pack it with deflate")) < 3_000_000


def test_a_long_text_that_each_row_names_is_one_text(tmp_path):
    """1,527 bytes of Parquet were 382 MB in one batch: the dictionary's one text, spelled out for each of 400 rows."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["x" * 1_000_000]))
    columns = {"pin_id": [f"p{i}" for i in range(100)], "title": text}
    path = write_parquet(tmp_path / "a.parquet", columns, compression="zstd")
    told = "too_long: title has 1,000,000 characters, at most 20,000 are allowed"

    def look():
        valid, quarantine = load(path)
        assert valid.num_rows == 0 and set(quarantine["reason"].to_pylist()) == {told}

    assert peak_bytes(look) < 10_000_000


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_parquet_bomb_is_left_where_it_goes_off(tmp_path, small_limits, monkeypatch, store_schema):
    """Texts that are short enough for the table, of which a small file has any number."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), pa.array(["x" * 10_000]))
    columns = {"pin_id": ["p"] * 200_000, "title": text}
    path = write_parquet(tmp_path / "a.parquet", columns, compression="zstd", store_schema=store_schema)
    read = count_batches(monkeypatch)
    refused(path, "unpacks to more than 300 times")
    assert len(read) == 2, "both columns of the first batch"


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_texts_in_any_encoding_are_read_and_bounded(tmp_path, monkeypatch, encoding):
    """Of prefix-coded texts a row is as long as all of them: few are decoded at a time."""
    columns = {"pin_id": [f"p{i}" for i in range(200)], "title": ["x" * 100_000 + str(i) for i in range(200)]}
    coding = {"title": encoding, "pin_id": "PLAIN"}
    path = write_parquet(tmp_path / "a.parquet", columns, use_dictionary=False, column_encoding=coding)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 1_000_000)
    read = count_batches(monkeypatch)
    assert load(path)[1].num_rows == 200
    assert max(read) <= 10


def write_prefix_coded(path, titles):
    columns = {"pin_id": [f"p{i:05d}" for i in range(len(titles))], "title": titles}
    coding = dict.fromkeys(columns, "DELTA_BYTE_ARRAY")
    return write_parquet(path, columns, use_dictionary=False, column_encoding=coding, compression="zstd")


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
    path = write_parquet(tmp_path / "a.parquet", {"pin_id": ["p1"], "title": [["a", "b"]]})
    refused(path, "column 'title' of .* is of the type list<.*>, which title cannot be made of")


def test_numbers_that_a_column_repeats_are_decoded_in_parts(tmp_path, monkeypatch):
    """A run of equal numbers is a few bytes, however long: the footer's count decides how many rows are a batch."""
    vectors = pa.array([[1.0] * 50_000] * 40, pa.list_(pa.float32()))
    path = write_parquet(tmp_path / "a.parquet", {"pin_id": [f"p{i}" for i in range(40)], "style": vectors})
    monkeypatch.setattr(parquet, "BATCH_BYTES", 1_000_000)
    read = count_batches(monkeypatch)
    assert load(path, vectors={"style": 50_000})[0].num_rows == 40
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

    assert peak_bytes(look) < 20_000_000


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
        rules = table_rules("pins", IngestLimits())
        batches = read_table_file(source_file(tmp_path / name), TableSource(path=name), rules)
        sizes = [len(batch.rows) for batch in batches]
        assert sum(sizes) == 50 and max(sizes) <= 4


def test_a_file_that_packs_well_but_is_small_is_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"pin_id": "p", "title": "' + b"x" * 1000 + b'"}\n' + b"\n" * 1_000_000))
    assert load(path)[0].num_rows == 1


def test_a_packed_parquet_file_can_be_read_in_any_order(tmp_path):
    out = io.BytesIO()
    write_parquet(out, {"pin_id": [f"p{i:06d}" for i in range(50_000)]}, row_group_size=1000)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(out.getvalue()))
    assert load(tmp_path / "a.parquet.gz")[0].num_rows == 50_000


def test_a_csv_without_line_ends_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    (tmp_path / "a.csv").write_bytes(b"pin_id\n" + b"x" * 50_000 + b"\np1\n")
    file = source_file(tmp_path / "a.csv")
    with file.open_plain() as plain:
        assert max(map(len, file.text_lines(plain))) == 1000


X, Y = b"x" * 10, b"y" * 10  # just the bytes that are allowed


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (X + b"\n" + Y + b"y\n" + Y * 3 + b"\n\n" + X, [(0, X), (1, Y + b"y"), (2, Y + b"y"), (4, X)]),
        (X + b"\r\n" + Y + b"y\r\n" + Y * 3 + b"\r\n\r\n" + X, [(0, X), (1, Y + b"y"), (2, Y + b"y"), (4, X)]),
        (X + b"\r\r\n" + Y + b"\rz\n" + b" " * 40 + b"\nlast", [(0, X + b"\r"), (1, Y + b"\r"), (3, b"last")]),
    ],
    ids=["unix", "dos", "ends within a line count"],
)
def test_a_lines_end_does_not_count(tmp_path, content, lines):
    """A line of just the bytes that are allowed was too long by its line end, unless it was the last."""
    (tmp_path / "a.jsonl").write_bytes(content)
    assert list(source_file(tmp_path / "a.jsonl").lines(10)) == lines


# --- archives that lie ---


def test_an_encrypted_zip_says_so(tmp_path):
    data = bytearray(zipped(tmp_path / "1.json.zip", b"[]").read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    (tmp_path / "1.json.zip").write_bytes(data)
    refused(tmp_path, "encrypted", products)


def test_names_in_an_archive_decide_nothing(tmp_path):
    """Nothing is unpacked to disk, so a member called ../../x is just read."""
    path = zipped(tmp_path / "a.jsonl.zip", b'{"pin_id": "p1"}', "../../etc/evil.jsonl")
    assert load(path)[0]["pin_id"].to_pylist() == ["p1"]
    assert [found.name for found in tmp_path.iterdir()] == ["a.jsonl.zip"]


def test_a_member_without_a_name_is_one(tmp_path):
    """`ZipInfo.is_dir` raises an IndexError for it."""
    path = zipped(tmp_path / "a.jsonl.zip", b'{"pin_id": "p1"}', zipfile.ZipInfo("x"))
    data = bytearray(path.read_bytes())
    local, central = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    for at in (central + 46, local + 30):  # the names, last one first
        del data[at]
    data[local + 26] = data[central - 1 + 28] = 0  # their lengths
    end = data.index(b"PK\x05\x06")
    data[end + 12] -= 1  # size of the directory
    data[end + 16] -= 1  # its place
    path.write_bytes(data)
    assert load(path)[0]["pin_id"].to_pylist() == ["p1"]


def test_a_parquet_file_whose_column_has_no_readable_name_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"pin_id": ["p1"], "zqzq": ["x"]}, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"zqzq", b"\xff\xfe\xff\xfe"))
    refused(path, "corrupt")


def test_bz2_is_not_opened_at_all(tmp_path):
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(b'{"pin_id": "p1"}'))
    refused(tmp_path / "a.jsonl.bz2", "cannot tell it from the name")


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
    batches, _ = join_ubi([read_ubi_file(source_file(tmp_path), source)], source, None)
    rules = table_rules("search_log", IngestLimits())
    _, refused = settle([check_batch(batch, rules) for batch in batches], rules)
    assert refused["reason"].to_pylist() == ["corrupt_row: not a JSON object"]


# --- what reaches the terminal ---


def test_columns_of_a_file_cannot_write_to_the_terminal(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'"sku\x1b]0;owned\x07","\ndone, all is well"\n1,2\n')
    said = message(lambda: load(tmp_path / "a.csv"))
    assert said.isprintable() and "\\x1b]0;owned\\x07" in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [("für 日本", "für 日本"), ("a\nb", "a\\nb"), ("\x1b[2J", "\\x1b[2J"), ("\u202eevil", "\\u202eevil"), ("\udc80", "\\udc80")],
)  # fmt: skip
def test_printable(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown
