"""Statistics of a corpus, by which BM25 weighs words: how many documents have a word, and how long documents are.

They are small whatever the number of documents: 16 bytes per word, in arrays that processes of a machine can share by
mapping them into memory. Words are known by a 64-bit hash: two of 100 million share one with a probability of 0.03%.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_app.base.errors import UserError
from ray_app.base.hashing import text_keys

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Tokenizer = Callable[[str], list[str]]

_FILE = "corpus.json"


def term_hashes(terms: Sequence[str]) -> Hashes:
    """64-bit hash of each term. Shape (num_terms,)."""
    return text_keys(terms, "term")


@dataclass(frozen=True, kw_only=True, eq=False)
class TermStatistics:
    """Document frequencies of the terms of a corpus."""

    num_docs: int  # empty ones included
    num_tokens: int  # of all documents, repeats counted
    hashes: Hashes  # (num_terms,) of the terms, rising
    doc_frequency: Ints  # (num_terms,) documents that have the term, at least 1
    mean_idf: float  # over all terms, also those that are not listed
    unlisted: int = 0
    """Document frequency that terms not listed are taken to have; 0: all terms are listed, so others are in no document."""

    @classmethod
    def of(cls, hashes: Hashes, doc_frequency: Ints, num_docs: int, num_tokens: int) -> "TermStatistics":
        """Of terms in any order; those of one hash are added up."""
        distinct, place = np.unique(hashes, return_inverse=True)
        frequency = np.bincount(place.reshape(-1), doc_frequency, len(distinct)).astype(np.int64)
        mean_idf = mean_idf_of(*np.unique(frequency, return_counts=True), num_docs)
        return cls(
            num_docs=num_docs, num_tokens=num_tokens, hashes=distinct, doc_frequency=frequency, mean_idf=mean_idf
        )

    @classmethod
    def count(cls, texts: Sequence[str], tokenizer: Tokenizer) -> "TermStatistics":
        """Count the terms of documents."""
        frequency: dict[str, int] = {}
        num_tokens = 0
        for text in texts:
            tokens = tokenizer(text)
            num_tokens += len(tokens)
            for token in set(tokens):
                frequency[token] = frequency.get(token, 0) + 1
        counts = np.fromiter(frequency.values(), np.int64, len(frequency))
        return cls.of(term_hashes(list(frequency)), counts, len(texts), num_tokens)

    @property
    def mean_length(self) -> float:
        """Tokens of a document; 1 for a corpus without any."""
        return self.num_tokens / self.num_docs if self.num_tokens else 1.0

    def doc_frequency_of(self, terms: Sequence[str]) -> Ints:
        """Documents that have each term, 0 for one that no document has. Shape (num_terms,)."""
        if not len(self.hashes):
            return np.full(len(terms), self.unlisted, np.int64)
        wanted = term_hashes(terms)
        place = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[place] == wanted, self.doc_frequency[place], self.unlisted)

    def idf(self, doc_frequency: Ints, epsilon: float) -> Floats:
        """Okapi's inverse document frequency; 0 for a term in no document.

        A term in more than half of the documents gets `epsilon` times the mean of all terms, as in rank-bm25.
        """
        idf = _okapi_idf(doc_frequency, self.num_docs)
        return np.where(doc_frequency == 0, 0.0, np.where(idf < 0, epsilon * self.mean_idf, idf))


def mean_idf_of(values: Ints, counts: Ints, num_docs: int) -> float:
    """Mean of Okapi's inverse document frequency over terms, whatever their order.

    Args:
        values: (n,) distinct document frequencies, rising.
        counts: (n,) terms that have each.
        num_docs: Of the corpus.
    """
    return float(_okapi_idf(values, num_docs) @ counts / counts.sum()) if len(values) else 0.0


def _okapi_idf(doc_frequency: Ints, num_docs: int) -> Floats:
    return np.log(num_docs - doc_frequency + 0.5) - np.log(doc_frequency + 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """Which terms of a corpus are listed."""

    least: int  # terms of fewer documents are not
    unlisted: int  # document frequency that those are taken to have


def choose_listed(values: Ints, counts: Ints, max_terms: int) -> Listed:
    """List the most frequent terms, at most `max_terms` of them.

    Args:
        values: (n,) distinct document frequencies, rising.
        counts: (n,) terms that have each.
        max_terms: Bound.
    """
    from_here = np.cumsum(counts[::-1])[::-1]  # terms of at least that frequency
    dropped = int((from_here > max_terms).sum())
    if not dropped:
        return Listed(least=0, unlisted=0)
    mean = float(values[:dropped] @ counts[:dropped] / counts[:dropped].sum())
    return Listed(least=int(values[dropped - 1]) + 1, unlisted=max(1, round(mean)))


@dataclass(frozen=True)
class CorpusStatistics:
    """Statistics of several texts per document, by name, such as the fields of pins."""

    terms: Mapping[str, TermStatistics]

    def __getitem__(self, name: str) -> TermStatistics:
        try:
            return self.terms[name]
        except KeyError:
            raise UserError(
                f"corpus_statistics has no text {name!r}, only {sorted(self.terms)}: the config has changed; run "
                "`python pipelines/corpus_statistics.py --config ...`"
            ) from None

    def to_files(self) -> dict[str, bytes]:
        """File name -> content."""
        about = {}
        files = {}
        for number, (name, terms) in enumerate(sorted(self.terms.items())):
            for array in ("hashes", "doc_frequency"):
                buffer = io.BytesIO()
                np.save(buffer, getattr(terms, array))
                files[f"{number}-{array}.npy"] = buffer.getvalue()
            about[name] = {
                "number": number, "num_docs": terms.num_docs, "num_tokens": terms.num_tokens,
                "mean_idf": terms.mean_idf, "unlisted": terms.unlisted,
            }  # fmt: skip
        return files | {_FILE: json.dumps(about, indent=1).encode()}

    @classmethod
    def open(cls, folder: Path) -> "CorpusStatistics":
        """Map the files of `to_files` into memory."""
        about = json.loads((folder / _FILE).read_text())
        terms = {}
        for name, scalars in about.items():
            number = scalars.pop("number")
            arrays = {
                array: np.load(folder / f"{number}-{array}.npy", mmap_mode="r") for array in ("hashes", "doc_frequency")
            }
            terms[name] = TermStatistics(**scalars, **arrays)
        return cls(terms)
