"""The ledger: nothing paid for is lost, nothing is computed twice, nothing torn is served."""

import logging
from dataclasses import replace

import pyarrow as pa
import pytest

from ray_app.base.content_key import content_keys, pin_keys
from ray_app.base.errors import UserError
from ray_app.base.hashing import bucket_of, buckets_of_hashes
from ray_app.base.storage import Storage, encode_table
from ray_app.tables import ledger as tables_ledger
from ray_app.tables.keys import KeySet, key_numbers
from ray_app.tables.ledger import Ledger, missing_rows

SCHEMA = pa.schema(
    [pa.field("content_key", pa.string(), nullable=False), ("length", pa.int64()), ("error", pa.string())]
)


def results(*keys, error=None):
    return pa.table({"content_key": list(keys), "length": [len(k) for k in keys], "error": [error] * len(keys)}, SCHEMA)


def wanted(*keys):
    return pa.table({"content_key": pa.array(keys, pa.string()), "row": list(range(len(keys)))})


@pytest.fixture
def ledger(tmp_path):
    return Ledger(Storage(str(tmp_path)), "soft_labels", "0123456789abcdef", SCHEMA)


def keys(ledger):
    return sorted(ledger.present_keys().to_pylist())


def only_file(ledger):
    (path,) = ledger.store.list_files(ledger.folder)
    return path


# --- what is left to do ---


@pytest.mark.parametrize(
    ("asked", "rows"),
    [("edcab", [0, 2, 4]), ("ebebc", [0, 1, 4]), ("ad", []), ("", [])],
    ids=["in the order given", "a repeated key once", "all there", "nothing wanted"],
)
def test_what_is_missing(ledger, asked, rows):
    """The order decides the batches, and those decide rounding."""
    ledger.commit(results("d", "a"))
    assert ledger.missing(wanted(*asked))["row"].to_pylist() == rows


def test_a_failed_row_is_not_missing(ledger):
    """Else each run would pay for the same bad rows again."""
    ledger.commit(results("a", error="too long"))
    assert ledger.missing(wanted("a")).num_rows == 0


def test_another_recipe_has_its_own_results(ledger):
    """Else a new teacher would be given the old teacher's labels."""
    ledger.commit(results("a"))
    other = Ledger(ledger.store, ledger.table, "f" * 16, SCHEMA)
    assert other.missing(wanted("a")).num_rows == 1


# --- committing ---


def test_committing_twice_gives_one_row(ledger):
    """A worker that dies after its commit is given the block again."""
    ledger.commit(results("a", "b"))
    ledger.commit(results("a", "b"))
    assert keys(ledger) == ["a", "b"]
    assert len(ledger.store.list_files(ledger.folder)) == 1


def test_overlapping_blocks_give_each_key_once(ledger):
    """Two jobs at once, or rounding that differs between two machines."""
    ledger.commit(results("a", "b"))
    ledger.commit(results("b", "c"))
    assert keys(ledger) == ["a", "b", "c"]


@pytest.mark.parametrize("block", [("a", "a"), ("a", None)])
def test_a_block_with_repeated_or_null_keys_is_refused(ledger, block):
    table = pa.table({"content_key": list(block), "length": [1, 2], "error": pa.array([None, None], pa.string())})
    with pytest.raises(ValueError, match="unique, non-null"):
        ledger.commit(table)


def test_an_all_null_error_column_keeps_its_type(ledger):
    ledger.commit(pa.table({"content_key": ["a"], "length": [1], "error": [None]}))
    assert ledger.scan().table.schema == SCHEMA


# --- looking up ---


def test_lookup_answers_row_by_row(ledger):
    """An answer in another order would give each pin another pin's vector."""
    ledger.commit(results("ccc", "a"))
    ledger.commit(results("bb"))
    found = ledger.lookup(pa.array(["a", "bb", "ccc", "a"]))
    assert found["length"].to_pylist() == [1, 2, 3, 1]


def test_lookup_of_an_absent_key_raises(ledger):
    ledger.commit(results("a"))
    with pytest.raises(KeyError, match="1 of 2 keys"):
        ledger.lookup(pa.array(["a", "b"]))


# --- torn files ---


def test_a_truncated_file_counts_as_absent_wherever_it_was_cut(ledger):
    ledger.commit(results("a", "b"))
    path = only_file(ledger)
    data = ledger.store.read_bytes(path)
    for length in {0, 1, 4, 8, *range(12, len(data), 97), len(data) - 8, len(data) - 1}:
        ledger.store.write_bytes(path, data[:length])
        assert keys(ledger) == []


