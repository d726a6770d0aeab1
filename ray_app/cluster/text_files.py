"""Pins' texts without holding them: the driver keys them file by file, and the actors that embed read their own."""

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import PinTextConfig
from ray_app.base.content_key import content_keys
from ray_app.base.storage import CorruptFileError, Storage
from ray_app.base.text import render_pin_texts
from ray_app.cluster.embedding import longest_first, wanted_texts
from ray_app.tables.manifest import Output, read_output_files

_ROWS = 16_384  # whose texts are Python objects at a time
_NO_ROWS = pa.schema([("content_key", pa.string()), ("length", pa.int32())]).empty_table()
_FILES_HELD = 2  # by an actor: blocks come in the files' order, and one may begin in one file and end in the next


@dataclass
class PinTextFiles:
    """The table `pin_texts` as rendered texts. Picklable: Ray actors read what they embed from storage.

    Args:
        store: Where it lies.
        output: Of `enrich`.
        cfg: How a pin's fields become one text.
        recipe: Of the vectors' content keys.
    """

    store: Storage
    output: Output
    cfg: PinTextConfig
    recipe: str
    _reserved: "OrderedDict[int, pa.Table]" = field(default_factory=OrderedDict, repr=False)

    def keyed(self) -> pa.Table:
        """Key all pins; one file is in memory at a time, besides some 70 bytes of each pin.

        Returns:
            Table (pin_id, content_key, file, row), file by file, within each as `longest_first`.

        Raises:
            CorruptFileError: a file is not what `enrich` wrote.
        """
        parts = []
        for number, table in enumerate(read_output_files(self.store, self.output)):
            slices = [table.slice(start, _ROWS) for start in range(0, table.num_rows, _ROWS)]
            keyed = pa.concat_tables([_NO_ROWS, *(self._keyed(part) for part in slices)])
            rows = longest_first(keyed)
            columns = {
                "pin_id": table["pin_id"].take(rows),
                "content_key": keyed["content_key"].take(rows),
                "file": pa.array(np.full(len(rows), number, np.int32)),
                "row": rows.cast(pa.int32()),
            }
            parts.append(pa.table(columns).combine_chunks())
        return pa.concat_tables(parts)

    def _keyed(self, table: pa.Table) -> pa.Table:
        keyed = wanted_texts(self.recipe, render_pin_texts(table, self.cfg))
        lengths = pc.utf8_length(keyed["text"])
        return pa.table({"content_key": keyed["content_key"], "length": lengths}, schema=_NO_ROWS.schema)

    def with_texts(self, wanted: pa.Table) -> pa.Table:
        """(content_key, text) of rows that `keyed` gave.

        Raises:
            CorruptFileError: a text is not the one that was keyed.
        """
        texts = np.empty(wanted.num_rows, object)
        files, rows = wanted["file"].to_numpy(), wanted["row"].to_numpy()
        for number in np.unique(files).tolist():
            places = np.flatnonzero(files == number)
            texts[places] = render_pin_texts(self._file(number).take(rows[places]), self.cfg)
        if content_keys(self.recipe, texts.tolist()) != wanted["content_key"].combine_chunks():
            raise CorruptFileError(f"{self.store.shown}/{self.output.path} changed while it was read; run embed again")
        return pa.table({"content_key": wanted["content_key"], "text": pa.array(texts, pa.string())})

    def _file(self, number: int) -> pa.Table:
        table = self._reserved.pop(number, None)
        if table is None:
            table = self.store.read_table(self.output.files[number])
            table = table.select([name for name in self.cfg.fields if name in table.column_names])
        self._reserved[number] = table
        while len(self._reserved) > _FILES_HELD:
            self._reserved.popitem(last=False)
        return table
