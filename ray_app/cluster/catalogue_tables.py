"""The pins of a run, read as far as they are needed: those of some ids, or a bucket of all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.hashing import bucket_of
from ray_app.base.storage import Storage
from ray_app.cluster.buckets import map_buckets
from ray_app.features.bm25 import CatalogueMatch
from ray_app.features.catalogue import Catalogue
from ray_app.features.corpus import CorpusStatistics
from ray_app.features.lexical import MatchOf, title_match
from ray_app.features.student import EncodeQueries, StudentFeatures
from ray_app.tables.buckets import read_bucket
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output, read_manifest, read_output, require_output


@dataclass(frozen=True)
class CatalogueTables:
    """Tables of all pins. Picklable: tasks read the buckets that they work on."""

    cfg: Config
    store: Storage
    pin_texts: Output
    zero_shot_pins: Output
    corpus_statistics: Output

    @classmethod
    def of(cls, cfg: Config, store: Storage) -> "CatalogueTables":
        """Those of a run.

        Raises:
            UserError: a stage has not run, or was made from an older catalogue.
        """
        found = {
            name: require_output(store, stage, name)
            for stage, name in (
                ("enrich", "pin_texts"),
                ("zero_shot", "zero_shot_pins"),
                ("corpus_statistics", "corpus_statistics"),
            )
        }
        made = read_manifest(store, "corpus_statistics")
        assert made is not None, "its output was found"
        for name in ("pin_texts", "zero_shot_pins"):
            if made.inputs.get(name) != found[name].content_hash:
                raise UserError(
                    f"corpus_statistics was made from an older {name}; run `python pipelines/corpus_statistics.py --config ...`"
                )
        if _counted_with(made.config) != _counted_with(cfg.model_dump(mode="json")):
            raise UserError(
                "corpus_statistics was made with other settings of pin_text, features.bm25_fields or features.max_terms; run "
                "`python pipelines/corpus_statistics.py --config ...`"
            )
        return cls(cfg, store, **found)

    @property
    def outputs(self) -> list[Output]:
        """Of which the content decides what is read here."""
        return [self.pin_texts, self.zero_shot_pins]

    @property
    def num_buckets(self) -> int:
        """Number of buckets of the tables."""
        return self.pin_texts.num_buckets

    @cached_property
    def corpus(self) -> CorpusStatistics:
        """Statistics of all pins' words, mapped into memory."""
        return CorpusStatistics.open(local_folder(self.store, self.corpus_statistics))

    def __getstate__(self) -> dict[str, object]:
        # A process maps the statistics itself.
        return {name: value for name, value in self.__dict__.items() if name != "corpus"}

    def bucket(self, number: int, match_of: MatchOf) -> Catalogue:
        """The pins of a bucket.

        Args:
            match_of: See `LexicalFeatures`.
        """
        texts, vectors = (read_bucket(self.store, table, number) for table in self.outputs)
        return Catalogue.of(self.cfg, texts, vectors, self.corpus, match_of)

    def pins(self, pin_ids: Iterable[str]) -> Catalogue:
        """The pins of these ids, few enough for this process; ids that no pin has are left out."""
        texts, vectors = (self.rows(table, pin_ids) for table in self.outputs)
        return Catalogue.of(self.cfg, texts, vectors, self.corpus, WholeMatch(self))

    def known(self, pin_ids: Iterable[str | None]) -> pa.ChunkedArray:
        """Those of some ids that a pin has."""
        return self.rows(self.pin_texts, {pin_id for pin_id in pin_ids if pin_id is not None}, ["pin_id"])["pin_id"]

    def first_pins(self, num_pins: int) -> Catalogue:
        """A random sample of at least that many pins, if there are so many: those of the first buckets."""
        parts, num_rows = [], 0
        for number in range(self.num_buckets):
            if num_rows < num_pins:
                parts.append([read_bucket(self.store, table, number) for table in self.outputs])
                num_rows += parts[-1][0].num_rows
        texts, vectors = (pa.concat_tables(tables) for tables in zip(*parts, strict=True))
        return Catalogue.of(self.cfg, texts, vectors, self.corpus, WholeMatch(self))

    def student_features(self, catalogue: Catalogue, encode_queries: EncodeQueries) -> StudentFeatures:
        """What the student reads of pairs with the pins of `pins`."""

        def read(_: Storage, table: Output, columns: list[str] | None) -> pa.Table:
            return self.rows(table, catalogue.pairs.pin_ids, columns)

        return StudentFeatures.load(catalogue, self.store, encode_queries, read=read)

    def rows(self, table: Output, pin_ids: Iterable[str], columns: list[str] | None = None) -> pa.Table:
        """Rows of a table by pin of these ids, bucket by bucket in the order of the table."""
        wanted = sorted(set(pin_ids))
        buckets = bucket_of(wanted, table.num_buckets)
        ids = {
            number: pa.array([wanted[i] for i in np.flatnonzero(buckets == number)], pa.string())
            for number in np.unique(buckets).tolist()
        }
        parts = map_buckets(partial(_rows, self.store, table, columns, ids), sorted(ids))
        return pa.concat_tables(parts) if parts else read_bucket(self.store, table, 0, columns).slice(0, 0)


def _counted_with(config: Mapping[str, Any]) -> list[Any]:
    """The settings that decide the statistics of a resolved config."""
    features = config.get("features") or {}
    return [config.get("pin_text"), features.get("bm25_fields"), features.get("max_terms")]


def _rows(store: Storage, table: Output, columns: list[str] | None, ids: dict[int, pa.Array], number: int) -> pa.Table:
    rows = read_bucket(store, table, number, columns)
    return rows.filter(pc.is_in(rows["pin_id"], value_set=ids[number])).combine_chunks()


class WholeMatch:
    """`MatchOf` of all pins, for queries few enough for this process; each query is looked up once."""

    def __init__(self, tables: CatalogueTables) -> None:
        self._tables = tables
        self._known: dict[str, tuple[float, int]] = {}

    def __call__(self, queries: Sequence[str]) -> CatalogueMatch:
        """Of each query, in the order given."""
        new = sorted({query for query in queries if query not in self._known})
        if new:
            numbers = range(self._tables.num_buckets)
            parts = map_buckets(partial(_match_in_bucket, self._tables, new), numbers)
            best, num_full = CatalogueMatch.merged(parts)
            self._known |= dict(zip(new, zip(best.tolist(), num_full.tolist(), strict=True), strict=True))
        found = [self._known[query] for query in queries]
        return CatalogueMatch(
            np.array([best for best, _ in found], np.float64), np.array([full for _, full in found], np.int64)
        )


def _match_in_bucket(tables: CatalogueTables, queries: Sequence[str], number: int) -> CatalogueMatch:
    """How well the pins of a bucket match queries by their titles."""
    return title_match(read_bucket(tables.store, tables.pin_texts, number, ["title"]), tables.corpus, queries)


def load_catalogue(cfg: Config, store: Storage) -> tuple[Catalogue, list[Output]]:
    """All pins of a run in this process, and the outputs that they were read from: for demo worlds, and for measuring."""
    pin_texts = require_output(store, "enrich", "pin_texts")
    zero_shot = require_output(store, "zero_shot", "zero_shot_pins")
    return Catalogue.of(cfg, read_output(store, pin_texts), read_output(store, zero_shot)), [pin_texts, zero_shot]
