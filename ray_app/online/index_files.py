"""The files of a retriever: made once per machine and release, checked, memory-mapped by all.

<folder>/
    bm25/              bm25s: the share of the score of every (word, pin), and the words
    rows.npy           (num_vectors,) int64, rows of the pins that have a vector
    vectors.npy        their vectors, for exact search; only of small catalogues
    vectors.usearch    HNSW over them, keys are rows; only of large ones
    meta.json          what it was made from, sizes and hashes; written last: without it the folder is no index
"""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_app.base.cache_folder import put_in_place, remove
from ray_app.base.errors import one_line
from ray_app.base.text import TEXT_VERSION, stem_tokens
from ray_app.online.local_files import check_files, write_meta

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # raised when the same pins give other files

# Measured on 60,000 vectors of rank 24 in 128 dimensions, the nearest 100: 99.3% of them found in 0.5 ms; 94.6% with 100.
_EXPANSION_SEARCH = 256
_CONNECTIVITY, _EXPANSION_ADD = 16, 128  # usearch's own: 60,000 vectors in 9 s; 32 finds 1% more for 1.4 times the time
_K1, _B = 1.5, 0.75  # as `ray_app.features.bm25`
_SCALAR = {"float32": "f32", "float16": "f16", "int8": "i8"}
_ADD_ROWS = 65_536  # vectors in memory at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexKey:
    """Identity of a folder's content, stored in meta.json, so that files built from other inputs are never used."""

    format_version: int
    text_version: int
    bm25s: str
    usearch: str
    num_pins: int
    dim: int
    dtype: str
    exact_below: int
    texts: str  # hash
    vectors: str  # hash of some of them: all of a large release would take a while, and the folder's name has its id

    @classmethod
    def of(cls, texts: Sequence[str], vectors: NDArray[Any], exact_below: int) -> "IndexKey":
        """The key of pins' indexes.

        Raises:
            ValueError: texts and vectors do not fit together.
        """
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(f"{len(texts)} texts, but vectors of shape {vectors.shape}; row i of both is pin i")
        if str(vectors.dtype) not in _SCALAR:
            raise ValueError(f"vectors are {vectors.dtype}; they can be {', '.join(_SCALAR)}")
        said = hashlib.sha256()
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            said.update(len(data).to_bytes(8, "little") + data)
        some = vectors[:: max(1, len(vectors) // 1024)]
        return cls(
            format_version=FORMAT_VERSION, text_version=TEXT_VERSION, bm25s=version("bm25s"), usearch=version("usearch"),
            num_pins=len(texts), dim=vectors.shape[1], dtype=str(vectors.dtype), exact_below=exact_below,
            texts=said.hexdigest(), vectors=hashlib.sha256(some.tobytes()).hexdigest(),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenIndexes:
    """A checked folder."""

    key: IndexKey  # what it was made from
    bm25: Any  # a `bm25s.BM25`
    rows: NDArray[np.int64]  # (num_vectors,) int64, rows of the pins that have a vector, rising
    vectors: Any  # theirs, (num_vectors, dim); or a `usearch.index.Index` whose keys are the rows


def open_indexes(folder: Path, key: IndexKey | None, verify: bool) -> OpenIndexes:
    """Map a folder. Arguments and errors: see `Retriever.open`."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        if key is not None and meta["key"] != asdict(key):
            raise ValueError("it was made from something else")
        check_files(folder, meta["files"], verify)
        return OpenIndexes(
            key=IndexKey(**meta["key"]), bm25=_open_bm25(folder / "bm25"), rows=_map(folder / "rows.npy"),
            vectors=_open_vectors(folder),
        )  # fmt: skip
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:  # RuntimeError: usearch
        raise ValueError(f"{folder} is no whole index: {one_line(error)}") from None


def write_indexes(folder: Path, key: IndexKey, texts: Sequence[str], vectors: NDArray[Any], threads: int) -> None:
    """Write the indexes beside the folder and move them there; another's that came first stays."""
    started = time.monotonic()
    with put_in_place(folder) as temp:
        _write_bm25(temp / "bm25", texts)
        _write_vectors(temp, key, vectors, threads)
        write_meta(temp, {"key": asdict(key)})
        remove(folder)
    logger.info("%s: %d pins indexed after %.1f s", folder, key.num_pins, time.monotonic() - started)


def _write_bm25(folder: Path, texts: Sequence[str]) -> None:
    import bm25s

    # Our own numbers of the words: bm25s would number a set, which goes another way in each process. "" is in no text,
    # and makes an index of no words possible.
    vocabulary = {"": 0}
    terms = [[vocabulary.setdefault(stem, len(vocabulary)) for stem in stem_tokens(text)] for text in texts or [""]]
    index = bm25s.BM25(method="lucene", k1=_K1, b=_B, backend="numpy", csc_backend="scipy")
    with np.errstate(invalid="ignore", divide="ignore"):  # no text has a word: the mean length is 0
        index.index((terms, vocabulary), create_empty_token=False, show_progress=False)
    index.save(folder, show_progress=False)


def _open_bm25(folder: Path) -> Any:
    import bm25s

    return bm25s.BM25.load(folder, mmap=True, show_progress=False)


def _write_vectors(folder: Path, key: IndexKey, vectors: NDArray[Any], threads: int) -> None:
    """Write rows.npy, and vectors.npy or vectors.usearch."""
    from usearch.index import Index

    parts = range(0, len(vectors), _ADD_ROWS)
    rows = np.concatenate([np.zeros(0, np.int64), *(at + _there(vectors[at : at + _ADD_ROWS]) for at in parts)])
    np.save(folder / "rows.npy", rows)
    if len(rows) < key.exact_below:
        np.save(folder / "vectors.npy", vectors[rows])
        return
    index = Index(
        ndim=key.dim, metric="cos", dtype=_SCALAR[key.dtype], connectivity=_CONNECTIVITY, expansion_add=_EXPANSION_ADD
    )
    for at in range(0, len(rows), _ADD_ROWS):
        some = rows[at : at + _ADD_ROWS]
        index.add(some.astype(np.uint64), vectors[some], threads=threads, log=False)
    index.save(folder / "vectors.usearch")


def _open_vectors(folder: Path) -> Any:
    """A mapped array, or a mapped usearch index."""
    if (folder / "vectors.npy").exists():
        return _map(folder / "vectors.npy")
    from usearch.index import Index

    index = Index.restore(str(folder / "vectors.usearch"), view=True, expansion_search=_EXPANSION_SEARCH)
    if index is None:
        raise ValueError("vectors.usearch is no index")
    return index


def _there(vectors: NDArray[Any]) -> NDArray[np.int64]:
    """Places of the rows that hold a vector."""
    return np.flatnonzero(np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1))


def _map(path: Path) -> NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r"))  # a plain array over the mapping: indexing it costs less
