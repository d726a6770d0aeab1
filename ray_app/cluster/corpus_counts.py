"""Statistics of the words of all pins' texts, counted bucket by bucket and added up by word."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.hashing import buckets_of_hashes
from ray_app.base.storage import Storage
from ray_app.cluster.buckets import shuffle
from ray_app.cluster.tasks import run_task
from ray_app.features.corpus import (
    CorpusStatistics,
    TermStatistics,
    Tokenizer,
    choose_listed,
    mean_idf_of,
)
from ray_app.tables.buckets import read_bucket
from ray_app.tables.manifest import Output

TextsOf = Callable[[pa.Table], Mapping[str, tuple[list[str], Tokenizer]]]
"""Pins -> their texts by name, each with the tokeniser that counts it. Picklable."""

# Rows of a bucket's counts. `name` is the place of the text's name; the totals of a text are rows of their own.
_TERM, _DOCS, _TOKENS = 0, 1, 2
_COUNTS = pa.schema([("name", pa.int16()), ("kind", pa.int8()), ("hash", pa.uint64()), ("count", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Terms whose hash lies in one part of all hashes; their counts are in a file."""

    totals: dict[str, tuple[int, int]]  # name -> documents and tokens, of the part that has them
    frequencies: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    """name -> distinct document frequencies, rising, and the number of terms that have each."""


def count_corpus(store: Storage, pins: Output, texts_of: TextsOf, max_terms: int) -> CorpusStatistics:
    """Count the words of all pins.

    Args:
        pins: Table that `texts_of` reads.
        texts_of: Gives the same names for each table.
        max_terms: Listed of each text; rarer ones are taken to be equally rare (`TermStatistics.unlisted`).
    """
    names = sorted(texts_of(read_bucket(store, pins, 0).slice(0, 0)))
    folder, num_parts = f"tmp/corpus/{pins.content_hash}", pins.num_buckets
    try:
        parts = shuffle(
            range(pins.num_buckets),
            partial(_split, store, pins, texts_of, names),
            partial(_reduce, store, folder, names),
            num_parts,
            _COUNTS,
        )
        terms = {name: _totals(name, parts, max_terms) for name in names}
        arguments = store, folder, num_parts, terms
        return CorpusStatistics(_listed(*arguments) if num_parts == 1 else run_task(_listed, *arguments))
    finally:
        store.delete(folder)


def _split(
    store: Storage, pins: Output, texts_of: TextsOf, names: list[str], number: int
) -> tuple[pa.Table, NDArray[np.int64]]:
    tables = []
    texts = texts_of(read_bucket(store, pins, number))
    for place, name in enumerate(names):
        found = TermStatistics.count(*texts[name])
        num = len(found.hashes)
        columns = [
            pa.array([place] * (num + 2), pa.int16()),
            pa.array([_TERM] * num + [_DOCS, _TOKENS], pa.int8()),
            pa.array(np.append(found.hashes, np.zeros(2, np.uint64))),
            pa.array(np.append(found.doc_frequency, [found.num_docs, found.num_tokens])),
        ]
        tables.append(pa.Table.from_arrays(columns, schema=_COUNTS))
    counts = pa.concat_tables(tables)
    return counts, buckets_of_hashes(counts["hash"].to_numpy(), pins.num_buckets)


def _reduce(store: Storage, folder: str, names: list[str], number: int, rows: pa.Table) -> _Part:
    added = rows.group_by(["name", "kind", "hash"]).aggregate([("count", "sum")])
    added = added.sort_by([("name", "ascending"), ("hash", "ascending")])
    is_term = pc.equal(added["kind"], _TERM)
    totals = {
        (row["name"], row["kind"]): row["count_sum"] for row in added.filter(pc.invert(is_term)).to_pylist()
    }  # of all buckets, which are in the part of hash 0
    terms = added.filter(is_term).select(["name", "hash", "count_sum"])
    store.write_table(_file(folder, number), terms)
    frequencies = {}
    for place, name in enumerate(names):
        of_name = terms["count_sum"].filter(pc.equal(terms["name"], place)).to_numpy()
        frequencies[name] = np.unique(of_name, return_counts=True)
    return _Part(
        totals={
            name: (totals[place, _DOCS], totals[place, _TOKENS])
            for place, name in enumerate(names)
            if (place, _DOCS) in totals
        },
        frequencies=frequencies,
    )


def _file(folder: str, number: int) -> str:
    return f"{folder}/part-{number:05d}.parquet"


@dataclass(frozen=True, kw_only=True)
class _Totals:
    """All of `TermStatistics` but the terms."""

    num_docs: int
    num_tokens: int
    mean_idf: float
    unlisted: int
    least: int  # document frequency of terms that are listed


def _totals(name: str, parts: list[_Part], max_terms: int) -> _Totals:
    ((num_docs, num_tokens),) = [part.totals[name] for part in parts if name in part.totals]
    some = [part.frequencies[name] for part in parts]
    values, place = np.unique(np.concatenate([values for values, _ in some]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([counts for _, counts in some]), len(values)).astype(np.int64)
    listed = choose_listed(values, counts, max_terms)
    return _Totals(
        num_docs=num_docs, num_tokens=num_tokens, mean_idf=mean_idf_of(values, counts, num_docs),
        unlisted=listed.unlisted, least=listed.least,
    )  # fmt: skip


def _listed(store: Storage, folder: str, num_parts: int, totals: dict[str, _Totals]) -> dict[str, TermStatistics]:
    """The statistics by name, of the terms that are listed; parts are in the order of hashes."""
    kept: dict[str, list[pa.Table]] = {name: [] for name in totals}
    for number in range(num_parts):
        terms = store.read_table(_file(folder, number))
        for place, name in enumerate(sorted(totals)):
            own = pc.and_(pc.equal(terms["name"], place), pc.greater_equal(terms["count_sum"], totals[name].least))
            kept[name].append(terms.filter(own))
    found = {}
    for name, about in totals.items():
        terms = pa.concat_tables(kept[name])
        found[name] = TermStatistics(
            num_docs=about.num_docs, num_tokens=about.num_tokens, hashes=terms["hash"].to_numpy(),
            doc_frequency=terms["count_sum"].to_numpy(), mean_idf=about.mean_idf, unlisted=about.unlisted,
        )  # fmt: skip
    return found
