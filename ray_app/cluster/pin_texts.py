"""Texts of pins that a model reads, bucket by bucket, keyed for its ledger."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import PinTextConfig
from ray_app.base.content_key import content_keys, pin_keys
from ray_app.base.storage import CorruptFileError, Storage
from ray_app.base.text import render_pin_texts
from ray_app.cluster.embedding import longest_first
from ray_app.cluster.executor import Wanted
from ray_app.tables.buckets import read_bucket
from ray_app.tables.manifest import Output

_KEYED = pa.schema([("pin_id", pa.string()), ("content_key", pa.string()), ("config", pa.int32()), ("row", pa.int32())])


@dataclass(frozen=True)
class PinTexts:
    """The table `pin_texts` as rendered texts. Picklable: tasks read the buckets that they work on.

    Args:
        store: Where the table lies.
        output: The table.
        configs: Ways to make a text of a pin's fields, such as its title alone; each pin has a text of each.
        recipe: Of the content keys.
    """

    store: Storage
    output: Output
    configs: tuple[PinTextConfig, ...]
    recipe: str

    @property
    def wanted(self) -> Wanted:
        """The texts as rows of `ModelWork.compute`."""
        return Wanted(num_buckets=self.output.num_buckets, keyed=self.longest_first, columns=self.with_texts)

    def keyed(self, bucket: int) -> pa.Table:
        """Key the texts of a bucket.

        Returns:
            Table (pin_id, content_key, config, row): for each config all pins, in the order of the table.

        Raises:
            CorruptFileError: a file is not what `enrich` wrote.
        """
        return self._keyed(bucket).drop_columns(["length"])

    def longest_first(self, bucket: int) -> pa.Table:
        """The rows of `keyed`, in the order of `embedding.longest_first`."""
        keyed = self._keyed(bucket)
        return keyed.take(longest_first(keyed)).drop_columns(["length"])

    def _keyed(self, bucket: int) -> pa.Table:
        pins = read_bucket(self.store, self.output, bucket)
        parts = [_KEYED.append(pa.field("length", pa.int32())).empty_table()]
        for number, config in enumerate(self.configs):
            texts = pa.array(render_pin_texts(pins, config), pa.string())
            columns = [
                pins["pin_id"],
                pin_keys(content_keys(self.recipe, texts), pins["pin_id"]),
                pa.array([number] * len(texts), pa.int32()),
                pa.array(range(len(texts)), pa.int32()),
                pc.utf8_length(texts),
            ]
            parts.append(pa.Table.from_arrays(columns, schema=parts[0].schema))
        return pa.concat_tables(parts)

    def with_texts(self, bucket: int, keyed: pa.Table) -> pa.Table:
        """(content_key, text) of rows of `keyed`.

        Raises:
            CorruptFileError: the table is not the one that was keyed.
        """
        pins = read_bucket(self.store, self.output, bucket)
        texts = pa.nulls(keyed.num_rows, pa.string()).to_pylist()
        for number, config in enumerate(self.configs):
            places = pc.indices_nonzero(pc.equal(keyed["config"], number)).to_pylist()
            rendered = render_pin_texts(pins.take(keyed["row"].take(pa.array(places, pa.int64()))), config)
            for place, text in zip(places, rendered, strict=True):
                texts[place] = text
        if pin_keys(content_keys(self.recipe, texts), keyed["pin_id"]) != keyed["content_key"].combine_chunks():
            raise CorruptFileError(f"{self.store.shown}/{self.output.path} changed while it was read; run again")
        return pa.table({"content_key": keyed["content_key"], "text": pa.array(texts, pa.string())})