def test_a_flipped_bit_counts_as_absent_wherever_it_is(ledger):
    """Parquet's page checksums miss headers and schema: with them alone some flips are read as other values."""
    ledger.commit(results("a", "b"))
    path = only_file(ledger)
    data = bytearray(ledger.store.read_bytes(path))
    for position in range(0, len(data), 41):
        data[position] ^= 0x01
        ledger.store.write_bytes(path, bytes(data))
        assert keys(ledger) == []
        data[position] ^= 0x01


@pytest.mark.parametrize("data", [b"", b"PAR1", b"garbage" * 100])
def test_a_torn_file_is_named_in_a_warning_and_does_not_hide_the_others(ledger, data, caplog):
    ledger.commit(results("a"))
    ledger.store.write_bytes(f"{ledger.folder}/torn.parquet", data)
    with caplog.at_level(logging.WARNING):
        assert ledger.scan().corrupt_files == [f"{ledger.folder}/torn.parquet"]
    assert "torn.parquet" in caplog.text
    assert keys(ledger) == ["a"]


def test_computing_a_torn_block_again_repairs_it(ledger):
    ledger.commit(results("a", "b"))
    ledger.store.write_bytes(only_file(ledger), b"torn")
    ledger.commit(results("a", "b"))
    assert ledger.scan().corrupt_files == []
    assert keys(ledger) == ["a", "b"]


def test_another_schema_under_the_same_recipe_is_an_error(ledger):
    """Not a reason to compute everything again without a word: some recipe forgot a setting."""
    ledger.commit(results("a"))
    other = Ledger(ledger.store, ledger.table, ledger.recipe, SCHEMA.append(pa.field("probs", pa.float64())))
    with pytest.raises(UserError, match="another schema"):
        other.scan()


# --- garbage ---


def test_garbage_collection_keeps_what_is_referenced_with_its_values(ledger):
    ledger.commit(results("a", "b", "ccc"))
    ledger.commit(results("d", "e"))
    ledger.commit(results("f"))
    assert ledger.collect_garbage(KeySet.of([pa.array(["a", "ccc", "f", "never seen"])])) == 3
    assert keys(ledger) == ["a", "ccc", "f"]
    assert ledger.lookup(pa.array(["ccc"]))["length"].to_pylist() == [3]


def test_garbage_collection_deletes_torn_files(ledger):
    ledger.store.write_bytes(f"{ledger.folder}/torn.parquet", b"PAR1")
    ledger.collect_garbage(KeySet.of([pa.array([], pa.string())]))
    assert ledger.store.list_files(ledger.folder) == []


