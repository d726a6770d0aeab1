"""The ledger against a dict: whatever is committed, torn, forgotten or collected in whatever order."""

import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from ray_app.base.storage import Storage
from ray_app.tables.keys import KeySet
from ray_app.tables.ledger import Ledger

SCHEMA = pa.schema({"content_key": pa.string(), "value": pa.int64(), "error": pa.string()})
KEYS = st.sampled_from("abcdefgh")
SETS = st.sets(KEYS)


def value_of(key):
    """A result follows from its key, as a model's does."""
    return ord(key)


class LedgerMachine(RuleBasedStateMachine):
    files = Bundle("files")

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ray_app_ledger_"))
        self.store = Storage(str(self.folder))
        self.ledger = Ledger(self.store, "labels", "r" * 16, SCHEMA)
        self.blocks = {}  # path -> {key: failed}, of whole files

    def teardown(self):
        shutil.rmtree(self.folder)

    def _model(self):
        """Of a key with several results that of the first file, by name, counts."""
        found = {}
        for path in sorted(self.blocks):
            for key, failed in self.blocks[path].items():
                found.setdefault(key, failed)
        return found

    def _reread(self, changed):
        """After a rewrite only the names of files are not ours to foresee: read them, and compare the rows with the model."""
        self.blocks = {}
        for path in self.store.list_files(self.ledger.folder, ".parquet"):
            self._reread_one(path)
        found, wanted = ({tuple(sorted(b.items())) for b in blocks if b} for blocks in (self.blocks.values(), changed))
        assert found == wanted

    def _reread_one(self, path):
        table = self.ledger._read_file(path, SCHEMA.names)
        if table is not None:
            self.blocks[path] = {row["content_key"]: row["error"] is not None for row in table.to_pylist()}

    @rule(target=files, rows=st.dictionaries(KEYS, st.booleans(), min_size=1, max_size=4))
    def commit(self, rows):
        table = pa.table(
            {"content_key": list(rows), "value": [None if bad else value_of(key) for key, bad in rows.items()],
             "error": ["failed" if bad else None for bad in rows.values()]}, schema=SCHEMA,
        )  # fmt: skip
        (path,) = self.ledger.commit(table)
        assert self.ledger.commit(table) == [path], "the same block again is the same file"
        self.blocks[path] = rows
        return path

    @rule(path=consumes(files), keep=st.floats(0, 0.99))
    def tear(self, path, keep):
        file = self.folder / path
        if file.exists():
            data = file.read_bytes()
            file.write_bytes(data[: int(len(data) * keep)])
            self.blocks.pop(path, None)

    @rule(target=files, path=consumes(files), at=st.floats(0, 0.999), bit=st.integers(0, 7))
    def flip_a_bit(self, path, at, bit):
        file = self.folder / path
        if not file.exists() or not file.stat().st_size:
            return multiple()
        data = bytearray(file.read_bytes())
        data[int(len(data) * at)] ^= 1 << bit
        file.write_bytes(data)
        if self.blocks.pop(path, None) is None:  # torn before: it may even be whole again
            self._reread_one(path)
        return path

    @rule()
    def drop_errors(self):
        dropped = self.ledger.drop_errors()
        assert dropped == sum(failed for block in self.blocks.values() for failed in block.values())
        self._reread([{k: bad for k, bad in block.items() if not bad} for block in self.blocks.values()])

    @rule(referenced=SETS)
    def collect_garbage(self, referenced):
        dropped = self.ledger.collect_garbage(KeySet.of([pa.array(sorted(referenced), pa.string())]))
        assert dropped == sum(key not in referenced for block in self.blocks.values() for key in block)
        self._reread([{k: bad for k, bad in block.items() if k in referenced} for block in self.blocks.values()])
        assert set(self.store.list_files(self.ledger.folder, ".parquet")) == set(self.blocks), "torn files are gone"

    @rule(wanted=st.lists(KEYS, max_size=8))
    def missing_is_what_has_no_result(self, wanted):
        rows = pa.table({"content_key": pa.array(wanted, pa.string()), "row": pa.array(range(len(wanted)), pa.int64())})
        present = self._model()
        absent = [key for key in dict.fromkeys(wanted) if key not in present]
        found = self.ledger.missing(rows)
        assert found["content_key"].to_pylist() == absent
        assert found["row"].to_pylist() == [wanted.index(key) for key in absent]

    @rule(asked=st.lists(KEYS, max_size=6))
    def lookup_answers_in_order_or_says_so(self, asked):
        present = self._model()
        if any(key not in present for key in asked):
            with pytest.raises(KeyError):
                self.ledger.lookup(pa.array(asked, pa.string()))
            return
        found = self.ledger.lookup(pa.array(asked, pa.string()))
        assert found["content_key"].to_pylist() == asked
        assert found["value"].to_pylist() == [None if present[key] else value_of(key) for key in asked]

    @invariant()
    def it_holds_what_was_committed_and_is_whole(self):
        scan = self.ledger.scan().table.to_pylist()
        assert {row["content_key"]: row["error"] is not None for row in scan} == self._model()
        assert len(scan) == len({row["content_key"] for row in scan})


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(settings.default, max_examples=max(10, settings.default.max_examples // 4))
