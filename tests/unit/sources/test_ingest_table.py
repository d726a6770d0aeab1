"""A column map that is wrong, or a file that is torn, must say so and not load as nulls."""

import gzip
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.base.config import IngestLimits, TableSource
from ray_app.base.errors import UserError
from ray_app.sources.adapters.table import read_table_file
from ray_app.sources.files import find_files
from ray_app.sources.validate import check_batch, settle, table_rules

KEY = "ingest.pins.path"
MAPPED = {"pin_id": "sku", "title": "name"}


def load(path, table="pins", vectors=None, **source):
    """Valid rows and quarantine of a table source."""
    made = TableSource(path=str(path), **source)
    rules = table_rules(table, IngestLimits(), made.grade_map, vectors)
    batches = [b for file in find_files(made.path, KEY) for b in read_table_file(file, made, rules)]
    return settle([check_batch(b, rules) for b in batches], rules)


def reasons(quarantine):
    return list(zip(quarantine["row"].to_pylist(), [r.partition(":")[0] for r in quarantine["reason"].to_pylist()], strict=True))  # fmt: skip


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(folder, **columns):
    pq.write_table(pa.table(columns), folder / "pins.parquet")
    return folder / "pins.parquet"


def test_three_formats_give_the_same_rows(tmp_path):
    rows = [{"sku": "1", "name": "Für dich"}, {"sku": "2", "name": None}]
    csv_file = write(tmp_path, "a.csv", "sku,name\n1,Für dich\n2,\n")
    jsonl_file = write(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    parquet_file = parquet(tmp_path, sku=["1", "2"], name=["Für dich", None])
    csv_pins, jsonl_pins, parquet_pins = (load(p, columns=MAPPED)[0] for p in (csv_file, jsonl_file, parquet_file))
    assert csv_pins.equals(jsonl_pins) and csv_pins.equals(parquet_pins) and csv_pins.num_rows == 2


@pytest.mark.parametrize("pack", ["gz", "zip"])
def test_packed_files_are_read(tmp_path, pack):
    path = tmp_path / f"a.csv.{pack}"
    if pack == "gz":
        path.write_bytes(gzip.compress(b"pin_id\np1\n"))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.csv", "pin_id\np1\n")
    assert load(path)[0]["pin_id"].to_pylist() == ["p1"]


NOT_UTF8 = pa.array([b"caf\xe9", b"tea"], pa.binary()).view(pa.string())
BEYOND_DATETIME = pa.array([2**60, 0], pa.int64()).cast(pa.timestamp("ms"))


@pytest.mark.parametrize(
    ("name", "content", "refused"),
    [
        ("a.csv", b"pin_id,title\np1,caf\xe9\np2,tea\n", {0: "invalid_utf8"}),
        ("a.jsonl", b'{"pin_id": "p1", "title": "caf\xe9"}\n{"pin_id": "p2"}\n', {0: "invalid_utf8"}),
        ("pins.parquet", {"title": NOT_UTF8}, {0: "invalid_utf8"}),
        ("pins.parquet", {"created_at": BEYOND_DATETIME}, {0: "bad_timestamp"}),
        ("a.csv", "pin_id,title\np1\np2,b\np3,c,d\n", {0: "corrupt_row", 2: "corrupt_row"}),
        ("a.csv", f"pin_id,title\np1,{'x' * 200_000}\np2,b\n", {0: "too_long"}),
        *(
            ("a.jsonl", f'{line}\n\n{{"pin_id": "p2"}}\n', {0: "corrupt_row"})
            for line in ("{", "[1]", "17", "nonsense", "[" * 5000)
        ),
    ],
    ids=["utf8 csv", "utf8 json", "utf8 parquet", "time", "fields", "long", "open", "list", "number", "text", "deep"],
)
def test_a_row_that_cannot_be_read_costs_that_row_alone(tmp_path, name, content, refused):
    if isinstance(content, dict):
        path = parquet(tmp_path, pin_id=["p1", "p2"], **content)
    else:
        path = write(tmp_path, name, content)
    valid, quarantine = load(path)
    assert (valid["pin_id"].to_pylist(), dict(reasons(quarantine))) == (["p2"], refused)


def test_vectors_of_parquet_arrive(tmp_path):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0]), 2)
    valid, _ = load(parquet(tmp_path, pin_id=["p1", "p2"], visual=vectors), vectors={"visual": 2})
    assert valid["visual"].to_pylist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_folder_is_read_whole_and_its_notes_are_not(tmp_path):
    for name in ("b.csv", "a.csv", "_SUCCESS.csv", ".tmp-1.csv"):
        write(tmp_path, name, f"pin_id\n{name}\n")
    assert load(tmp_path)[0]["pin_id"].to_pylist() == ["a.csv", "b.csv"]


def test_a_glob_selects_files(tmp_path):
    (tmp_path / "day").mkdir()
    for name in ("day/a.csv", "day/b.txt"):
        write(tmp_path, name, f"pin_id\n{name}\n")
    assert load(tmp_path / "*" / "*.csv")[0]["pin_id"].to_pylist() == ["day/a.csv"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"columns": {"pin_id": "sku", "title": "nmae"}}, "has no column 'nmae' for title"),
        ({"columns": {"pin_id": "ean"}}, "has no column 'ean' for pin_id"),
        ({"columns": {"pin_id": "sku", "tilte": "name"}}, "did you mean 'title'"),
        ({"columns": {"pin_id": "sku"}, "constants": {"colour": "red"}}, "has no column 'colour'"),
        ({"columns": {"title": "name"}}, "has no column 'pin_id' for pin_id"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_wrong_column_map_is_refused(tmp_path, kind, source, message):
    """Else the column would be null for every row, and the models would train on nothing."""
    if kind == "parquet":
        path = parquet(tmp_path, sku=["1"], name=["a"])
    else:
        path = write(tmp_path, f"a.{kind}", "sku,name\n1,a\n" if kind == "csv" else '{"sku": "1", "name": "a"}\n')
    source = (
        {**source, "columns": {"pin_id": "sku", **source.get("columns", {})}} if "pin_id" not in message else source
    )
    with pytest.raises(UserError, match=message):
        load(path, **source)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, b"this is not what the name says") for name in ("a.parquet", "a.csv.gz", "a.csv.zip")),
        ("torn.csv.gz", gzip.compress(b"pin_id\n" + bytes(str(list(range(999))), "ascii"))[:-20]),
    ],
)
def test_a_corrupt_file_is_named(tmp_path, name, content):
    with pytest.raises(UserError, match=rf"{KEY}: .*{name} is corrupt"):
        load(write(tmp_path, name, content))


def test_a_torn_parquet_file_is_named(tmp_path):
    path = parquet(tmp_path, pin_id=[str(i) for i in range(1000)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"pins.parquet is corrupt"):
        load(path)


@pytest.mark.parametrize("name", ["none.csv", "none/*.csv", "*.tsv"])
def test_a_missing_file_names_the_config_key(tmp_path, name):
    with pytest.raises(UserError, match=KEY):
        load(tmp_path / name)


def test_an_unknown_ending_asks_for_the_format(tmp_path):
    with pytest.raises(UserError, match=r"ingest.pins.format"):
        load(write(tmp_path, "a.dat", "pin_id\n1\n"))