def test_a_crash_between_commit_and_delete_loses_nothing(ledger, monkeypatch):
    ledger.commit(results("a", "b"))

    def crash(self, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", crash)
        with pytest.raises(KeyboardInterrupt):
            ledger.collect_garbage(KeySet.of([pa.array(["a"])]))
    assert keys(ledger) == ["a", "b"]
    ledger.collect_garbage(KeySet.of([pa.array(["a"])]))
    assert keys(ledger) == ["a"]


def test_dropped_errors_are_missing_again(ledger):
    """The way to retry rows whose cause was fixed."""
    ledger.commit(pa.concat_tables([results("a"), results("b", error="timeout")]))
    assert ledger.drop_errors() == 1
    assert ledger.missing(wanted("a", "b"))["content_key"].to_pylist() == ["b"]


# --- buckets ---


def keyed(numbers, pins=None):
    """Results whose keys are spread over all buckets, as hashes are; of pins, in the buckets of the pins."""
    keys = content_keys("r", [f"content {i}" for i in numbers])
    keys = keys if pins is None else pin_keys(keys, pins)
    return pa.table({"content_key": keys, "length": [*numbers], "error": pa.nulls(len(keys), pa.string())}, SCHEMA)


@pytest.mark.parametrize("written", [1, 2, 16, 64])
@pytest.mark.parametrize("read", [1, 2, 16, 64])
def test_each_bucket_holds_its_keys_whatever_number_of_buckets_they_were_written_in(ledger, written, read):
    rows = keyed(range(300))
    replace(ledger, num_buckets=written).commit(rows)
    reader = replace(ledger, num_buckets=read)
    buckets = buckets_of_hashes(key_numbers(rows["content_key"])[:, 0], read)
    for bucket in range(read):
        own = rows.filter(pa.array(buckets == bucket))
        assert missing_rows(own, reader.keys(bucket).keys)[0].num_rows == 0
        assert reader.lookup(own["content_key"], bucket)["length"].equals(own["length"])
    if read >= 16 and written >= 16:
        files = [len(reader.files(bucket)) for bucket in range(read)]
        assert max(files) <= max(1, written // read) and sum(files) <= max(written, read), (
            "others' files are not opened"
        )


@pytest.mark.parametrize("written", [1, 4, 64])
@pytest.mark.parametrize("cut", [1, 4, 16])
def test_each_bucket_forgets_rows_of_its_own_files_and_all_together_those_of_all(ledger, written, cut):
    """Tasks that rewrite the same file at the same time would delete it under each other."""
    rows = keyed(range(100))
    failed = rows.set_column(2, "error", pa.array(["timeout" if i % 10 == 0 else None for i in range(100)]))
    replace(ledger, num_buckets=written).commit(failed)
    writer = replace(ledger, num_buckets=cut)
    files = ledger.files()
    opened = [path for bucket in range(cut) for path in writer._files_begun_in(bucket)]
    assert sorted(opened) == files
    assert sum(writer.drop_errors(bucket) for bucket in range(cut)) == 10
    unwanted = KeySet.of([rows["content_key"].slice(95), pa.array(["never seen"])])
    assert sum(writer.drop(unwanted, bucket) for bucket in range(cut)) == 5
    assert keys(ledger) == sorted(rows["content_key"][i].as_py() for i in range(95) if i % 10)


def test_results_of_a_pin_are_in_the_bucket_of_the_pin(ledger):
    pins = [f"pin {i}" for i in range(200)]
    rows = keyed(range(200), pins)
    assert len(set(rows["content_key"].to_pylist())) == 200
    numbers = key_numbers(rows["content_key"])[:, 0]
    for num_buckets in (1, 8, 2**20):
        assert (buckets_of_hashes(numbers, num_buckets) == bucket_of(pins, num_buckets)).all()


def test_small_files_are_merged_and_a_year_of_days_leaves_no_more_than_a_month(ledger):
    ledger = replace(ledger, num_buckets=2)
    num_files = []
    for day in range(100):
        ledger.commit(keyed(range(20 * day, 20 * day + 20)))
        for bucket in range(2):
            ledger.compact(bucket)
        num_files.append(len(ledger.files()))
    assert max(num_files[30:]) <= max(num_files[:30]) <= 2 * 16
    assert sorted(ledger.scan().table["length"].to_pylist()) == list(range(2000))


def test_merging_disturbs_no_reader_and_a_kill_in_its_middle_loses_nothing(ledger, monkeypatch):
    for i in range(20):
        ledger.commit(keyed([i]))
    blocks = ledger.blocks()
    first = next(blocks)  # the files are listed
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.compact(0)
    assert sorted(ledger.scan().table["length"].to_pylist()) == list(range(20)), "merged and old files are there"
    assert ledger.compact(0) == 21
    assert len(ledger.files()) == 1
    assert {n for block in (first, *blocks) for n in block["length"].to_pylist()} == set(range(20))


@pytest.mark.parametrize("num_torn", [1, 20])
def test_a_torn_file_is_not_merged_and_its_rows_are_not_taken_for_there(ledger, num_torn):
    """Those of a bucket without a whole file ended the job with a traceback, after its work."""
    for i in range(20):
        ledger.commit(keyed([i]))
    for torn in ledger.files()[:num_torn]:
        ledger.store.write_bytes(torn, b"PAR1")
    ledger.compact(0)
    scan = ledger.scan()
    assert scan.corrupt_files == [] and scan.table.num_rows == 20 - num_torn


def test_merging_ends_with_few_files_however_many_there_were(ledger, monkeypatch):
    """One merge at each job's end left readers with the files of a large first run for weeks."""
    monkeypatch.setattr(tables_ledger, "_MERGED_BYTES", 20_000)
    for i in range(100):
        ledger.commit(keyed([i]))
    ledger.compact(0)
    assert len(ledger.files()) < 20
    assert ledger.scan().table.num_rows == 100


def test_a_ledger_of_a_version_that_did_not_note_the_day_is_kept_and_read(ledger):
    """Its captions cost GPU time; the message said to delete that folder."""
    data = encode_table(keyed([1, 2]))
    ledger.store.write_bytes(f"{ledger.folder}/{tables_ledger._file_name(data)}", data)
    ledger.commit(keyed([3]))
    assert ledger.drop_errors() == 0
    found = Ledger.found(ledger.store, ledger.table, ledger.recipe)
    assert found.schema == SCHEMA
    assert found.collect_garbage(KeySet.of([keyed([2])["content_key"]]), since=tables_ledger.today()) == 1
    assert keys(ledger) == sorted(keyed([2, 3])["content_key"].to_pylist())
